"""The listener of core.metrics_address: HTTPS with nothing behind it but the metrics.

Owns an aiohttp application of its own; opened and changed by daemon/member.py as the others are.
"""

from __future__ import annotations

from pathlib import Path

from incus_actors.rest import metrics_routes
from incus_actors.rest.app import build_app
from incus_actors.rest.context import Gateway
from incus_actors.rest.listeners import METRICS_PORT, Listeners


class MetricsListener:
    """Listens nowhere until an address is configured."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._listeners: Listeners | None = None

    async def listen(self, address: str, pair: Path) -> None:
        """Listen at `address` ("": nowhere) with the certificate `pair`.crt. Raises MemberError."""
        if self._listeners is None:
            if not address:
                return
            application = build_app(self._gateway, metrics_routes.routes())
            self._listeners = Listeners(application, default_port=METRICS_PORT)
            await self._listeners.start()
        self._listeners.use_certificate(pair.with_name(f"{pair.name}.crt"), pair.with_name(f"{pair.name}.key"))
        await self._listeners.set_https(address)

    async def close(self) -> None:
        """Stop listening."""
        if self._listeners is not None:
            await self._listeners.close()
