"""The networks of this member: made, changed and removed as the rows say, after every change and after every start.

Owns the network driver and one DnsmasqActor per bridge; asked by NetworkService (also of other members) and by
InstanceActors. A member that was away catches up here. Must never remove anything on a state that may be old: that
waits for a read barrier.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from incus_actors.actors.actor import Actor, ChildSpec, Later
from incus_actors.actors.dnsmasq import DnsmasqActor
from incus_actors.actors.host import Host
from incus_actors.actors.network_messages import ApplyNetwork, CollectLeases, Converge, NicsReady, Serve
from incus_actors.actors.network_specs import network_spec, nics_on
from incus_actors.domain import transactions_networks as transactions
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.bridge import NetworkDriver, NetworkSpec
from incus_actors.errors import ApiError, ConflictError, MemberError, UnavailableError
from incus_actors.model.transaction import Transaction
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.instances import InstanceRecord
from incus_actors.state.queries.networks import NetworkRow, NetworkState

_log = logging.getLogger(__name__)

BARRIER_S: Final = 5.0
AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 30.0
SERVE_S: Final = 30.0

#: Tells what can't be done here ("" network: nothing is wrong any more); the daemon makes warnings of it.
Report = Callable[[dict[str, str]], Coroutine[Any, Any, None]]

_TOPICS = frozenset({"networks", "instances", "profiles", "projects"})


class NetworkActor(Actor):
    """One piece of work at a time, beside the mailbox, so that questions are answered meanwhile."""

    def __init__(self, host: Host, driver: NetworkDriver, report: Report) -> None:
        self._host = host
        self._driver = driver
        self._report = report
        self._working = asyncio.Lock()
        self._wake = asyncio.Event()
        self._certain = False  #: a read barrier has been passed: what has no row may be removed
        self._done: dict[str, NetworkSpec] = {}  #: as made since this actor began
        self._problems: dict[str, str] = {}
        self._unserved: set[str] = set()  #: networks whose dnsmasq ended and could not be started again
        self._reported: dict[str, str] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Look at what is here; the work begins beside the mailbox."""
        self._unsubscribe = self._host.consensus().subscribe_applied(self._applied)
        self._wake.set()
        self.context.run(self._follow(), name="networks: follow the rows")
        self.context.run(self._become_certain(), name="networks: read barrier")

    async def stopped(self, reason: str) -> None:
        """Follow no more; networks go on."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._driver.close()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if topics & _TOPICS:
            self._wake.set()

    async def receive(self, message: object) -> object:
        """Answer; work is done beside the mailbox."""
        match message:
            case Converge():
                return Later(self._converge_now())
            case ApplyNetwork(name):
                return Later(self._apply(name))
            case NicsReady(record):
                return Later(self._nics_ready(record))
            case CollectLeases(name):
                return [[lease.address, lease.hwaddr, lease.hostname] for lease in self._driver.leases(name)]
            case _:
                return self.unhandled(message)

    # -- following the rows -------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        again_s = AGAIN_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                async with self._working:
                    await self._converge()
            except (ApiError, OSError, sqlite3.OperationalError) as error:  # no quorum, or a database just exchanged
                _log.info("networks are looked at again: %s", error)
                complete = False
            else:
                complete = not self._problems
            await self._tell_problems()
            if complete:
                again_s = AGAIN_S
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), again_s)
            except TimeoutError:
                self._wake.set()
            again_s = min(AGAIN_MAX_S, again_s * 2)

    async def _become_certain(self) -> None:
        await self._host.certain()
        self._certain = True
        self._wake.set()

    async def _converge_now(self) -> None:
        await self._host.consensus().read_barrier(timeout_s=BARRIER_S)
        self._certain = True
        async with self._working:
            await self._converge()
        self._wake.set()  # whoever follows the rows tells of problems, and tries again
        if self._problems:
            name, text = sorted(self._problems.items())[0]
            raise MemberError(f'Network "{name}": {text}')

    def _rows(self) -> list[NetworkRow]:
        return queries.networks(self._host.database())

    def _instances(self) -> list[InstanceRecord]:
        with self._host.database().snapshot() as snapshot:
            return instance_queries.all_of(snapshot, node_id=self._host.member_id())

    def _spec(self, row: NetworkRow, instances: list[InstanceRecord]) -> NetworkSpec:
        cluster_id = self._host.consensus().status().cluster_id
        return network_spec(row, self._host.member_id(), instances, cluster_id)

    async def _converge(self) -> None:
        """Raises UnavailableError when a result can't be written down; the rest is noted as a problem."""
        rows = self._rows()
        own = self._host.member_id()
        instances = self._instances() if rows else []
        wanted = set()
        for row in rows:
            match row.members.get(own):
                case NetworkState.CREATED:
                    wanted.add(row.name)
                    await self._keep(self._spec(row, instances))
                case NetworkState.CREATING:
                    wanted.add(row.name)
                    await self._make(row, self._spec(row, instances))
                case NetworkState.DELETING:
                    await self._unmake(row, NetworkState.DELETING, transactions.removed(row.id, own))
                case NetworkState.UNDOING:
                    await self._unmake(row, NetworkState.UNDOING, transactions.undone(row.id, own))
                case NetworkState.ERRORED:
                    wanted.add(row.name)  # what it left is removed by the next try, or by the deletion
                case NetworkState.PENDING:
                    await self._prepare()
                case _:
                    continue
        await self._forget(wanted)

    async def _forget(self, wanted: set[str]) -> None:
        for name in [name for name in self._problems if name not in wanted]:
            del self._problems[name]
        if not self._certain:
            return
        for name in sorted(await self._driver.made() - wanted):
            _log.info("network %s is no more: it is removed from this machine", name)
            try:
                await self._remove(name)
            except (DriverError, OSError) as error:
                self._problems[name] = str(error)

    async def _prepare(self) -> None:
        """A pending definition means work soon: the helper takes a while to load."""
        if self._driver.availability().available:
            await self._driver.helper.warm_up()

    # -- one network --------------------------------------------------------------------------------------------------

    async def _keep(self, spec: NetworkSpec) -> None:
        """Have what is created stay so; a failure is a problem until it is over."""
        try:
            await self._ensure(spec)
        except (ApiError, OSError) as error:
            if self._problems.get(spec.name) != str(error):
                _log.error("network %s: %s", spec.name, error)
            self._problems[spec.name] = str(error)

    async def _ensure(self, spec: NetworkSpec) -> None:
        """Raises ApiError, OSError."""
        if self._done.get(spec.name) == spec and spec.name not in self._problems:
            return
        old = self._done.pop(spec.name, None)
        problems: list[str] = []
        if old is None or spec.name in self._problems or replace(old, hosts=spec.hosts) != spec:
            problems = await self._driver.ensure(spec)
        self._done[spec.name] = spec
        try:
            await self._serve(spec)
        except BaseException:
            self._done.pop(spec.name, None)
            raise
        if problems:
            self._problems[spec.name] = "; ".join(problems)
        else:
            self._problems.pop(spec.name, None)

    async def _serve(self, spec: NetworkSpec) -> None:
        if spec.type != "bridge":
            return
        child = self.context.child(spec.name)
        if child is None:
            name = spec.name
            child = await self.context.spawn_child(
                ChildSpec(
                    name,
                    lambda: DnsmasqActor(
                        self._driver, name, lambda: self._done.get(name), lambda text: self._trouble(name, text)
                    ),
                    max_restarts=20,
                    within_s=60,
                )
            )
        await child.ask(Serve(spec), deadline_s=SERVE_S)

    def _trouble(self, name: str, text: str) -> None:
        """A DnsmasqActor tells what is wrong, or ("") that nothing is."""
        if text:
            self._problems[name] = text
            self._unserved.add(name)
            self._wake.set()
        elif name in self._unserved:
            self._unserved.discard(name)
            self._wake.set()

    async def _make(self, row: NetworkRow, spec: NetworkSpec) -> None:
        own = self._host.member_id()
        self._done.pop(spec.name, None)
        try:
            await self._ensure(spec)
        except (ApiError, OSError) as error:
            _log.error("network %s can't be made: %s", row.name, error)
            await self._remove_carefully(row.name)
            await self._commit(transactions.failed(row.id, row.name, own, NetworkState.CREATING, str(error)))
            return
        await self._commit(transactions.made(row.id, own))

    async def _unmake(self, row: NetworkRow, state: NetworkState, after: Transaction) -> None:
        try:
            await self._remove(row.name)
        except (ApiError, OSError) as error:
            _log.error("network %s can't be removed: %s", row.name, error)
            own = self._host.member_id()
            await self._commit(transactions.failed(row.id, row.name, own, state, str(error)))
            return
        await self._commit(after)

    async def _remove(self, name: str) -> None:
        self._done.pop(name, None)
        self._problems.pop(name, None)
        await self.context.stop_child(name)
        await self._driver.remove(name)

    async def _remove_carefully(self, name: str) -> None:
        try:
            await self._remove(name)
        except (DriverError, OSError) as error:
            _log.warning("what is left of network %s can't be removed: %s", name, error)

    async def _commit(self, transaction: Transaction) -> None:
        try:
            await self._host.commit(transaction)
        except ConflictError as conflict:
            _log.info("a network was changed meanwhile: %s", conflict)
            self._wake.set()

    # -- asked --------------------------------------------------------------------------------------------------------

    async def _apply(self, name: str) -> None:
        await self._host.consensus().read_barrier(timeout_s=BARRIER_S)
        async with self._working:
            row = queries.network(self._host.database(), name)
            if row is None or row.members.get(self._host.member_id()) is not NetworkState.CREATED:
                return
            await self._ensure_or_driver_error(self._spec(row, self._instances()))
        self._wake_to_tell()

    async def _ensure_or_driver_error(self, spec: NetworkSpec) -> None:
        try:
            await self._ensure(spec)
        except OSError as error:
            raise DriverError(f"Network: {error}") from error

    async def _nics_ready(self, record: InstanceRecord) -> None:
        named = {d.get("network") or d.get("parent", "") for d in record.expanded_devices.values()}
        rows = [row for row in self._rows() if row.name in named]
        if not rows:
            return
        async with self._working:
            instances = [*(other for other in self._instances() if other.id != record.id), record]
            for row in rows:
                if not nics_on(row.name, record) and row.type == "bridge":
                    continue
                if row.members.get(self._host.member_id()) is not NetworkState.CREATED:
                    raise DriverError(f'Network "{row.name}" unavailable on this server')
                await self._ensure_or_driver_error(self._spec(row, instances))
        self._wake_to_tell()

    def _wake_to_tell(self) -> None:
        """What was asked of us may have ended a problem."""
        if self._problems != self._reported:
            self._wake.set()

    async def _tell_problems(self) -> None:
        """Only on a certain state: whether there is a warning to resolve is read from it."""
        told = dict(self._problems)  # they may be others when the answer comes
        if told == self._reported or not self._certain:
            return
        try:
            await self._report(told)
        except UnavailableError as error:
            _log.info("warnings about networks wait for a quorum: %s", error)
            self._wake.set()
        else:
            self._reported = told
            self._wake_to_tell()
