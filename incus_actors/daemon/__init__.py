"""The composition root: builds every part of one member, owns the order of start and stop.

Called by cli/daemon.py. The only package that knows all the others; must never decide anything that a service
should decide.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
from pathlib import Path

from incus_actors import logs
from incus_actors.consensus.log_format import AMNESIA_NAME
from incus_actors.errors import ApiError
from incus_actors.settings import Settings

log = logging.getLogger(__name__)


#: Exit code: this server has just forgotten what it promised, and has to start anew to join its cluster again.
START_ANEW = 75

#: Exit code: a write or a sync of the log failed (docs/recovery.md). The next start writes the log anew; whoever restarts
#: us should.
DISK_FAILED = 74


def run(settings: Settings, *, log_level: int) -> int:
    """Run one daemon until it is told to stop; return the exit code: 0, 1 when it could not start or go on,
    DISK_FAILED or START_ANEW."""
    logs.configure(level=log_level, log_format=settings.log_format, logfile=settings.logfile)
    from incus_actors.daemon.member import MemberDaemon

    marker = settings.database_directory / AMNESIA_NAME
    known = marker.exists()
    daemon = MemberDaemon(settings)
    try:
        code = asyncio.run(daemon.main())
    except ApiError as problem:
        log.critical("the daemon ends: %s", problem)
        code = 1
    except Exception:
        log.exception("the daemon ends")
        code = 1
    if code and (daemon.disk_failed or disk_fails(settings.database_directory)):
        log.critical("the disk of %s has failed: what is written there is lost", settings.database_directory)
        code = DISK_FAILED
    return START_ANEW if marker.exists() and not known else code


def disk_fails(directory: Path) -> bool:
    """Whether what is written there is lost just now. Whoever reads the state may notice it before the log does, and
    then calls it a damaged file."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"?")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return problem.errno in (errno.EIO, errno.EROFS)
    return False
