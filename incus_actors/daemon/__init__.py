"""The composition root: builds every part of one member, owns the order of start and stop.

Called by cli/daemon.py. The only package that knows all the others; must never decide anything that a service
should decide.
"""

from __future__ import annotations

import asyncio
import logging

from incus_actors import logs
from incus_actors.settings import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, *, log_level: int) -> int:
    """Run one daemon until it is told to stop; return the exit code: 0, or 1 when it could not start or go on."""
    logs.configure(level=log_level, log_format=settings.log_format, logfile=settings.logfile)
    from incus_actors.daemon.member import MemberDaemon

    daemon = MemberDaemon(settings)
    try:
        return asyncio.run(daemon.main())
    except Exception:
        log.exception("the daemon ends")
        return 1
