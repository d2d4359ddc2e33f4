"""Proxies of running containers: which carriers there are, starting and ending them.

Owns the file `proxies.json` in the directory of an instance, which names the carrier process of each proxy device, also to
a daemon that comes later: carriers go on without the daemon and end with the container. Called by
drivers/lxc_devices.py; must never signal a process that is not known by its start time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from incus_actors.domain.proxies import ProxyEnd, is_nat, listens_inside, parse_end
from incus_actors.drivers import device_notes
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.child import Conversation, helper_argv
from incus_actors.drivers.processes import ProcessIdentity, identity_of
from incus_actors.model.config_values import is_true

_OPTIONS: Final = (
    "listen",
    "connect",
    "bind",
    "mode",
    "uid",
    "gid",
    "proxy_protocol",
    "security.uid",
    "security.gid",
)
_PLAIN: Final = ("mode", "uid", "gid", "security.uid", "security.gid")

Proxy = Mapping[str, Any]  #: the options of the device, and "pid" and "start_ticks" of its carrier


def proxies_of(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what matters of the proxies of an instance that need a carrier."""
    return {
        name: {option: device[option] for option in _OPTIONS if device.get(option)}
        for name, device in sorted(spec.devices.items())
        if device.get("type") == "proxy" and not is_nat(device)
    }


def noted(spec: InstanceSpec) -> dict[str, dict[str, Any]]:
    """Return the carriers of a running container."""
    return device_notes.read(_file(spec))


def _note(spec: InstanceSpec, proxies: Mapping[str, Proxy]) -> None:
    device_notes.write(_file(spec), proxies)


def _file(spec: InstanceSpec) -> Path:
    return spec.instance_dir / "proxies.json"


def _carrier(proxy: Proxy) -> ProcessIdentity:
    return ProcessIdentity(int(proxy.get("pid", 0)), int(proxy.get("start_ticks", 0)))


def _same(proxy: Proxy, wanted: Mapping[str, str] | None) -> bool:
    options = {key: value for key, value in proxy.items() if key in _OPTIONS}
    return options == wanted and _carrier(proxy).alive()


async def plug(spec: InstanceSpec, pid: int) -> None:
    """Give a running container (by its init's pid) exactly the proxies of `spec`: first the old ones end. One whose
    carrier has died is started again. Raises DriverError; what was done until then is recorded."""
    wanted, there = proxies_of(spec), noted(spec)
    if not wanted and not there:
        return
    for name in [name for name, proxy in there.items() if not _same(proxy, wanted.get(name))]:
        _end(there.pop(name))
        _note(spec, there)
    for name, options in wanted.items():
        if name in there:
            continue
        try:
            carrier = await _begin(spec, pid, options)
        except DriverError as error:
            raise DriverError(f'Failed to start device "{name}": {error}') from error
        there[name] = {**options, "pid": carrier.pid, "start_ticks": carrier.start_ticks}
        _note(spec, there)


def ended(spec: InstanceSpec) -> None:
    """Remove what the proxies of a container that has ended leave."""
    for proxy in noted(spec).values():
        _end(proxy)
    _file(spec).unlink(missing_ok=True)


async def _begin(spec: InstanceSpec, pid: int, options: Mapping[str, str]) -> ProcessIdentity:
    listen, connect = parse_end(options["listen"]), parse_end(options["connect"])
    fields = [
        ("pid", str(pid)),
        ("unprivileged", "" if spec.privileged else "1"),
        ("inside", "1" if listens_inside(options) else ""),
        ("proxy_protocol", "1" if is_true(options.get("proxy_protocol")) else ""),
        *((option, options.get(option, "")) for option in _PLAIN),
        *_end_fields("listen", listen),
        *_end_fields("connect", connect),
    ]
    talk = await Conversation.begin(helper_argv("proxy_helper"))
    talk.send(fields)
    answer = dict(await talk.receive() or [])
    if "pid" not in answer:
        await talk.finish()
        reason = answer.get("error", "it ended without an answer")
        raise DriverError(f"Error occurred when starting proxy device: Error: {reason}")
    talk.hang_up()
    carrier = identity_of(talk.child.pid)
    if carrier is None:
        raise DriverError("the proxy ended right after its start")
    return carrier


def _end_fields(side: str, end: ProxyEnd) -> list[tuple[str, str]]:
    return [
        (f"{side}.protocol", end.protocol),
        (f"{side}.host", end.host),
        (f"{side}.ports", ",".join(map(str, end.ports))),
        (f"{side}.path", end.path),
    ]


def _end(proxy: Proxy) -> None:
    carrier = _carrier(proxy)
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(carrier.pid) if carrier.pid > 0 else -1
        try:
            if descriptor >= 0 and carrier.alive():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    listen = parse_end(proxy["listen"])
    if listen.protocol == "unix" and listen.path.startswith("/") and not listens_inside(proxy):
        with contextlib.suppress(OSError):
            Path(listen.path).unlink()
