"""How a running instance follows its profiles: all that changed at once, else device by device, as far as it goes.

Owns what the instance was given, and which devices of its profiles it could not be given, and why. Used by
InstanceActor; must never let one device that can't be given keep others away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from incus_actors.actors import disks, nics
from incus_actors.actors.host import Host
from incus_actors.domain.instances import check_expanded_devices
from incus_actors.errors import ApiError, BadRequestError
from incus_actors.state.queries.instances import InstanceRecord

_log = logging.getLogger(__name__)

Device = Mapping[str, str]


class Following:
    """Of one instance. `apply` makes limits and devices of the running instance those of a record."""

    def __init__(self, host: Host, apply: Callable[[InstanceRecord], Awaitable[None]]) -> None:
        self._host = host
        self._apply = apply
        self._given: InstanceRecord | None = None
        self._certain = False  #: whether it was given just that
        self._refused: dict[str, tuple[Device, str]] = {}  #: name → what could not be given, and why

    def started(self, record: InstanceRecord) -> None:
        """It runs, with all that is in the record."""
        self._given, self._certain = record, True
        self._refused = {}

    def found(self, record: InstanceRecord) -> None:
        """It runs, since an earlier life of the daemon; most likely with this."""
        self._given, self._certain = record, False

    def took(self, record: InstanceRecord) -> None:
        """It was given what `wanted` says of this record."""
        self._given, self._certain = self.wanted(record), True

    def wanted(self, record: InstanceRecord) -> InstanceRecord:
        """Return the record without what the instance could not be given before."""
        devices = dict(record.expanded_devices)
        there = {} if self._given is None else self._given.expanded_devices
        for name, (device, _) in list(self._refused.items()):
            if devices.get(name, {}) != device:
                del self._refused[name]  # it is another one now
                continue
            devices.pop(name, None)
            if name in there:
                devices[name] = there[name]
        return replace(record, expanded_devices=dict(sorted(devices.items())))

    def refusal(self, names: Iterable[str]) -> str:
        """Return why one of these devices could not be given, "" if all were."""
        return next((self._refused[name][1] for name in sorted(names) if name in self._refused), "")

    async def follow(self, record: InstanceRecord) -> None:
        """Give a running instance what its profiles say now, as far as it can be given. Raises ApiError when it isn't
        for a device."""
        before = record if self._given is None else self._given
        after = self.wanted(record)
        if self._certain and _settings(before) == _settings(after):
            return
        try:
            await self._take(before, after)
        except ApiError as error:
            changed = _changed(before.expanded_devices, after.expanded_devices)
            if not changed:
                raise
            await self._one_by_one(before, after, changed, error)
        else:
            self._given, self._certain = after, True

    async def _one_by_one(
        self, before: InstanceRecord, after: InstanceRecord, changed: list[str], error: ApiError
    ) -> None:
        kept = dict(before.expanded_devices)
        for name in changed:
            attempt = {other: device for other, device in kept.items() if other != name}
            device = after.expanded_devices.get(name, {})
            if device:
                attempt[name] = dict(device)
            try:
                if len(changed) == 1:
                    raise error
                await self._take(_with(after, kept), _with(after, attempt))
            except ApiError as refusal:
                _log.warning("instance %s can't be given device %s: %s", after.name, name, refusal)
                self._refused[name] = device, str(refusal)
            else:
                kept = attempt
        if kept == before.expanded_devices and _settings(before)[0] != _settings(after)[0]:
            await self._apply(_with(after, kept))
        self._given, self._certain = _with(after, kept), True

    async def _take(self, before: InstanceRecord, after: InstanceRecord) -> None:
        """Go from one to the other, or stay. Raises ApiError."""
        await check(self._host, before, after)
        try:
            await self._apply(after)
        except ApiError:
            try:
                await self._apply(before)
            except ApiError as again:
                _log.warning("instance %s is not as it was before a failed change: %s", before.name, again)
            raise


async def check(host: Host, before: InstanceRecord, after: InstanceRecord) -> None:
    """Raise BadRequestError when a device that is new or changed can't be given."""
    try:
        check_expanded_devices(
            after.expanded_devices, host.networks(after.project), project=host.networks_project(after.project)
        )
    except BadRequestError as error:
        raise BadRequestError(f"Invalid devices: {error}") from None
    await nics.check_change(host, before, after)
    disks.check_changed(host, after.project, before.expanded_devices, after.expanded_devices)


async def check_stopped(host: Host, record: InstanceRecord, names: Iterable[str]) -> None:
    """Raise BadRequestError when a stopped instance could not be given these devices of its profiles."""
    others = {name: device for name, device in record.expanded_devices.items() if name not in set(names)}
    await check(host, replace(record, expanded_devices=others), record)


def _settings(record: InstanceRecord) -> tuple[Mapping[str, str], Mapping[str, Device]]:
    config = {key: value for key, value in record.expanded_config.items() if not key.startswith("volatile.")}
    return config, record.expanded_devices


def _with(record: InstanceRecord, devices: Mapping[str, dict[str, str]]) -> InstanceRecord:
    return replace(record, expanded_devices=dict(sorted(devices.items())))


def _changed(before: Mapping[str, Device], after: Mapping[str, Device]) -> list[str]:
    """Return the names of devices that differ: first those that go."""
    names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return sorted(names, key=lambda name: (name in after, name))
