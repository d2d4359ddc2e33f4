"""Profiles, projects, storage pools, networks, certificates and warnings as the REST API shows and takes them.

Owns the shapes (CONTRACT 7.2, 12–15), fields in Incus' order; used by services and rest. Must hold no behaviour.
A `None` in what is taken means "not given": PUT makes it empty, PATCH leaves the old value.
"""

from __future__ import annotations

import msgspec

Config = dict[str, str]
Devices = dict[str, dict[str, str]]


class NamePost(msgspec.Struct, kw_only=True):
    """POST on an object: rename it."""

    name: str = ""


# -- profiles -----------------------------------------------------------------------------------------------------


class ProfilePut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a profile."""

    config: Config | None = None
    description: str | None = None
    devices: Devices | None = None


class ProfilesPost(ProfilePut, kw_only=True):
    """POST /1.0/profiles."""

    name: str = ""


class Profile(msgspec.Struct, kw_only=True):
    """One profile; `used_by` are URLs of instances."""

    config: Config
    description: str
    devices: Devices
    name: str
    used_by: list[str]
    project: str


# -- projects -----------------------------------------------------------------------------------------------------


class ProjectPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a project."""

    config: Config | None = None
    description: str | None = None


class ProjectsPost(ProjectPut, kw_only=True):
    """POST /1.0/projects."""

    name: str = ""


class Project(msgspec.Struct, kw_only=True):
    """One project; `used_by` are URLs of everything in it."""

    config: Config
    description: str
    name: str
    used_by: list[str]


class ProjectUsage(msgspec.Struct, kw_only=True):
    """Limit (-1: none) and usage of one resource; the capital letters are Incus'."""

    limit: int = msgspec.field(default=-1, name="Limit")
    usage: int = msgspec.field(default=0, name="Usage")


class ProjectState(msgspec.Struct, kw_only=True):
    """GET /1.0/projects/<name>/state."""

    resources: dict[str, ProjectUsage]


# -- storage ------------------------------------------------------------------------------------------------------


class PoolPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a pool."""

    config: Config | None = None
    description: str | None = None


class PoolsPost(PoolPut, kw_only=True):
    """POST /1.0/storage-pools."""

    name: str = ""
    driver: str = ""


class Pool(msgspec.Struct, kw_only=True):
    """One pool. In a cluster `config` has member-specific keys only in the view of one member."""

    config: Config
    description: str
    name: str
    driver: str
    used_by: list[str]
    status: str
    locations: list[str]


class Amount(msgspec.Struct, kw_only=True):
    """Bytes or inodes."""

    used: int = 0
    total: int = 0


class PoolResources(msgspec.Struct, kw_only=True):
    """GET /1.0/storage-pools/<name>/resources."""

    space: Amount
    inodes: Amount


# -- networks -----------------------------------------------------------------------------------------------------


class Network(msgspec.Struct, kw_only=True):
    """One network. Interfaces of the host are listed with `managed` false, no status and null locations."""

    config: Config
    description: str
    name: str
    type: str
    used_by: list[str]
    managed: bool
    status: str
    locations: list[str] | None
    project: str


class NetworkPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a network."""

    config: Config | None = None
    description: str | None = None


class NetworksPost(NetworkPut, kw_only=True):
    """POST /1.0/networks; type "" is a bridge."""

    name: str = ""
    type: str = ""


class NetworkLease(msgspec.Struct, kw_only=True):
    """One address on a network; type gateway, static or dynamic; location the member that has given it out."""

    hostname: str
    hwaddr: str = ""
    address: str
    type: str
    location: str = ""


class NetworkAllocation(msgspec.Struct, kw_only=True):
    """One address and who has it; type network or instance."""

    addresses: str
    used_by: str
    type: str
    nat: bool
    hwaddr: str = ""


# -- certificates -------------------------------------------------------------------------------------------------


class CertificatePut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a trusted certificate."""

    name: str | None = None
    type: str | None = None
    restricted: bool | None = None
    projects: list[str] | None = None
    certificate: str | None = None
    description: str | None = None


class CertificatesPost(msgspec.Struct, kw_only=True):
    """POST /1.0/certificates: trust a certificate, redeem a token, or (`token`) issue one."""

    name: str = ""
    type: str = ""
    restricted: bool = False
    projects: list[str] | None = None
    certificate: str = ""
    description: str = ""
    trust_token: str = ""
    token: bool = False


class Certificate(msgspec.Struct, kw_only=True):
    """One trusted certificate; `type` is client, server or metrics."""

    name: str
    type: str
    restricted: bool
    projects: list[str]
    certificate: str
    description: str
    fingerprint: str


# -- warnings -----------------------------------------------------------------------------------------------------


class WarningPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a warning."""

    status: str = ""


class Warning(msgspec.Struct, kw_only=True):  # noqa: A001  # the name of Incus
    """One warning; status new, acknowledged or resolved; severity low, moderate or high."""

    status: str
    uuid: str
    location: str
    project: str
    type: str
    count: int
    first_seen_at: str
    last_seen_at: str
    last_message: str
    severity: str
    entity_url: str
