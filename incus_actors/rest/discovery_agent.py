"""This server waiting to be joined: the announcement, the door and the sessions, as one thing that starts and stops.

Owns their order; made by discovery_routes.py (`cluster announce`) or at the start (`--discoverable`), ended by the
join, by `stop` or with the daemon. Must never be up on a server that is a member of a cluster.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from incus_actors.errors import BadRequestError, MemberError
from incus_actors.gateway.access import Caller
from incus_actors.model.cluster import ClusterPut
from incus_actors.rest.discovery_listener import DiscoveryListener
from incus_actors.security import certificates
from incus_actors.security.tls import TrustAnyClientContext
from incus_actors.services.addresses import normalise
from incus_actors.services.discovery import Session, Waiting
from incus_actors.services.local_network import local_interfaces
from incus_actors.services.resources import read_resources
from incus_actors.tasks import spawn
from incus_actors.transport.mdns import Announcement, MdnsError

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation
    from incus_actors.rest.context import Gateway

_log = logging.getLogger(__name__)

_JOIN_S: Final = 120.0


class DiscoveryAgent:
    """One per daemon, made when it is first needed."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: Waiting | None = None
        self._listener: DiscoveryListener | None = None
        self._announcement: Announcement | None = None
        self._addresses: list[str] = []
        self._port = 0
        self._changing = asyncio.Lock()
        self._last_error = ""

    # -- starting and stopping ----------------------------------------------------------------------------------------

    async def start(self, interfaces: tuple[str, ...] = (), *, ipv4_only: bool = False) -> None:
        """Wait to be joined. On a server that waits already nothing changes.

        Raises BadRequestError (already clustered, no usable interface), MemberError (can't listen or announce).
        """
        async with self._changing:
            if self._gateway.identity.clustered:
                raise BadRequestError("This server is already clustered")
            if self._waiting is not None:
                return
            addresses = [a for found in local_interfaces(interfaces, ipv4_only=ipv4_only) for a in found.addresses]
            if not addresses:
                raise BadRequestError("No interface of this server has an address that others could reach")
            self._last_error = ""
            try:
                await self._open(addresses)
            except (OSError, MdnsError) as problem:
                await self._close()
                raise MemberError(f"This server can't wait to be found: {problem}") from problem
            _log.info("waiting to be found at %s, port %d", ", ".join(addresses), self._port)

    async def _open(self, addresses: list[str]) -> None:
        directory = self._gateway.settings.directory
        name = socket.gethostname() or "server"
        pair = certificates.load_or_create(directory, certificates.SERVER, name)
        context = TrustAnyClientContext(pair.certificate_path, pair.key_path)
        self._waiting = Waiting(name, pair.fingerprint)
        self._listener = DiscoveryListener(self._waiting, context, join=self._join, facts=self._facts)
        self._addresses = addresses
        self._port = await self._listener.start(addresses)
        self._announcement = Announcement(name=name, fingerprint=pair.fingerprint, port=self._port, addresses=addresses)
        await self._announcement.start()

    async def stop(self) -> None:
        """Wait no more."""
        async with self._changing:
            await self._close()

    async def _close(self) -> None:
        announcement, listener = self._announcement, self._listener
        self._announcement = self._listener = self._waiting = None
        if announcement is not None:
            await announcement.stop()
        if listener is not None:
            await listener.stop()

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the terminal of this server shows."""
        waiting = self._waiting
        identity = self._gateway.identity
        return {
            "waiting": waiting is not None,
            "name": waiting.name if waiting is not None else "",
            "fingerprint": waiting.fingerprint if waiting is not None else "",
            "addresses": self._addresses if waiting is not None else [],
            "port": self._port if waiting is not None else 0,
            "sessions": waiting.shown() if waiting is not None else [],
            "member": identity.name if identity.clustered else "",
            "error": self._last_error,
        }

    async def _facts(self) -> dict[str, Any]:
        resources = await asyncio.to_thread(read_resources)
        drivers = self._gateway.services.server.server(user="", method="unix").environment.storage_supported_drivers
        return {
            "name": socket.gethostname(),
            "storage_drivers": [driver.name for driver in drivers],
            "disks": [
                {"path": f"/dev/{disk['id']}", "size": disk["size"], "model": disk["model"]}
                for disk in resources["storage"]["disks"]
                if not (disk["read_only"] or disk["removable"] or disk["partitions"])
            ],
            "interfaces": [found.name for found in local_interfaces()],
        }

    # -- joining ------------------------------------------------------------------------------------------------------

    async def _join(self, put: ClusterPut, session: Session) -> None:
        here = self._gateway
        join = here.services.cluster.join
        put.enabled = True
        join.check_join(put)
        put.server_address = normalise(put.server_address)
        caller = Caller("untrusted", session.asker, session.address, session.fingerprint)

        async def run(_operation: Operation) -> None:
            await join.join(put)
            source = f"/1.0/cluster/members/{put.server_name}"
            here.events.lifecycle("cluster-member-added", source, project="default", caller=caller)

        operation = here.operations.create(
            kind="task", description="Joining cluster", project=None, run=run, caller=caller
        )
        if not await operation.wait(_JOIN_S):
            raise MemberError("Joining goes on, but it takes longer than expected")
        rendered = operation.render()
        if rendered["status_code"] != 200:
            self._last_error = rendered["err"]
            raise MemberError(rendered["err"])
        spawn(self._stop_soon(), name="discovery: joined")

    async def _stop_soon(self) -> None:
        await asyncio.sleep(1.0)  # the asker gets its answer through the listener that goes
        await self.stop()


def agent(gateway: Gateway) -> DiscoveryAgent:
    """Return the daemon's agent, made when it is first asked for."""
    if gateway.discovery is None:
        gateway.discovery = DiscoveryAgent(gateway)
    return gateway.discovery
