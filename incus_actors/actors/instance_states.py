"""What the instances of this member are doing right now, told to any member that lists instances.

Owns the reading of states for lists; asked over the network by the instance service of every member. Read-only, and
never behind a long piece of work: it has a mailbox of its own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from incus_actors.actors.actor import Actor, Later
from incus_actors.actors.host import Host
from incus_actors.actors.messages import remote_message
from incus_actors.domain.members import rfc3339
from incus_actors.drivers.base import NetworkInterface, RunState, RunStatus
from incus_actors.errors import ApiError
from incus_actors.model.instances import ZERO_TIME, InstanceCpu, InstanceMemory, InstanceState
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.instances import InstanceRecord

_log = logging.getLogger(__name__)

TOGETHER = 16  #: states that are read side by side


@remote_message("instances.collect")
class CollectStates(msgspec.Struct, frozen=True, array_like=True):
    """Which instances (row ids), and whether with memory, network and so on. Answer: dict of id → as below.

    Short: `[status code]`; full: `[status code, state as JSON]`. An instance that isn't ours is left out.
    """

    ids: list[int]
    full: bool = False


class InstanceStatesActor(Actor):
    """Every question is answered beside the mailbox."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def receive(self, message: object) -> object:
        """Answer CollectStates."""
        if isinstance(message, CollectStates):
            return Later(self._collect(message))
        return self.unhandled(message)

    async def _collect(self, message: CollectStates) -> dict[str, list[Any]]:
        wanted = frozenset(message.ids)
        with self._host.database().snapshot() as snapshot:
            own = queries.all_of(snapshot, node_id=self._host.member_id())
        records = [record for record in own if record.id in wanted]
        if not message.full:
            return {str(record.id): [shown_status(self._host, record).code] for record in records}
        limit = asyncio.Semaphore(TOGETHER)

        async def one(record: InstanceRecord) -> tuple[str, list[Any]]:
            async with limit:
                state = await read_state(self._host, record)
            return str(record.id), [state.status_code, msgspec.to_builtins(state)]

        return dict(await asyncio.gather(*(one(record) for record in records)))


def shown_status(host: Host, record: InstanceRecord) -> RunStatus:
    """Return the status that users see: an instance that is half removed is an error, not a stopped one."""
    if record.phase == "deleting":
        return RunStatus.ERROR
    if record.phase:
        return RunStatus.STOPPED
    return host.driver.status(host.status_spec(record))


async def read_state(host: Host, record: InstanceRecord) -> InstanceState:
    """Return the whole state of an instance of this member; one that can't be read has status Error."""
    status = shown_status(host, record)
    if status is RunStatus.STOPPED or record.phase:
        return InstanceState(status=str(status), status_code=status.code)
    try:
        return shown_state(await host.driver.state(host.status_spec(record)))
    except (ApiError, OSError) as error:
        _log.warning("the state of %s can't be read: %s", record.name, error)
        return InstanceState(status=str(RunStatus.ERROR), status_code=RunStatus.ERROR.code)


def shown_state(state: RunState) -> InstanceState:
    """Return a driver's state as the API shows it (B.6, B.7)."""
    started = rfc3339(int(state.started_at * 1e9)) if state.started_at else ZERO_TIME
    return InstanceState(
        status=str(state.status),
        status_code=state.status.code,
        disk={name: {"usage": usage, "total": 0} for name, usage in state.disk_usage_bytes.items()},
        memory=InstanceMemory(
            usage=max(0, state.memory_usage_bytes),
            usage_peak=max(0, state.memory_peak_bytes),
            total=max(0, state.memory_total_bytes),
            swap_usage=max(0, state.swap_usage_bytes),
            swap_usage_peak=max(0, state.swap_peak_bytes),
        ),
        network=None if state.network is None else {n: _interface(i) for n, i in sorted(state.network.items())},
        pid=state.init_pid,
        processes=state.processes,
        cpu=InstanceCpu(usage=state.cpu_ns, allocated_time=max(0, state.cpu_allocated_ns)),
        started_at=started,
    )


def _interface(interface: NetworkInterface) -> dict[str, Any]:
    return {
        "addresses": [
            {"family": a.family, "address": a.address, "netmask": a.netmask, "scope": a.scope}
            for a in interface.addresses
        ],
        "counters": dict(interface.counters),
        "hwaddr": interface.hwaddr,
        "host_name": interface.host_name,
        "mtu": interface.mtu,
        "state": interface.state,
        "type": interface.type,
    }
