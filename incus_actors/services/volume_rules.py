"""What volumes may be called and given, beyond the rules of single keys, with Incus' texts.

Used by services/volumes.py and its siblings, and by routes before it is known which member has a volume; must never look
at the machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.errors import BadRequestError, MemberError, NotImplementedHereError
from incus_actors.model.config_values import is_true
from incus_actors.model.volumes import VolumePost
from incus_actors.services.volume_tools import VolumeTools
from incus_actors.state.queries.volumes import VolumeRow

NAME_BYTES_MAX = 128


def check_name(name: str) -> None:
    """Raise BadRequestError for a name that a volume can't have."""
    if "/" in name:
        raise BadRequestError("Storage volume names may not contain slashes")
    if name in {".", ".."} or not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
        raise BadRequestError(f"Invalid storage volume name {name!r}")


def check_new_name(type_: str, post: VolumePost) -> None:
    """Raise what is wrong with another name for a volume, whichever that is and wherever."""
    if not post.name:
        raise BadRequestError("No name provided")
    if "/" in post.name:
        raise BadRequestError("Storage volume names may not contain slashes")
    if type_ != "custom":
        raise BadRequestError(f'Renaming storage volumes of type "{type_}" is not allowed')
    if post.migration:
        raise NotImplementedHereError("Moving volumes to other servers is not supported yet")
    check_name(post.name)


def check_combination(config: Mapping[str, str]) -> None:
    """Raise MemberError for what a custom volume's keys can't be together, or only make no sense when it is made."""
    if is_true(config.get("security.unmapped")) and is_true(config.get("security.shifted")):
        raise MemberError("security.unmapped and security.shifted are mutually exclusive")
    mode = config.get("initial.mode", "0")
    if not mode.isascii() or not mode.isdigit() or set(mode) & {"8", "9"}:
        raise MemberError(f'strconv.ParseInt: parsing "{mode}": invalid syntax')


def check_instance_volume(row: VolumeRow, config: Mapping[str, str]) -> None:
    """Raise MemberError for keys that the volume of an instance or image can't be given: only what has no effect."""
    for key in sorted(key for key in config if config[key] != row.config.get(key)):
        if key == "size":
            raise MemberError('Volume "size" property is not valid for volume type')
        if not key.startswith(("user.", "snapshots.")):
            raise MemberError(f'Invalid option for volume "{row.name}" option "{key}"')
        VolumeTools.check_config(row.name, {key: config[key]}, row.driver, row.content)
