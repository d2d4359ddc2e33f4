"""REST shapes of the cluster API (CONTRACT 5.1, 6.2) and of the private join call.

Owns only data; rest/ decodes requests into these and services answer with them. Field order is what a user sees
in YAML, so it must never change.
"""

from __future__ import annotations

import msgspec


class MemberConfigKey(msgspec.Struct, kw_only=True):
    """One member-specific key of a pool or network that a joining server may give."""

    entity: str = ""
    name: str = ""
    key: str = ""
    value: str = ""
    description: str = ""


class Cluster(msgspec.Struct, kw_only=True):
    """GET /1.0/cluster."""

    server_name: str = ""
    enabled: bool = False
    member_config: list[MemberConfigKey] = msgspec.field(default_factory=list)


class ClusterPut(msgspec.Struct, kw_only=True):
    """PUT /1.0/cluster: bootstrap if `server_address` is empty, else join."""

    server_name: str = ""
    enabled: bool = False
    member_config: list[MemberConfigKey] | None = None
    cluster_address: str = ""
    cluster_certificate: str = ""
    server_address: str = ""
    cluster_token: str = ""


class ClusterMember(msgspec.Struct, kw_only=True):
    """One element of GET /1.0/cluster/members?recursion=1."""

    roles: list[str]
    failure_domain: str
    description: str
    config: dict[str, str]
    groups: list[str]
    server_name: str
    url: str
    database: bool
    status: str
    message: str
    architecture: str


class ClusterMemberPut(msgspec.Struct, kw_only=True):
    """PUT of a member: a full replacement of what can be changed."""

    roles: list[str] | None = None
    failure_domain: str = ""
    description: str = ""
    config: dict[str, str] | None = None
    groups: list[str] | None = None


class ClusterMemberPatch(msgspec.Struct, kw_only=True):
    """PATCH of a member: only what is given."""

    roles: list[str] | None = None
    failure_domain: str | None = None
    description: str | None = None
    config: dict[str, str] | None = None
    groups: list[str] | None = None


class ServerName(msgspec.Struct, kw_only=True):
    """Body of POST members (a token for this name) and POST members/n (rename to this)."""

    server_name: str = ""


class ClusterMemberStatePost(msgspec.Struct, kw_only=True):
    """POST members/n/state."""

    action: str = ""
    mode: str = ""


class SystemInfo(msgspec.Struct, kw_only=True):
    """What sysinfo(2) says; sizes in bytes, uptime in seconds."""

    uptime: int
    load_averages: list[float]
    total_ram: int
    free_ram: int
    shared_ram: int
    buffered_ram: int
    total_swap: int
    free_swap: int
    processes: int


class ClusterMemberState(msgspec.Struct, kw_only=True):
    """GET members/n/state. `storage_pools`: name → {"space": {used,total}, "inodes": {used,total}}."""

    sysinfo: SystemInfo
    storage_pools: dict[str, dict[str, dict[str, int]]]


class ClusterGroup(msgspec.Struct, kw_only=True):
    """GET groups/n."""

    description: str
    members: list[str]
    name: str


class ClusterGroupPost(msgspec.Struct, kw_only=True):
    """POST groups; with only `name`, also POST groups/n (rename)."""

    name: str = ""
    description: str = ""
    members: list[str] | None = None


class ClusterGroupPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a group; `description` None: leave it (PATCH)."""

    description: str | None = None
    members: list[str] | None = None


class ClusterCertificatePut(msgspec.Struct, kw_only=True):
    """PUT /1.0/cluster/certificate. Holds a private key: never log it."""

    cluster_certificate: str = ""
    cluster_certificate_key: str = ""

    def __repr__(self) -> str:
        return "ClusterCertificatePut(...)"


class CertificateWanted(msgspec.Struct, kw_only=True):
    """POST /internal/cluster/certificate/fetch."""

    fingerprint: str


class AcceptRequest(msgspec.Struct, kw_only=True):
    """POST /internal/cluster/accept: a server asks to become a member.

    It shows its server certificate in the TLS handshake; `token` is empty if that certificate was already made
    trusted (interactive join).
    """

    name: str
    address: str  #: host:port of its HTTPS listener
    transport: str  #: transport/address.py form, with its CURVE key
    architecture: int
    version: str
    schema: int
    api_extensions: int
    features: int = 0  #: the highest feature level that it can apply (model/features.py)
    token: str = ""
    core_address: str = ""  #: its core.https_address, if it has one
    storage_root: str = ""  #: where its pools are by default
    member_config: list[MemberConfigKey] = msgspec.field(default_factory=list)


class AcceptAnswer(msgspec.Struct, kw_only=True):
    """What a joining server needs to become a member. Holds the cluster's private key: never log it."""

    member_id: int
    cluster_id: str  #: a UUID
    epoch: int
    configuration: str  #: as consensus.configuration encodes it
    cluster_certificate: str
    cluster_certificate_key: str

    def __repr__(self) -> str:
        return f"AcceptAnswer(member_id={self.member_id}, epoch={self.epoch})"


class ReplaceRequest(msgspec.Struct, kw_only=True):
    """POST /internal/cluster/replace: a member that has forgotten what it promised asks for a new id.

    It shows its server certificate, which is trusted under `name`. Answered as an acceptance.
    """

    name: str
    transport: str  #: with the CURVE key that it always had
    version: str
    schema: int
    api_extensions: int


class StandingAnswer(msgspec.Struct, kw_only=True):
    """POST /internal/cluster/standing (with a WithdrawRequest): is that server still joining, or a member?"""

    known: bool


class WithdrawRequest(msgspec.Struct, kw_only=True):
    """POST /internal/cluster/withdraw: a server that was accepted could not go on; undo it."""

    member_id: int
