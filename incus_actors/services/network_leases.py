"""Addresses on networks and who has them: leases of every member, allocations (CONTRACT 14).

Owns how rows and what DHCP has given out become one list; called by rest/network_routes.py. Read-only; a member that
does not answer is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from incus_actors.actors.network_messages import NETWORKS_PATH, CollectLeases
from incus_actors.actors.network_specs import nics_on
from incus_actors.actors.system import ActorSystem
from incus_actors.domain.networks import slaac_address
from incus_actors.errors import ApiError, MemberError
from incus_actors.identity import Identity
from incus_actors.model.config_values import is_true
from incus_actors.model.network_keys import dhcp_enabled
from incus_actors.model.network_values import address_of, subnet_of
from incus_actors.model.resources import NetworkAllocation, NetworkLease
from incus_actors.services.networks import NetworkService
from incus_actors.services.urls import url_of
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.instances import InstanceRecord
from incus_actors.state.queries.networks import NetworkRow
from incus_actors.state.queries.projects import DEFAULT_PROJECT
from incus_actors.state.queries.storage import member_names
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

LEASES_S: Final = 2.0  #: so long every member has to tell its leases


class NetworkLeases:
    """`online` tells whether a member was heard of lately."""

    def __init__(
        self,
        *,
        database: Reader,
        identity: Identity,
        actors: ActorSystem,
        networks: NetworkService,
        online: Callable[[int], bool],
    ) -> None:
        self._database = database
        self._identity = identity
        self._actors = actors
        self._networks = networks
        self._online = online

    async def leases(self, project: str, name: str) -> list[NetworkLease]:
        """Return gateways, static leases and what DHCP has given out, of every member that answers.

        Raises NotFoundError; MemberError (500) for networks that have no DHCP.
        """
        row = self._networks.row(project, name)
        if row.type != "bridge":
            raise MemberError("Not implemented")
        found = []
        for version in (4, 6):
            address = address_of(row.config.get(f"ipv{version}.address"))
            if address is not None and project == row.project:
                found.append(NetworkLease(hostname=f"{name}.gw", address=str(address), type="gateway"))
        records = instance_queries.all_of(self._database)
        own = [record for record in records if record.project == project]
        stations = {hwaddr: record for record in records for _, _, hwaddr in nics_on(name, record)}
        found += _static_leases(name, own)
        taken = {lease.address for lease in found}
        dynamic = [*_slaac_leases(row, own), *await self._given_out(row, project, stations)]
        for lease in sorted(dynamic, key=lambda lease: (lease.location, lease.hostname, lease.address)):
            if lease.address not in taken:
                found.append(lease)
        return found

    async def _given_out(
        self, row: NetworkRow, project: str, stations: Mapping[str, InstanceRecord]
    ) -> list[NetworkLease]:
        names = member_names(self._database)
        members = [id_ for id_ in row.members if id_ == self._identity.member_id or self._online(id_)]
        answers = await asyncio.gather(*(self._ask_leases(id_, row.name) for id_ in members))
        found = []
        for member_id, answer in zip(members, answers, strict=True):
            for address, hwaddr, hostname in answer:
                record = stations.get(hwaddr)
                if project != (record.project if record is not None else DEFAULT_PROJECT):
                    continue
                found.append(
                    NetworkLease(
                        hostname=hostname or (record.name if record is not None else ""),
                        hwaddr=hwaddr,
                        address=address,
                        type="dynamic",
                        location=names.get(member_id, ""),
                    )
                )
        return found

    async def _ask_leases(self, member_id: int, name: str) -> list[list[str]]:
        try:
            ref = self._actors.ref(NETWORKS_PATH, member_id)
            return list(await ref.ask(CollectLeases(name), deadline_s=LEASES_S))
        except ApiError as error:
            _log.info("member %d doesn't tell the leases of network %s: %s", member_id, name, error)
            return []

    async def allocations(self, project: str | None) -> list[NetworkAllocation]:
        """Return the addresses of networks and instances of a project, or of all (None). Raises NotFoundError."""
        owner = None if project is None else self._networks.owner(project)
        found = []
        for row in queries.networks(self._database, owner.id if owner else None):
            for version in (4, 6):
                value = row.config.get(f"ipv{version}.address")
                if subnet_of(value) is not None:
                    found.append(
                        NetworkAllocation(
                            addresses=str(value),
                            used_by=url_of("networks", row.name, project=row.project),
                            type="network",
                            nat=is_true(row.config.get(f"ipv{version}.nat")),
                        )
                    )
            if row.type == "bridge":
                found += await self._allocated(row, project)
        return found

    async def _allocated(self, row: NetworkRow, project: str | None) -> list[NetworkAllocation]:
        records = instance_queries.all_of(self._database, projects=None if project is None else [project])
        by_station = {hwaddr: record for record in records for _, _, hwaddr in nics_on(row.name, record)}
        found = []
        for owner in sorted({record.project for record in by_station.values()}):
            for lease in await self.leases(owner, row.name):
                record = by_station.get(lease.hwaddr)
                if lease.type == "gateway" or record is None or record.project != owner:
                    continue
                version = 6 if ":" in lease.address else 4
                found.append(
                    NetworkAllocation(
                        addresses=f"{lease.address}/{128 if version == 6 else 32}",
                        used_by=url_of("instances", record.name, project=record.project),
                        type="instance",
                        nat=is_true(row.config.get(f"ipv{version}.nat")),
                        hwaddr=lease.hwaddr,
                    )
                )
        return found


def _static_leases(network: str, records: list[InstanceRecord]) -> list[NetworkLease]:
    return [
        NetworkLease(hostname=record.name, hwaddr=hwaddr, address=options[key], type="static", location=record.location)
        for record in records
        for _, options, hwaddr in nics_on(network, record)
        for key in ("ipv4.address", "ipv6.address")
        if options.get(key, "none") not in ("", "none")
    ]


def _slaac_leases(row: NetworkRow, records: list[InstanceRecord]) -> list[NetworkLease]:
    """The addresses that instances give themselves from the prefix that the bridge announces."""
    subnet = subnet_of(row.config.get("ipv6.address"))
    if subnet is None or subnet.prefixlen != 64 or not dhcp_enabled(row.config, 6):
        return []
    if is_true(row.config.get("ipv6.dhcp.stateful")):
        return []
    return [
        NetworkLease(
            hostname=record.name,
            hwaddr=hwaddr,
            address=slaac_address(subnet, hwaddr),
            type="dynamic",
            location=record.location,
        )
        for record in records
        for _, _, hwaddr in nics_on(row.name, record)
    ]
