"""Which values a fact, a field or a result can have at all.

Owns the kinds of values that scripts compare with; used where conditions are read. A value that can never be found
is an error of the script: `role!=ledaer` would always hold. Must never look at a world.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace

from incus_actors.consensus.types import RaftRole
from incus_actors.interaction.patterns import Condition, suggest

NONE = "none"
FLAGS = ("true", "false")
ROLES = ("down", *(role.value for role in RaftRole))
PROGRESS = ("probe", "replicate", "snapshot", "excluded", "disputed")
STATUSES = (
    "pending", "applied", "not_leader", "busy", "too_large", "disk_full", "invalid", "unsupported", "timeout", "unknown",
    "lost",
)  # fmt: skip
CAUSES = (
    NONE, "timeout", "lost", "heir", "transfer", "startup", "higher_term", "check_quorum", "leader_found", "forgot",
    "disk", "removed", "shutdown", "won", "yielded", "lost_election",
)  # fmt: skip
MOST_MEMBER = 999

Reader = Callable[[str], str]


class UnfitValueError(ValueError):
    """No fact of this name ever has this value; the text says which ones it can have."""


def member_ids(text: str) -> tuple[int, ...]:
    """Return the members of `2`, `1,3` or `1-3`, in the order given. Raises UnfitValueError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
        if match is None or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
            raise UnfitValueError(f"expected members such as 2, 1,3 or 1-3, not {text!r}")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(found)


def number(text: str) -> str:
    """A whole number."""
    if not re.fullmatch(r"-?[0-9]{1,15}", text):
        raise UnfitValueError(f"a whole number is expected, not {text!r}")
    return text


def member(text: str) -> str:
    """The number of a member, or `none`."""
    return text if text == NONE else number(text)


def wire_number(text: str) -> str:
    """A number in a message, where nobody is 0."""
    return "0" if text == NONE else number(text)


def numbers(text: str) -> str:
    """`1,1,2`, or `none`."""
    return text if text == NONE else ",".join(map(number, text.split(",")))


def members(text: str) -> str:
    """`1,3-5` in any order, or `none`."""
    return text if text == NONE else ",".join(map(str, sorted(set(member_ids(text)))))


def position(text: str) -> str:
    """`3`, or with its term `3/2`."""
    return "/".join(map(number, text.split("/", 1)))


def text_value(text: str) -> str:
    """Anything."""
    return text


def one_of(options: tuple[str, ...]) -> Reader:
    """One of some words."""

    def read(text: str) -> str:
        if text.lower() not in options:
            raise UnfitValueError(f"{text!r} is none of {', '.join(options)}{suggest(text.lower(), options)}")
        return text.lower()

    return read


FLAG = one_of(FLAGS)
FACTS: Mapping[str, Reader] = {
    **dict.fromkeys(("vote", "leader", "heir", "durable_vote"), member),
    **dict.fromkeys(("voters", "standbys", "spares", "members", "removed", "old_voters"), members),
    **dict.fromkeys(("joint", "config_committed", "installing", "running", "amnesia", "caught_up", "link"), FLAG),
    **dict.fromkeys(("jobs", "state"), text_value),
    "role": one_of(ROLES),
    "cause": one_of(CAUSES),
    "progress": one_of(PROGRESS),
    "log": numbers,
    "last": position,
}
RESULTS: Mapping[str, Reader] = {"status": one_of(STATUSES), "index": number, "at": number}


def checked(condition: Condition, read: Reader) -> Condition:
    """Return the condition with its value as it would be found. Raises UnfitValueError when it never is."""
    if condition.operator == "~":
        return condition
    try:
        return replace(condition, value=read(condition.value))
    except UnfitValueError as error:
        raise UnfitValueError(f"{condition}: {error}") from None


def checked_fact(condition: Condition) -> Condition:
    """The same for a fact about a member: those that are not listed are numbers."""
    return checked(condition, FACTS.get(condition.name.partition(".")[0], number))


def checked_result(condition: Condition) -> Condition:
    """The same for the end of a request."""
    return checked(condition, RESULTS.get(condition.name, text_value))


def checked_field(condition: Condition, kind: type | None) -> Condition:
    """The same for a field of a message, by its type."""
    if condition.name in ("epoch", "incarnation", "version", "term", "entries"):
        return checked(condition, number)
    if condition.name in ("terms", "links"):
        return checked(condition, numbers if condition.name == "terms" else members)
    hint = None if kind is None else typing.get_type_hints(kind).get(condition.name)
    return checked(condition, {bool: FLAG, int: wire_number}.get(typing.cast("type", hint), text_value))
