"""What an InstanceActor does for its instance's nics: volatile keys, working networks, no conflicts, host names.

Owns no state; called by actors/instance.py before a start, before nics are plugged in, and after either.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from incus_actors.actors.host import CommitConflictError, Host
from incus_actors.actors.network_messages import NETWORKS_PATH, CollectLeases, NicsReady
from incus_actors.actors.system import ActorSystem
from incus_actors.domain import nic_conflicts, nic_filters
from incus_actors.domain import transactions_instances as transactions
from incus_actors.domain.nics import (
    Devices,
    NetworkFacts,
    Seen,
    check_nic,
    missing_volatile,
    running_volatile,
    stale_volatile,
    unneeded_volatile,
)
from incus_actors.domain.transactions_instances import InstanceChange
from incus_actors.drivers.base import DriverError, NetworkInterface
from incus_actors.errors import ApiError, BadRequestError, ConflictError, UnavailableError
from incus_actors.model.transaction import Guard, Transaction
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries import networks as network_queries
from incus_actors.state.queries.instances import InstanceRecord
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

READY_S: Final = 60.0
BARRIER_S: Final = 5.0
ATTEMPTS: Final = 3


def _nics(record: InstanceRecord) -> dict[str, dict[str, str]]:
    return {name: device for name, device in record.expanded_devices.items() if device.get("type") == "nic"}


async def with_volatile(host: Host, system: ActorSystem, record: InstanceRecord) -> InstanceRecord:
    """Give the nics of an instance the MAC addresses, names and filtered addresses that they lack; return the instance as
    it is then.

    Raises ApiError.
    """
    networks = host.networks(record.project)
    keys = missing_volatile(record.expanded_devices, record.expanded_config, networks, random.SystemRandom())
    keys |= await _chosen(host, system, record, record.expanded_devices, record.expanded_config)
    if not keys:
        return record
    await host.commit(transactions.set_keys(record.id, record.node_id, {**keys}))
    return host.record(record.id)


async def with_volatile_change(
    host: Host,
    system: ActorSystem,
    before: InstanceRecord,
    change: InstanceChange,
    whole: tuple[Mapping[str, str], Devices],
) -> tuple[InstanceChange, dict[str, str]]:
    """Return a change of an instance with the volatile keys that its nics will need, without those of devices that go,
    and the keys that were added. `whole`: config and devices of the instance as it will be, with its profiles."""
    config, devices = whole
    keys = missing_volatile(devices, config, host.networks(before.project), random.SystemRandom())
    keys |= await _chosen(host, system, before, devices, config)
    stale = stale_volatile(change.config, before.expanded_devices, devices)
    kept = {key: value for key, value in change.config.items() if key not in stale}
    return replace(change, config={**kept, **keys}), keys


async def _chosen(
    host: Host, system: ActorSystem, record: InstanceRecord, devices: Devices, config: Mapping[str, str]
) -> dict[str, str]:
    """Return the volatile keys of the addresses for filtered nics that lack one: free in the rows of this member, and not
    leased to anybody."""
    networks = host.networks(record.project)
    lacking = nic_filters.lacking(devices, config, networks)
    if not lacking:
        return {}
    keys: dict[str, str] = {}
    others = [one for one in queries.all_of(host.database(), node_id=host.member_id()) if one.id != record.id]
    taken = {
        nic_filters.filled(name, nic, networks, one.expanded_config).get("ipv4.address", "")
        for one in others
        for name, nic in _nics(one).items()
    }
    taken |= {nic.get("ipv4.address", "") for nic in devices.values()}
    for name, bridge in lacking.items():
        hwaddr = devices[name].get("hwaddr") or config.get(f"volatile.{name}.hwaddr", "")
        leases = await leases_here(system, bridge.name)
        elsewhere = {address for address, station, _ in leases if station != hwaddr}
        address = nic_filters.choose(bridge, taken | elsewhere)
        if address:
            keys[nic_filters.chosen_key(name)] = address
            taken.add(address)
    return keys


async def leases_here(system: ActorSystem, network: str) -> list[tuple[str, str, str]]:
    """Return (address, MAC address, host name) of what DHCP of this member has given out. Raises ApiError."""
    found = await system.ref(NETWORKS_PATH).ask(CollectLeases(network), deadline_s=READY_S)
    return [(str(address), str(hwaddr), str(name)) for address, hwaddr, name in found]


async def check_start(host: Host, record: InstanceRecord) -> None:
    """Raise BadRequestError if a nic of an instance gets in the way of another, or its network has changed so that it can't
    be given any more."""
    networks, project = host.networks(record.project), host.networks_project(record.project)
    for name, nic in _nics(record).items():
        try:
            check_nic(name, nic, networks, project=project)
        except BadRequestError as error:
            raise BadRequestError(f'Failed start validation for device "{name}": {error}') from None
    await _check_conflicts(host, record, dict.fromkeys(_nics(record), "start"))


async def check_change(host: Host, before: InstanceRecord, after: InstanceRecord) -> tuple[Guard, ...]:
    """Return what must still hold when the change is written down. Raises BadRequestError if a new or changed nic of
    an instance gets in the way of another."""
    old = _nics(before)
    changed = {name for name, nic in _nics(after).items() if nic != old.get(name)}
    return await _check_conflicts(host, after, {name: "update" if name in old else "add" for name in changed})


async def commit_change(
    host: Host,
    change: tuple[InstanceRecord, InstanceRecord],
    free: tuple[Guard, ...],
    transaction: Callable[[tuple[Guard, ...]], Transaction],
) -> None:
    """Write a change from one record to another down while the addresses are still `free`; when somebody was given one
    meanwhile, look again. Raises ApiError."""
    for _ in range(ATTEMPTS):
        try:
            await host.commit(transaction(free))
        except CommitConflictError as conflict:
            if conflict.label != transactions.ADDRESSES_TAKEN:
                raise
            free = await check_change(host, *change)
        else:
            return
    raise ConflictError("The addresses of instances were changed by others at the same time, try again")


async def _check_conflicts(host: Host, record: InstanceRecord, stages: Mapping[str, str]) -> tuple[Guard, ...]:
    if not stages:
        return ()
    wanted = nic_conflicts.static_addresses({name: record.expanded_devices[name] for name in stages})
    if wanted:  # what any member has answered counts; without a quorum, what is known here
        try:
            await host.consensus().read_barrier(timeout_s=BARRIER_S)
        except UnavailableError as error:
            _log.info("instance %s: addresses given out elsewhere may be unknown: %s", record.name, error)
    with host.database().snapshot() as snapshot:
        used = queries.static_addresses(snapshot) if wanted else []
        having = {instance_id for instance_id, address in used if nic_conflicts.canonical(address) in wanted}
        found = [queries.by_id(snapshot, instance_id) for instance_id in sorted(having - {record.id})]
        rows = network_queries.networks(snapshot)
        spellings = sorted({*wanted, *(address for _, address in used if nic_conflicts.canonical(address) in wanted)})
        guards = _unchanged(snapshot, spellings)
    here = [other for other in found if other is not None and other.node_id == record.node_id]
    others = [other.expanded_devices for other in here if other.phase != "deleting"]
    networks = {row.name: NetworkFacts(row.name, row.type, row.config_on(host.member_id())) for row in rows}
    nic_conflicts.check_conflicts(record.name, record.expanded_devices, stages, others, networks)
    return guards


def _unchanged(db: Reader, addresses: Sequence[str]) -> tuple[Guard, ...]:
    if not addresses:
        return ()
    holders = db.query(transactions.holders_sql(len(addresses)), (*addresses, *addresses))
    return (transactions.holders_guard(addresses, tuple(tuple(row) for row in holders)),)


async def networks_ready(host: Host, system: ActorSystem, record: InstanceRecord) -> None:
    """Return once the managed networks of an instance work here and DHCP knows its nics. Raises DriverError."""
    managed = host.networks(record.project)
    if not any((nic.get("network") or nic.get("parent")) in managed for nic in _nics(record).values()):
        return
    try:
        await system.ref(NETWORKS_PATH).ask(NicsReady(record), deadline_s=READY_S)
    except ApiError as error:
        raise DriverError(f"Failed start validation for device: {error}") from error


def running_keys(
    host: Host, record: InstanceRecord, interfaces: Mapping[str, NetworkInterface] | None
) -> dict[str, str | None]:
    """Return the volatile keys of an instance's nics that change with these interfaces inside (None: it doesn't run),
    and those that no nic needs any more (None: remove)."""
    networks, rng = host.networks(record.project), random.SystemRandom()
    keys: dict[str, str | None] = dict.fromkeys(unneeded_volatile(record.config, record.expanded_devices))
    for name, nic in _nics(record).items():
        inside = nic.get("name") or record.expanded_config.get(f"volatile.{name}.name", "") or name
        interface = (interfaces or {}).get(inside)
        seen = None if interface is None else Seen(interface.host_name, interface.hwaddr, interface.mtu)
        keys |= running_volatile(name, nic, networks, record.config, seen, rng)
    return keys
