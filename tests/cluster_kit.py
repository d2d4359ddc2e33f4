"""Several servers in one process: real consensus, real databases, real actors; the wires between them are calls.

Each Server has what a daemon would give the cluster's services. `Wires` carries Raft envelopes and actor frames and
can cut a member off; `LocalPeers` stands for HTTPS between members.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.heartbeat import HeartbeatActor, HeartbeatTable, OwnFacts
from incus_actors.actors.leader import LeaderTools
from incus_actors.actors.leadership import LeadershipActor
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus import bootstrap
from incus_actors.consensus.lane import LaneListener
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Member, RaftRole
from incus_actors.errors import ApiError
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptRequest, ClusterCertificatePut, ClusterPut, WithdrawRequest
from incus_actors.security import certificates, tokens
from incus_actors.services.acceptance import ACCEPT_PATH, WITHDRAW_PATH, Applicant, ServerFacts
from incus_actors.services.cluster_certificate import FETCH_PATH, KEEP_PATH
from incus_actors.services.cluster_use_cases import ClusterUseCases, build_cluster_use_cases
from incus_actors.services.join_journal import recover
from incus_actors.services.join_standing import STANDING_PATH
from incus_actors.services.leave import RESET_PATH
from incus_actors.services.peer_client import PeerRefusedError, PeerUnreachableError
from incus_actors.state.schema import SCHEMA_VERSION, initial_rows, pending_migrations

NOW = "2026-01-01T00:00:00Z"


class Wires:
    """Who can talk to whom."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.lanes: dict[str, WireLane] = {}  #: transport address → lane
        self.systems: dict[str, ActorSystem] = {}
        self.cut: set[str] = set()


class WireLane:
    """consensus.lane.RaftLane by calls from loop to loop."""

    def __init__(self, wires: Wires, server: Server) -> None:
        self.wires = wires
        self.address = server.transport
        self.peers: dict[int, str] = {}
        self.up: set[int] = set()
        self.own_id = 0
        self.listener: LaneListener | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def start(self, listener: LaneListener) -> None:
        self.listener, self.loop = listener, asyncio.get_running_loop()
        with self.wires.lock:
            self.wires.lanes[self.address] = self

    def set_peers(self, members: Iterable[Member], own_id: int) -> None:
        with self.wires.lock:
            self.own_id = own_id
            self.peers = {m.id: m.address for m in members if m.id != own_id}
            self.up &= set(self.peers)
            for lane in [self, *self.wires.lanes.values()]:
                lane.look()

    def look(self) -> None:
        """Tell the listener which links have come up or gone."""
        with self.wires.lock:
            for peer, address in self.peers.items():
                other = self.wires.lanes.get(address)
                works = (
                    other is not None
                    and self.own_id in other.peers
                    and not {self.address, address} & self.wires.cut
                    and self.wires.lanes.get(self.address) is self
                )
                if works and peer not in self.up:
                    self.up.add(peer)
                    self._call("on_link_up", peer)
                elif not works and peer in self.up:
                    self.up.discard(peer)
                    self._call("on_link_down", peer, "E2")

    def _call(self, method: str, *values: object) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(getattr(self.listener, method), *values)

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        with self.wires.lock:
            other = self.wires.lanes.get(self.peers.get(envelope.destination, ""))
            if other is None or {self.address, other.address} & self.wires.cut or self.own_id not in other.peers:
                return
            other._call("on_message", envelope)

    def drain(self) -> None:
        """Nothing waits in sockets."""

    def refusing(self) -> frozenset[int]:
        return frozenset()

    def links(self) -> frozenset[int]:
        with self.wires.lock:
            return frozenset(self.up)

    async def close(self) -> None:
        with self.wires.lock:
            if self.wires.lanes.get(self.address) is self:
                del self.wires.lanes[self.address]
            self.listener, self.up = None, set()
            for lane in self.wires.lanes.values():
                lane.look()


