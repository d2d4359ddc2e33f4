#!/usr/bin/env python3
"""Make incus_actors/model/config_keys.json from the contract's configuration.json.

usage: tools/make_config_keys.py ../shared/contract/configuration.json > incus_actors/model/config_keys.json

The contract gives key, type, scope and default; what a value must look like beyond its type is in CHECKS, as a real
Incus 6.0.4 answered when it was asked (`name` or `name:argument` of a rule in model/config_values.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ENTITIES = ("server", "instance", "kernel", "project", "cluster")
BLOCK_ALLOW = "one_of:block,allow"
TYPES = {"bool": "bool", "integer": "int"}

CHECKS: dict[str, dict[str, str]] = {
    "server": {
        "acme.challenge": "one_of:DNS-01,HTTP-01",
        "backups.compression_algorithm": "compression",
        "cluster.https_address": "listen_address:strict",
        "cluster.images_minimal_replica": "image_replicas",
        "cluster.join_token_expiry": "expiry",
        "cluster.max_standby": "int_between:0,5",
        "cluster.max_voters": "odd_from:3",
        "cluster.offline_threshold": "greater_than:0",  # Incus: 10; ours notices sooner
        "cluster.rebalance.cooldown": "expiry",
        "cluster.rebalance.threshold": "int_between:10,100",
        "core.bgp_address": "listen_address",
        "core.bgp_asn": "asn",
        "core.bgp_routerid": "ipv4",
        "core.debug_address": "listen_address",
        "core.dns_address": "listen_address",
        "core.https_address": "listen_address",
        "core.metrics_address": "listen_address",
        "core.remote_token_expiry": "expiry",
        "core.storage_buckets_address": "listen_address",
        "images.compression_algorithm": "compression",
        "images.default_architecture": "architecture",
        "instances.nic.host_name": "one_of:random,mac",
        "loki.types": "items_of:lifecycle,logging,network-acl",
        "storage.backups_volume": "daemon_volume",
        "storage.images_volume": "daemon_volume",
    },
    "instance": {
        "boot.host_shutdown_action": "one_of:stop,force-stop,stateful-stop",
        "cloud-init.network-config": "yaml_map",
        "cluster.evacuate": "one_of:auto,migrate,live-migrate,stop,stateful-stop,force-stop",
        "environment.*": "no_line_break",
        "limits.cpu": "cpu_set",
        "limits.cpu.allowance": "cpu_allowance",
        "limits.cpu.nodes": "cpu_nodes",
        "limits.cpu.priority": "limit:0,10",
        "limits.disk.priority": "limit:0,10",
        "limits.hugepages.1GB": "size",
        "limits.hugepages.1MB": "size",
        "limits.hugepages.2MB": "size",
        "limits.hugepages.64KB": "size",
        "limits.memory": "memory",
        "limits.memory.enforce": "one_of:soft,hard",
        "limits.memory.swap": "swap",
        "limits.memory.swap.priority": "limit:0,10",
        "migration.incremental.memory.goal": "uint32",
        "migration.incremental.memory.iterations": "uint32",
        "raw.idmap": "raw_idmap",
        "raw.lxc": "raw_lxc",
        "security.idmap.base": "uint32",
        "security.idmap.size": "uint32",
        "snapshots.expiry": "expiry",
        "snapshots.schedule": "schedule",
        "volatile.cloud-init.instance-id": "uuid",
        "volatile.uuid": "uuid",
        "volatile.uuid.generation": "uuid",
    },
    "project": {
        "backups.compression_algorithm": "compression",
        "images.compression_algorithm": "compression",
        "images.default_architecture": "architecture",
        "limits.containers": "uint32",
        "limits.cpu": "uint32",
        "limits.disk": "size",
        "limits.disk.pool.*": "size",
        "limits.instances": "uint32",
        "limits.memory": "size",
        "limits.networks": "uint32",
        "limits.processes": "uint32",
        "limits.virtual-machines": "uint32",
        "restricted.containers.nesting": BLOCK_ALLOW,
        "restricted.containers.privilege": "one_of:allow,unprivileged,isolated",
        "restricted.devices.disk": "one_of:block,allow,managed",
        "restricted.devices.disk.paths": "absolute_paths",
        "restricted.devices.nic": "one_of:block,allow,managed",
        "restricted.idmap.gid": "id_ranges",
        "restricted.idmap.uid": "id_ranges",
        "restricted.networks.subnets": "uplink_subnets",
        "restricted.containers.interception": "one_of:allow,block,full",
        **{
            f"restricted.{name}": BLOCK_ALLOW
            for name in [
                "backups",
                "cluster.target",
                "containers.lowlevel",
                "devices.gpu",
                "devices.infiniband",
                "devices.pci",
                "devices.proxy",
                "devices.unix-block",
                "devices.unix-char",
                "devices.unix-hotplug",
                "devices.usb",
                "snapshots",
                "virtual-machines.lowlevel",
            ]
        },
    },
    "cluster": {"scheduler.instance": "one_of:all,manual,group"},
    "kernel": {},
}

#: The contract's reference leaves storage out. These are what a 6.0.4 takes, as far as we act on them; `only` names
#: the contents or drivers that have the key.
VOLUME: dict[str, dict[str, str]] = {
    "block.filesystem": {"type": "string", "check": "one_of:btrfs,ext4,xfs", "only": "filesystem lvm"},
    "block.mount_options": {"type": "string", "only": "filesystem lvm"},
    "initial.gid": {"type": "int", "only": "filesystem"},
    "initial.mode": {"type": "int", "only": "filesystem"},
    "initial.uid": {"type": "int", "only": "filesystem"},
    "security.shared": {"type": "bool", "only": "block"},
    "security.shifted": {"type": "bool", "only": "filesystem"},
    "security.unmapped": {"type": "bool", "only": "filesystem"},
    "size": {"type": "string", "check": "size"},
    "snapshots.expiry": {"type": "string", "check": "expiry", "only": "filesystem block"},
    "snapshots.pattern": {"type": "string", "only": "filesystem block"},
    "snapshots.schedule": {"type": "string", "check": "schedule", "only": "filesystem block"},
}

POOL: dict[str, dict[str, str]] = {
    "btrfs.mount_options": {"type": "string", "only": "btrfs"},
    "lvm.thinpool_name": {"type": "string", "scope": "local", "only": "lvm"},
    "lvm.use_thinpool": {"type": "bool", "default": "true", "only": "lvm"},
    "lvm.vg.force_reuse": {"type": "bool", "scope": "local", "only": "lvm"},
    "lvm.vg_name": {"type": "string", "scope": "local", "only": "lvm"},
    "rsync.bwlimit": {"type": "string", "check": "size"},
    "rsync.compression": {"type": "bool", "default": "true"},
    "size": {"type": "string", "check": "size", "scope": "local", "only": "btrfs lvm zfs"},
    "source": {"type": "string", "scope": "local"},
    "source.wipe": {"type": "bool", "scope": "local"},
    "user.*": {"type": "string"},
    "volatile.initial_source": {"type": "string", "scope": "local"},
    "zfs.pool_name": {"type": "string", "scope": "local", "only": "zfs"},
    **{
        f"volume.{key}": {
            **{k: v for k, v in value.items() if k != "only"},
            **({"only": "lvm"} if "lvm" in value.get("only", "").split() else {}),
        }
        for key, value in VOLUME.items()
    },
}

#: Names that the reference has otherwise than a 6.0.4 takes them.
RENAMED = {
    "volatile.cloud_init.instance-id": "volatile.cloud-init.instance-id",
    "limits.disk.pool.POOL_NAME": "limits.disk.pool.*",
}

#: Keys of ours that Incus 6.0.4 does not have.
OWN = {"server": {"core.trust_password": {"type": "string", "scope": "global"}}}

#: For virtual machines only, though the reference doesn't say so.
MACHINE_KEYS = {"smbios11.*", "volatile.apply_nvram", "volatile.vm.definition", "volatile.vsock_id"}

#: Keys that Incus 6.0.4 knows but its reference doesn't give the type of, or gives as text.
DEFAULTS = {
    "core.bgp_asn": "0",
    "core.remote_token_expiry": "",
    "limits.cpu.priority": "10",
    "limits.disk.priority": "5",
}


def plain_default(raw: str) -> str | None:
    """Return "3" for "`3`"; None for prose."""
    text = raw.split(" (")[0].strip()
    return text.strip("`") if text.startswith("`") and text.count("`") == 2 else None


def entry(entity: str, key: str, data: dict[str, Any]) -> dict[str, str]:
    """Return what the program needs to know of one key."""
    result = {"type": TYPES.get(data["type"], "string")}
    if "scope" in data:
        result["scope"] = data["scope"]
    default = DEFAULTS.get(key, plain_default(data.get("defaultdesc", "")))
    if default:
        result["default"] = default
    condition = data.get("condition", "")
    if key in MACHINE_KEYS or condition == "virtual machine":
        result["only"] = "virtual-machine"
    elif condition.endswith("container"):
        result["only"] = "container"
    check = CHECKS[entity].get(key)
    if check:
        result["check"] = check
    return result


def main() -> None:
    """Read, reduce, write."""
    configs = json.loads(Path(sys.argv[1]).read_text())["configs"]
    result: dict[str, dict[str, dict[str, str]]] = {}
    for entity in ENTITIES:
        keys = {k: v for group in configs[entity].values() for item in group["keys"] for k, v in item.items()}
        keys = {RENAMED.get(key, key): value for key, value in keys.items()}
        unknown = CHECKS[entity].keys() - keys.keys()
        if unknown:
            raise SystemExit(f"checks for keys that are not in the contract: {sorted(unknown)}")
        result[entity] = {key: entry(entity, key, keys[key]) for key in sorted(keys)} | OWN.get(entity, {})
    result["pool"] = POOL
    result["volume"] = {**VOLUME, "user.*": {"type": "string"}, "volatile.*": {"type": "string"}}
    json.dump(result, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
