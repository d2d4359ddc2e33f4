"""The instances of this member: one InstanceActor each, found again after a restart.

Owns which InstanceActors exist, what is done at the start of the daemon (adopt what runs, repair what a crash
interrupted, start what should run) and the clean stop of all with the daemon. Asked by the instance service. It must
never start or repair anything on a state that may be old: that waits for a read barrier.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from incus_actors.actors.actor import Actor, ChildSpec, Later
from incus_actors.actors.host import Host
from incus_actors.actors.instance import InstanceActor
from incus_actors.actors.instance_messages import (
    FOLLOW_S,
    FollowProfile,
    Freeze,
    ProfilesChanged,
    Repair,
    Restart,
    Start,
    Stop,
)
from incus_actors.actors.messages import remote_message
from incus_actors.actors.ref import ActorDeadError, ActorRef
from incus_actors.domain import transactions_instances as transactions
from incus_actors.domain.instance_config import is_false, is_true
from incus_actors.drivers.base import RunStatus
from incus_actors.errors import ApiError, BadRequestError, NotFoundError
from incus_actors.state.queries import cluster
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.instances import InstanceRecord

_log = logging.getLogger(__name__)

BARRIER_S = 5.0
START_S = 120.0
REAP_AGAIN_S = 15.0  #: longer than a proposal lives
CHANGE_S = 700.0
STOP_DEFAULT_S = 30  #: boot.host_shutdown_timeout


@dataclass(frozen=True, slots=True)
class ActorFor:
    """Answer: the ActorRef of the instance with this id, started if need be. NotFoundError if it isn't ours."""

    instance_id: int


@dataclass(frozen=True, slots=True)
class StopAll:
    """The daemon shuts the machine's instances down: stop all, remember what ran. Answer: None, when all is done."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Reap:
    """Nobody knows whether the rows of a new instance were committed: if they were, remove it again.

    `uuid` is its volatile.uuid.
    """

    uuid: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Look again at what belongs to this member (after a join has replaced the database)."""


@remote_message("instances.change_all")
class ChangeAll(msgspec.Struct, frozen=True, array_like=True):
    """Do one thing to all instances of this member in these projects for which it makes sense.

    Answer: a list of failures, "name: text".
    """

    projects: list[str]
    action: str
    timeout_s: int = -1
    force: bool = False


