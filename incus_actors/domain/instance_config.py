"""Which configuration keys an instance or profile may have, and what their values must look like.

Owns our own hidden keys and the errors of this family; the rules are data of model/config_keys.py. Used by the
instance service and actors (the prefixes "Invalid config: " and "Failed creating instance record: " belong to the
callers); pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from incus_actors.errors import BadRequestError
from incus_actors.model import config_keys, config_values

HIDDEN_PREFIX: Final = "volatile.actors."  #: our own rows, never shown, never taken from a user
PHASE_KEY: Final = "volatile.actors.phase"  #: "creating" or "deleting" while the host is at it


def is_true(value: str | None) -> bool:
    """Return whether Incus takes this value as true."""
    return config_values.is_true(value)


def is_false(value: str | None) -> bool:
    """Return whether Incus takes this value as an explicit false."""
    return (value or "").lower() in config_values.FALSE_WORDS


def parse_size(value: str) -> int:
    """Return the bytes of "10MiB", "1GB", "512"... Raises BadRequestError "Invalid value: x"."""
    try:
        return config_values.parse_size(value)
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def check_config(config: Mapping[str, str], *, profile: bool = False, instance_type: str = "container") -> None:
    """Raise BadRequestError at the first key (in order of name) that is unknown or has an impossible value.

    Empty values mean "unset" and are always fine. A profile may have no volatile and no image keys.
    """
    try:
        config_keys.validate_instance_config(config, profile=profile, instance_type=instance_type)
    except config_keys.ConfigError as error:
        raise BadRequestError(str(error)) from None
