"""Rules of unix-char and unix-block devices: device nodes of the host, shown to an instance.

Owns the checks with Incus' texts; used by the rules of devices and by the drivers. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from incus_actors.domain.proxies import check_id, check_mode
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import canonical_bool

MODE_DEFAULT: Final = 0o660
_OPTIONS: Final = frozenset({"type", "source", "path", "required", "major", "minor", "mode", "uid", "gid"})
_NUMBER = re.compile(r"[0-9]{1,7}")


def check_unix_device(device: Mapping[str, str]) -> None:
    """Raise BadRequestError, without prefix, for what can't be right whatever the machine looks like."""
    source, path = device.get("source", ""), device.get("path", "")
    if not source and not path:
        raise BadRequestError('Unix device entry is missing the required "source" or "path" property')
    if source and not _in_dev(source):
        raise BadRequestError('Invalid value for device option "source": Path needs to be in /dev')
    if path and (not path.startswith("/") or ".." in path.split("/") or "\n" in path):
        raise BadRequestError('Invalid value for device option "path": Must be absolute file path')
    for option in ("major", "minor"):
        if device.get(option) and not _NUMBER.fullmatch(device[option]):
            raise BadRequestError(f'Invalid value for device option "{option}": Invalid value for a UNIX device number')
    for option in ("uid", "gid"):
        if device.get(option):
            check_id(option, device[option])
    if device.get("mode"):
        check_mode(device["mode"])
    if device.get("required"):
        try:
            canonical_bool(device["required"])
        except ValueError as error:
            raise BadRequestError(f'Invalid value for device option "required": {error}') from None
    for option in sorted(device):
        if option not in _OPTIONS and not option.startswith("user."):
            raise BadRequestError(f'Invalid device option "{option}"')


def _in_dev(path: str) -> bool:
    return path.startswith("/dev/") and ".." not in path.split("/") and "\n" not in path


def paths_of(device: Mapping[str, str]) -> tuple[str, str]:
    """Return (path on the host, path inside); each is the other where only one is given."""
    source, path = device.get("source", ""), device.get("path", "")
    return source or path, path or source
