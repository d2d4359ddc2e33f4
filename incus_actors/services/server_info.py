"""The server object of `GET /1.0` and the machine behind it, from real facts (CONTRACT 4, 15).

Owns what is read once (kernel, distribution) and what is put together per request; called by rest/server_routes.py.
Must never claim a feature that this release or this machine doesn't have.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from incus_actors.identity import Identity
from incus_actors.model import architectures
from incus_actors.model.api_extensions import API_EXTENSIONS
from incus_actors.model.config_values import is_wildcard, split_address
from incus_actors.model.server import Environment, Server, ServerUntrusted, StorageDriverInfo
from incus_actors.security.certificates import KeyPair
from incus_actors.services import interfaces, trust_password
from incus_actors.services.resources import read_resources
from incus_actors.services.server_config import ServerConfigService
from incus_actors.state.reader import Reader

#: The release of Incus whose API this is: clients and scripts compare it.
COMPATIBLE_VERSION: Final = "6.0.4"

_RESOURCES_S: Final = 10.0  #: hardware doesn't change faster, and reading it all takes milliseconds

#: Features of the kernel by the version that brought them (Incus probes; all of these are unconditional since then).
_KERNEL_FEATURES: Final = {
    "idmapped_mounts": (5, 12),
    "netnsid_getifaddrs": (4, 20),
    "seccomp_listener": (5, 0),
    "seccomp_listener_continue": (5, 5),
    "uevent_injection": (4, 17),
    "unpriv_binfmt": (6, 7),
    "unpriv_fscaps": (4, 14),
}


class Driver(Protocol):
    """What a driver of instances or storage says of itself (drivers.base.DriverInfo)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def features(self) -> Mapping[str, bool]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What doesn't change while the daemon runs."""

    kernel: str
    kernel_version: str
    architecture: str
    architectures: tuple[str, ...]
    os_name: str
    os_version: str
    features: Mapping[str, str]


@cache
def host_facts() -> HostFacts:
    """Return the facts of this machine."""
    uname = os.uname()
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    numbers = tuple(int(part) for part in uname.release.split("-")[0].split(".")[:2] if part.isdigit())
    return HostFacts(
        kernel=uname.sysname,
        kernel_version=uname.release,
        architecture=architectures.native(),
        architectures=tuple(architectures.supported()),
        os_name=release.get("NAME", ""),
        os_version=release.get("VERSION_ID", ""),
        features={name: str(numbers >= since).lower() for name, since in _KERNEL_FEATURES.items()},
    )


class ServerInfoService:
    """`certificate` gives the pair that the HTTPS listeners show."""

    def __init__(
        self,
        *,
        config: ServerConfigService,
        database: Reader,
        identity: Identity,
        certificate: Callable[[], KeyPair],
        instance_driver: Driver,
        storage_drivers: Mapping[str, Driver],
        firewall: str = "none",
    ) -> None:
        self._config = config
        self._database = database
        self._identity = identity
        self._certificate = certificate
        self._instance_driver = instance_driver
        self._storage_drivers = storage_drivers
        self._firewall = firewall
        self._pair: tuple[bool, int, KeyPair] | None = None
        self._resources: tuple[float, dict[str, Any]] | None = None
        self._reading = asyncio.Lock()

    # -- GET /1.0 -----------------------------------------------------------------------------------------------------

    def untrusted(self) -> ServerUntrusted:
        """Return what a stranger sees."""
        by_password = self._config.configured(trust_password.KEY)
        methods = ("tls", "password") if by_password else ("tls",)
        return ServerUntrusted(api_extensions=API_EXTENSIONS, auth_methods=methods)

    def server(self, *, user: str, method: str, project: str = "default") -> Server:
        """Return what a trusted caller sees; `method` is unix or tls."""
        config = self._config.effective()
        return Server(
            config=config,
            api_extensions=API_EXTENSIONS,
            auth_user_name=user,
            auth_user_method=method,
            environment=self._environment(project, self._addresses(config.get("core.https_address", ""))),
        )

    def addresses(self) -> list[str]:
        """Return host:port of every address at which clients reach this server."""
        return self._addresses(self._config.configured("core.https_address"))

    @staticmethod
    def _addresses(configured: str) -> list[str]:
        if not configured:
            return []
        host, port = split_address(configured)
        if not is_wildcard(host):
            return [_joined(host, port)]
        only_v4 = host == "0.0.0.0"  # noqa: S104  # compared, not bound
        return [_joined(found, port) for found in interfaces.global_addresses() if not (only_v4 and ":" in found)]

    def certificate(self) -> KeyPair:
        """Return the pair that our listeners show; read again only when the file has changed."""
        clustered = self._identity.clustered
        if self._pair is not None and self._pair[0] == clustered:
            _, modified_ns, pair = self._pair
            if _modified_ns(pair.certificate_path) == modified_ns:
                return pair
        pair = self._certificate()
        self._pair = (clustered, _modified_ns(pair.certificate_path), pair)
        return pair

    def _environment(self, project: str, addresses: list[str]) -> Environment:
        facts = host_facts()
        pair = self.certificate()
        driver = self._instance_driver
        used = [row[0] for row in self._database.query("SELECT DISTINCT driver FROM storage_pools ORDER BY driver")]
        return Environment(
            addresses=addresses,
            architectures=list(facts.architectures),
            certificate=pair.certificate_pem,
            certificate_fingerprint=pair.fingerprint,
            driver=driver.name,
            driver_version=driver.version,
            firewall=self._firewall,
            kernel=facts.kernel,
            kernel_architecture=facts.architecture,
            kernel_features=dict(facts.features),
            kernel_version=facts.kernel_version,
            lxc_features={name: str(there).lower() for name, there in sorted(driver.features.items())},
            os_name=facts.os_name,
            os_version=facts.os_version,
            project=project,
            server="incus",
            server_clustered=self._identity.clustered,
            server_event_mode="full-mesh",
            server_name=self._identity.server_name,
            server_pid=os.getpid(),
            server_version=COMPATIBLE_VERSION,
            storage=" | ".join(used),
            storage_version=" | ".join(
                self._storage_drivers[name].version for name in used if name in self._storage_drivers
            ),
            storage_supported_drivers=[
                StorageDriverInfo(name=name, version=found.version)
                for name, found in sorted(self._storage_drivers.items())
            ],
        )

    # -- GET /1.0/resources ---------------------------------------------------------------------------------------------

    async def resources(self) -> dict[str, Any]:
        """Return the machine's hardware; at most ten seconds old."""
        async with self._reading:
            now = time.monotonic()
            if self._resources is None or self._resources[0] < now - _RESOURCES_S:
                found = await asyncio.get_running_loop().run_in_executor(None, read_resources)
                self._resources = (now, found)
            return self._resources[1]


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