class FrameWires:
    """actors.remoting.RemoteSender."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def send_frame(self, member: int, frame: Any) -> str:
        server = self.server
        known = server.consensus.status().configuration.members().get(member)
        other = server.wires.systems.get(known.address) if known is not None else None
        if other is None or {server.transport, known.address} & server.wires.cut:  # type: ignore[union-attr]
            return "remote_down"
        asyncio.get_running_loop().call_soon(other.remoting.receive, server.consensus.member_id, frame)
        return ""


class LocalPeers:
    """services.peer_client.PeerClient without TLS: the certificate is the server's own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.fail: Callable[[str], Exception | None] = lambda _path: None  #: before it is sent
        self.lose: Callable[[str], Exception | None] = lambda _path: None  #: after it was done

    async def post(self, address: str, path: str, body: Any, *, certificate_pem: str, timeout_s: float) -> Any:
        other = self.server.neighbours.get(address)
        failure = self.fail(path)
        if failure is not None:
            raise failure
        if other is None or {other.transport, self.server.transport} & self.server.wires.cut:
            raise PeerUnreachableError(f'Failed to connect to target cluster node "{address}": no route')
        shown = certificates.load_pair(other.directory, "cluster") or other.cases.bootstrap.server_certificate()
        if certificates.fingerprint_pem(certificate_pem) != shown.fingerprint:
            raise PeerUnreachableError("Certificate fingerprint mismatch")
        pair = self.server.cases.bootstrap.server_certificate()
        trusted = other.database.scalar(
            "SELECT name FROM certificates WHERE fingerprint = ? AND type = 2", (pair.fingerprint,)
        )
        applicant = Applicant(pair.fingerprint, pair.certificate_pem, trusted)
        try:
            answer = await self._serve(other, path, body, applicant)
        except ApiError as error:
            raise PeerRefusedError(str(error), status=error.status) from error
        failure = self.lose(path)
        if failure is not None:
            raise failure
        return msgspec.to_builtins(answer)

    @staticmethod
    async def _serve(other: Server, path: str, body: Any, applicant: Applicant) -> Any:
        if path in (ACCEPT_PATH, WITHDRAW_PATH):
            await other.consensus.read_barrier()
        if path == ACCEPT_PATH:
            return await other.cases.acceptance.accept(msgspec.convert(body, AcceptRequest), applicant)
        if path == WITHDRAW_PATH:
            return await other.cases.acceptance.withdraw(msgspec.convert(body, WithdrawRequest), applicant)
        if path == STANDING_PATH:
            return await other.cases.acceptance.standing(body["member_id"], applicant)
        if path == KEEP_PATH:
            return other.cases.certificate.keep(msgspec.convert(body, ClusterCertificatePut))
        if path == FETCH_PATH:
            return other.cases.certificate.give(body["fingerprint"])
        assert path == RESET_PATH
        return await other.cases.leave.reset(body["member_id"])


