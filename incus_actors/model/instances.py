"""Instances as the REST API shows and takes them (CONTRACT 8.1).

Owns the shapes, with every field of Incus in Incus' order; used by services and rest. Must hold no behaviour.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

Config = dict[str, str]
Devices = dict[str, dict[str, str]]

ZERO_TIME = "0001-01-01T00:00:00Z"
NEVER_USED = "1970-01-01T00:00:00Z"  #: Incus shows this for an instance that was never started


class Instance(msgspec.Struct, kw_only=True):
    """One instance. `expanded_*` are left out when the member that has it can't be asked (B.8)."""

    architecture: str = ""
    config: Config | None = None
    devices: Devices | None = None
    ephemeral: bool = False
    profiles: list[str] | None = None
    stateful: bool = False
    description: str = ""
    created_at: str = ZERO_TIME
    expanded_config: Config | UnsetType = UNSET
    expanded_devices: Devices | UnsetType = UNSET
    name: str = ""
    status: str = "Error"
    status_code: int = 112
    last_used_at: str = ZERO_TIME
    location: str = "none"
    type: str = "container"
    project: str = "default"


class InstanceMemory(msgspec.Struct, kw_only=True):
    """Bytes."""

    usage: int = 0
    usage_peak: int = 0
    total: int = 0
    swap_usage: int = 0
    swap_usage_peak: int = 0


class InstanceCpu(msgspec.Struct, kw_only=True):
    """Nanoseconds; usage -1 is unknown."""

    usage: int = 0
    allocated_time: int = 0


class InstanceState(msgspec.Struct, kw_only=True):
    """What is true now. Stopped: no network, pid 0."""

    status: str = "Stopped"
    status_code: int = 102
    disk: dict[str, dict[str, int]] = {}
    memory: InstanceMemory = field(default_factory=InstanceMemory)
    network: dict[str, Any] | None = None
    pid: int = 0
    processes: int = 0
    cpu: InstanceCpu = field(default_factory=InstanceCpu)
    started_at: str = ZERO_TIME
    os_info: dict[str, str] | None = None


class InstanceFull(Instance, kw_only=True):
    """Instance with everything (`?recursion=2` of the list, `?recursion=1` of one)."""

    backups: list[Any] | None = None
    state: InstanceState | None = None
    snapshots: list[Any] | None = None


# --- requests -----------------------------------------------------------------------------------------------


class InstanceSource(msgspec.Struct, kw_only=True):
    """Where a new instance comes from."""

    type: str = ""
    alias: str = ""
    fingerprint: str = ""
    properties: dict[str, str] = {}
    server: str = ""
    protocol: str = ""
    mode: str = ""
    source: str = ""
    instance_only: bool = False
    refresh: bool = False
    project: str = ""


class InstancesPost(msgspec.Struct, kw_only=True):
    """`POST /1.0/instances`. `profiles` None means the default one, [] none."""

    name: str = ""
    architecture: str = ""
    config: Config = {}
    devices: Devices = {}
    ephemeral: bool = False
    profiles: list[str] | None = None
    stateful: bool = False
    description: str = ""
    source: InstanceSource = field(default_factory=InstanceSource)
    instance_type: str = ""
    type: str = ""
    start: bool = False


class InstancePut(msgspec.Struct, kw_only=True):
    """`PUT /1.0/instances/<n>`: the whole writable part, or `restore` and nothing else."""

    architecture: str = ""
    config: Config = {}
    devices: Devices = {}
    ephemeral: bool = False
    profiles: list[str] | None = None
    stateful: bool = False
    description: str = ""
    restore: str = ""


class InstancePatch(msgspec.Struct, kw_only=True):
    """`PATCH /1.0/instances/<n>`: what is absent stays; config and devices are merged key by key."""

    architecture: str | None = None
    config: Config | None = None
    devices: Devices | None = None
    ephemeral: bool | None = None
    profiles: list[str] | None = None
    stateful: bool | None = None
    description: str | None = None


class InstancePost(msgspec.Struct, kw_only=True):
    """`POST /1.0/instances/<n>`: rename (`migration` false) or move."""

    name: str = ""
    migration: bool = False
    live: bool = False
    pool: str = ""
    project: str = ""


class InstanceStatePut(msgspec.Struct, kw_only=True):
    """`PUT …/state`. `timeout` in seconds, -1 the default."""

    action: str = ""
    timeout: int = -1
    force: bool = False
    stateful: bool = False


class InstancesPut(msgspec.Struct, kw_only=True):
    """`PUT /1.0/instances`: one state for all."""

    state: InstanceStatePut | None = None


class InstanceExecPost(
    msgspec.Struct, kw_only=True, rename={"wait_for_websocket": "wait-for-websocket", "record_output": "record-output"}
):
    """`POST …/exec`."""

    command: list[str] = []
    wait_for_websocket: bool = False
    interactive: bool = False
    environment: dict[str, str] = {}
    width: int = 0
    height: int = 0
    record_output: bool = False
    user: int = 0
    group: int = 0
    cwd: str = ""