class InstancesSupervisor(Actor):
    """Children are named by row id; one that crashes is started anew alone."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Adopt what runs, on whatever state is here; the rest follows when the state is certain."""
        await self._adopt()
        self._unsubscribe = self._host.consensus().subscribe_applied(self._applied)
        self.context.run(self._converge(), name="instances: repair and autostart")

    async def stopped(self, reason: str) -> None:
        """Stop listening."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "profiles" in topics:
            for name in self.context.children():
                child = self.context.child(name)
                if child is not None:
                    child.tell(ProfilesChanged())

    async def receive(self, message: object) -> object:
        """Give references; stop everything."""
        match message:
            case ActorFor(instance_id):
                return await self._actor_for(instance_id)
            case StopAll():
                return Later(self._stop_all(message))
            case Reap(uuid):
                self.context.run(self._reap(uuid), name="instances: reap")
                return None
            case ChangeAll():
                return Later(self._change_all(message))
            case FollowProfile():
                return Later(self._follow_profile(message))
            case Adopt():
                await self._adopt()
                return None
            case _:
                return self.unhandled(message)

    async def _actor_for(self, instance_id: int) -> ActorRef:
        name = str(instance_id)
        found = self.context.child(name)
        if found is not None:
            return found
        self._host.record(instance_id)
        spec = ChildSpec(
            name, lambda: InstanceActor(self._host, instance_id), restart="transient", max_restarts=20, within_s=60
        )
        return await self.context.spawn_child(spec)

    # --- at the start of the daemon -------------------------------------------------------------------------

    def _own_records(self) -> list[InstanceRecord]:
        with self._host.database().snapshot() as snapshot:
            return queries.all_of(snapshot, node_id=self._host.member_id())

    async def _adopt(self) -> None:
        """Start an actor for each instance, which watches it if it runs."""
        records = self._own_records()
        specs = [self._host.status_spec(record) for record in records if not record.phase]
        running = await self._host.driver.recover(specs)
        if running:
            _log.info("found running: %s", ", ".join(sorted(spec.disk_name for spec in running)))
        for record in records:
            try:
                await self._actor_for(record.id)
            except NotFoundError:
                continue

    async def _converge(self) -> None:
        """Once the state is certain: finish what was interrupted, then start what should run."""
        await self._host.certain()
        records = self._own_records()
        await asyncio.gather(*(self._repair(record) for record in records if record.phase))
        fine = [record for record in records if not record.phase]
        fine.sort(key=lambda r: (-_number(r.expanded_config.get("boot.autostart.priority")), r.name))
        evacuated = cluster.member_state(self._host.database(), self._host.member_id()) == 2
        for record in fine:
            if self._host.driver.status(self._host.status_spec(record)) is not RunStatus.STOPPED:
                await self._note_power(record, "RUNNING")
                (await self._ref(record)).tell(ProfilesChanged())  # they may have been changed while we were away
            elif _should_run(record) and not evacuated:
                await self._autostart(record)
            elif not evacuated:
                await self._note_power(record, "STOPPED")

    async def _reap(self, uuid: str) -> None:
        """Look when there is a quorum again, and once more when no proposal can be on its way any longer."""
        for _ in range(2):
            await self._host.certain()
            for record in self._own_records():
                if record.phase == "creating" and record.config.get("volatile.uuid") == uuid:
                    await self._repair(record)
                    return
            await asyncio.sleep(REAP_AGAIN_S)

    async def _repair(self, record: InstanceRecord) -> None:
        _log.warning("instance %s was interrupted while %s: it is removed", record.name, record.phase)
        try:
            await (await self._ref(record)).ask(Repair(), deadline_s=START_S)
        except ApiError as error:
            _log.warning("instance %s is not removed yet: %s", record.name, error)

    async def _ref(self, record: InstanceRecord) -> ActorRef:
        found = self.context.child(str(record.id))
        return found if found is not None else await self._actor_for(record.id)

    async def _autostart(self, record: InstanceRecord) -> None:
        try:
            await (await self._ref(record)).ask(Start(), deadline_s=START_S)
        except ApiError as error:
            _log.warning("instance %s could not be started: %s", record.name, error)
            return
        await asyncio.sleep(_number(record.expanded_config.get("boot.autostart.delay")))

    async def _note_power(self, record: InstanceRecord, power: str) -> None:
        if record.config.get("volatile.last_state.power", "STOPPED") == power:
            return
        keys: dict[str, str | None] = {"volatile.last_state.power": power}
        try:
            await self._host.commit(transactions.set_keys(record.id, record.node_id, keys))
        except ApiError as error:
            _log.warning("instance %s: the power state is not recorded: %s", record.name, error)

    # --- all together ---------------------------------------------------------------------------------------

    async def _change_all(self, message: ChangeAll) -> list[str]:
        driver = self._host.driver
        wanted = [
            record
            for record in self._own_records()
            if record.project in message.projects
            and not record.phase
            and driver.status(self._host.status_spec(record)) in _MAKES_SENSE.get(message.action, ())
        ]
        results = await asyncio.gather(*(self._change_one(record, message) for record in wanted))
        return [result for result in results if result]

    async def _change_one(self, record: InstanceRecord, message: ChangeAll) -> str:
        try:
            change = state_message(message.action, message.timeout_s, message.force, None)
            await (await self._ref(record)).ask(change, deadline_s=CHANGE_S)
        except ApiError as error:
            return f"{record.name}: {error}"
        return ""

    async def _follow_profile(self, message: FollowProfile) -> list[list[Any]]:
        """Raises UnavailableError when it isn't certain what the profile says."""
        await self._host.consensus().read_barrier(timeout_s=BARRIER_S)
        ids = message.instance_ids
        texts = await asyncio.gather(*(self._follow_one(instance_id, message.devices) for instance_id in ids))
        return [[instance_id, text] for instance_id, text in zip(ids, texts, strict=True) if text]

    async def _follow_one(self, instance_id: int, devices: list[str]) -> str:
        try:
            ref = await self._actor_for(instance_id)
            return str(await ref.ask(ProfilesChanged(devices), deadline_s=FOLLOW_S))
        except NotFoundError:
            return ""  # it has gone, or moved: where it is now it is told of, too
        except ApiError as error:
            _log.info("instance %d follows its profiles later: %s", instance_id, error)
            return ""

    # --- at its end -----------------------------------------------------------------------------------------

    async def _stop_all(self, message: StopAll) -> None:
        """Stop instances in order of boot.stop.priority, those of one priority together."""
        records = self._own_records()
        by_priority: dict[int, list[InstanceRecord]] = {}
        for record in records:
            by_priority.setdefault(_number(record.expanded_config.get("boot.stop.priority")), []).append(record)
        for priority in sorted(by_priority, reverse=True):
            await asyncio.gather(*(self._stop_one(record, message.force) for record in by_priority[priority]))

    async def _stop_one(self, record: InstanceRecord, force: bool) -> None:
        if record.phase or self._host.driver.status(self._host.status_spec(record)) is RunStatus.STOPPED:
            return
        timeout_s = _number(record.expanded_config.get("boot.host_shutdown_timeout"), STOP_DEFAULT_S)
        force = force or record.expanded_config.get("boot.host_shutdown_action") == "force-stop"
        ref = await self._ref(record)
        try:
            if not force:
                await ref.ask(Stop(timeout_s=timeout_s, keep_power=True), deadline_s=timeout_s + 30)
                return
        except BadRequestError:
            return  # it has stopped meanwhile
        except ApiError as error:
            _log.warning("instance %s doesn't stop: %s", record.name, error)
        try:
            await ref.ask(Stop(force=True, keep_power=True), deadline_s=30)
        except (ActorDeadError, BadRequestError):
            return
        except ApiError as error:
            _log.warning("instance %s can't be killed: %s", record.name, error)


_MAKES_SENSE = {
    "start": (RunStatus.STOPPED, RunStatus.FROZEN),
    "stop": (RunStatus.RUNNING, RunStatus.FROZEN),
    "restart": (RunStatus.RUNNING, RunStatus.FROZEN),
    "freeze": (RunStatus.RUNNING,),
    "unfreeze": (RunStatus.FROZEN,),
}


def state_message(action: str, timeout_s: float, force: bool, caller: Any) -> object:
    """Return the message for an InstanceActor that a state change of the API means."""
    match action:
        case "start":
            return Start(caller)
        case "stop":
            return Stop(force, timeout_s, caller)
        case "restart":
            return Restart(force, timeout_s, caller)
        case _:
            return Freeze(action == "freeze", caller)


def _should_run(record: InstanceRecord) -> bool:
    """Whether the instance is to be started with the daemon: asked for, or it ran before."""
    wanted = record.expanded_config.get("boot.autostart")
    if is_true(wanted):
        return True
    return not is_false(wanted) and record.config.get("volatile.last_state.power") == "RUNNING"


def _number(text: str | None, default: int = 0) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        return default