class Server:
    """One server, and its own hooks."""

    def __init__(self, number: int, directory: Path, wires: Wires, neighbours: dict[str, Server]) -> None:
        self.number = number
        self.directory = directory
        self.address = f"10.0.0.{number}:8443"
        self.transport = f"10.0.0.{number}:1{number:04d}:2{number:04d}:{number:064x}"
        self.wires = wires
        self.neighbours = neighbours
        self.config = {"core.https_address": self.address}
        self.done: list[str] = []  #: hooks called, in order
        self.fail_hook: Callable[[str], Exception | None] = lambda _name: None
        self.consensus: ConsensusRuntime
        self.actors: ActorSystem
        self.cases: ClusterUseCases

    @property
    def database(self) -> Any:
        return self.consensus.database

    async def start(self) -> None:
        """As the daemon does."""
        self.resumed = recover(self.directory)
        if not bootstrap.exists(self.directory / "database"):
            bootstrap.create_standalone(self.directory / "database", address="")
        self.consensus = ConsensusRuntime(
            self.directory / "database", lambda: WireLane(self.wires, self), realtime=False
        )
        await self.consensus.start()
        await self.prepare_state()
        self.identity = Identity(
            database=lambda: self.consensus.database,
            member_id=lambda: self.consensus.member_id,
            hostname=f"host{self.number}",
        )
        self.identity.refresh()
        self.consensus.subscribe_applied(lambda _i, topics: self.identity.refresh() if "members" in topics else None)
        self.heartbeats = HeartbeatTable()
        self.actors = ActorSystem(member_id=lambda: self.consensus.member_id, remote=FrameWires(self))
        self.wires.systems[self.transport] = self.actors
        tools = LeaderTools(self.consensus, self.consensus.database, self.heartbeats, tick_s=0.1)
        await self.actors.start(
            [
                ChildSpec("leader", lambda: LeadershipActor(tools)),
                ChildSpec("heartbeat", self._heartbeat),
            ]
        )
        self.cases = build_cluster_use_cases(
            directory=self.directory,
            hostname=f"host{self.number}",
            identity=self.identity,
            consensus=self.consensus,
            database=self.consensus.database,
            hooks=self,
            heartbeats=self.heartbeats,
            actors=self.actors,
            facts=ServerFacts("0.1", SCHEMA_VERSION, 10, 2, "/var/lib/incus-actors/storage-pools"),
            config=lambda key: self.config.get(key, ""),
            peers=LocalPeers(self),  # type: ignore[arg-type]
        )
        self.peers = self.cases.join._peers
        self.neighbours[self.address] = self
        if self.resumed == "confirming":
            await self.cases.join.resume()
        self.cases.certificate.settle()
        await self.cases.leave.start()
        self.cases.certificate.start()
        if self.identity.clustered:
            await self.cases.bootstrap.ensure_announced()

    def _heartbeat(self) -> HeartbeatActor:
        return HeartbeatActor(
            self.heartbeats,
            peers=lambda: self.consensus.status().configuration.members(),
            own=lambda: OwnFacts(self.consensus.member_id, self.consensus.status().applied, 0, 0),
            version=("0.1", SCHEMA_VERSION, 10),
            incarnation=time.time_ns(),
            interval_s=0.1,
        )

    async def stop(self) -> None:
        """Stop at once, as if killed: nothing is handed over."""
        self.neighbours.pop(self.address, None)
        self.wires.systems.pop(self.transport, None)
        await self.actors.stop()
        await self.consensus.stop(handover=False)

    async def prepare_state(self) -> None:
        if self.consensus.status().configuration.voters() - {self.consensus.member_id}:
            return
        await until(lambda: self.consensus.status().role is RaftRole.LEADER)
        await self.consensus.read_barrier()
        if not self.database.scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = 'schema'"):
            for migration in pending_migrations(0, NOW):
                assert (await self.consensus.propose(migration)).applied
            assert (await self.consensus.propose(initial_rows(NOW, architecture=2, api_extensions=10))).applied

    def _hook(self, name: str) -> None:
        self.done.append(name)
        failure = self.fail_hook(name)
        if failure is not None:
            raise failure

    # -- hooks ----------------------------------------------------------------------------------------------------

    async def open_lanes(self, address: str) -> str:
        self._hook("open_lanes")
        return self.transport

    async def close_lanes(self) -> None:
        self._hook("close_lanes")

    async def reload_listeners(self) -> None:
        self._hook("reload_listeners")
        self.identity.refresh()

    async def move_lanes(self, address: str) -> str:
        self._hook("move_lanes")
        return self.transport

    async def lanes_moved(self, back_to: str = "") -> None:
        self._hook("lanes_moved")

    async def listen_also(self, address: str) -> None:
        self._hook("listen_also")

    async def restart_consensus(self, change: Callable[[], None]) -> None:
        self._hook("restart_consensus")
        await self.consensus.restart(change)
        self._hook("restarted_consensus")

    async def own_pools_ready(self) -> None:
        self._hook("own_pools_ready")

    async def become_standalone(self) -> None:
        self._hook("become_standalone")
        database = self.directory / "database"

        def start_over() -> None:
            database.replace(self.directory / f"removed.{len(self.done)}")
            bootstrap.create_standalone(database, address="")

        await self.consensus.restart(start_over)
        await self.prepare_state()
        self.identity.refresh()

    # -- what tests do --------------------------------------------------------------------------------------------

    async def bootstrap(self, name: str = "node1") -> None:
        await self.cases.bootstrap.bootstrap(ClusterPut(server_name=name, enabled=True))

    async def token(self, name: str) -> str:
        metadata = (await self.cases.tokens.issue(name))["metadata"]
        return tokens.JoinToken(
            metadata["serverName"],
            metadata["fingerprint"],
            tuple(metadata["addresses"]),
            metadata["secret"],
            metadata["expiresAt"],
        ).encode()

    def join_request(self, member: Server, name: str, token: str) -> ClusterPut:
        return ClusterPut(
            server_name=name,
            enabled=True,
            cluster_address=member.address,
            cluster_certificate=member.cases.bootstrap.certificate().certificate_pem,
            server_address=self.address,
            cluster_token=token,
        )

    async def join(self, member: Server, name: str, token: str | None = None) -> None:
        token = await member.token(name) if token is None else token
        await self.cases.join.join(self.join_request(member, name, token))

    def cut_off(self, cut: bool = True) -> None:
        """Take this server's wires away, or give them back."""
        (self.wires.cut.add if cut else self.wires.cut.discard)(self.transport)
        with self.wires.lock:
            for lane in tuple(self.wires.lanes.values()):
                lane.look()


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def servers(directory: Path, count: int, *, clustered: bool = False) -> AsyncIterator[list[Server]]:
    """Started standalone servers, or one cluster of them."""
    wires = Wires()
    neighbours: dict[str, Server] = {}
    made: list[Server] = []
    try:
        for number in range(1, count + 1):
            own = directory / f"server{number}"
            own.mkdir()
            server = Server(number, own, wires, neighbours)
            await server.start()
            made.append(server)
        if clustered:
            await made[0].bootstrap()
            for number, server in enumerate(made[1:], start=2):
                await server.join(made[0], f"node{number}")
        yield made
    finally:
        for server in made:
            if server.address in neighbours:
                await server.stop()
