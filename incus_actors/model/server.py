"""The server object, `GET /1.0` (CONTRACT 4, B.1).

Owns the shapes, fields in Incus' order. Must hold no behaviour.
"""

from __future__ import annotations

from typing import Any

import msgspec


class ServerPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of /1.0."""

    config: dict[str, str] | None = None


class StorageDriverInfo(msgspec.Struct, kw_only=True):
    """One entry of `storage_supported_drivers`; the capital letters are Incus'."""

    name: str = msgspec.field(name="Name")
    version: str = msgspec.field(name="Version")
    remote: bool = msgspec.field(default=False, name="Remote")


class Environment(msgspec.Struct, kw_only=True):
    """What this member is and runs on."""

    addresses: list[str]
    architectures: list[str]
    certificate: str
    certificate_fingerprint: str
    driver: str
    driver_version: str
    firewall: str
    kernel: str
    kernel_architecture: str
    kernel_features: dict[str, str]
    kernel_version: str
    lxc_features: dict[str, str]
    os_name: str
    os_version: str
    project: str
    server: str
    server_clustered: bool
    server_event_mode: str
    server_name: str
    server_pid: int
    server_version: str
    storage: str
    storage_version: str
    storage_supported_drivers: list[StorageDriverInfo]


class ServerUntrusted(msgspec.Struct, kw_only=True):
    """What anybody may see."""

    config: dict[str, Any] = msgspec.field(default_factory=dict)
    api_extensions: tuple[str, ...]
    api_status: str = "stable"
    api_version: str = "1.0"
    auth: str = "untrusted"
    public: bool = False
    auth_methods: tuple[str, ...] = ("tls",)


class Server(ServerUntrusted, kw_only=True):
    """What a trusted caller sees."""

    auth: str = "trusted"
    auth_user_name: str
    auth_user_method: str
    environment: Environment
