"""What NetworkActor and its children understand.

Owns the messages; those that travel between members are registered.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from incus_actors.actors.messages import remote_message
from incus_actors.drivers.bridge import NetworkSpec
from incus_actors.state.queries.instances import InstanceRecord

NETWORKS_PATH = "networks"


@remote_message("networks.apply")
class ApplyNetwork(msgspec.Struct, frozen=True, array_like=True):
    """Make one network here what its rows say, now. Answer: None; raises what went wrong."""

    name: str


@remote_message("networks.leases")
class CollectLeases(msgspec.Struct, frozen=True, array_like=True):
    """Answer: a list of [address, MAC address, host name] that DHCP of this member has given out."""

    name: str


@dataclass(frozen=True, slots=True)
class Converge:
    """Make all networks of this member what their rows say. Answer: None, when it is done; raises the first failure."""


@dataclass(frozen=True, slots=True)
class NicsReady:
    """An instance of this member is about to start or to get a nic: its networks must work, DHCP must know it.

    `record`: the instance as it will be.
    """

    record: InstanceRecord


@dataclass(frozen=True, slots=True)
class Serve:
    """To a DnsmasqActor: have DHCP and DNS as this network wants them. Answer: None; raises DriverError."""

    spec: NetworkSpec


@dataclass(frozen=True, slots=True)
class Ended:
    """To a DnsmasqActor: this process has ended by itself, or (0) could not be started."""

    pid: int
