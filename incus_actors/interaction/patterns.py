"""Which messages a line of a script means: kind, direction and fields.

Owns the names of messages and of their fields as scripts write them, matching, and showing a message in one line;
used by the parser and the world. Must never change a message.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from incus_actors.consensus import messages as msg
from incus_actors.consensus.messages import Envelope, Message
from incus_actors.consensus.types import Configuration, MemberId
from incus_actors.interaction.errors import ScriptError

#: every message by the name that scripts use: `AppendResp`, or its long form `AppendResponse`
KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Message)}
SHORT = {name: name.replace("Response", "Resp").replace("Snapshot", "Snap") for name in KINDS}
_BY_NAME = {name.lower(): kind for name, kind in KINDS.items()} | {
    short.lower(): KINDS[name] for name, short in SHORT.items()
}
ENVELOPE_FIELDS = ("term", "epoch", "incarnation", "version", "cluster")
_SPECIAL: dict[str, tuple[str, ...]] = {
    "Append": ("entries", "terms", "proposals", "kinds"),
    "Propose": ("proposal",),
    "ProposeResponse": ("proposal",),
}

_ARROW = re.compile(r"^(\*|[0-9]{1,3})(->|<->)(\*|[0-9]{1,3})$")
_CONDITION = re.compile(r"^([a-z_][a-z0-9_.]*)(!=|<=|>=|=|<|>|~)(.*)$", re.DOTALL)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """`name operator value`, compared as numbers when both sides are numbers, else as texts; `~` is "contains": a text
    this part of it, a list these items."""

    name: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.value}"

    def holds(self, found: object) -> bool:
        """Return whether a fact fulfils the condition."""
        have = show_value(found)
        if self.operator == "~":
            if isinstance(found, (tuple, list, set, frozenset)):
                return set(self.value.split(",")) <= {show_value(item) for item in found}
            return self.value in have
        if _is_number(have) and _is_number(self.value):
            return _OPERATORS[self.operator](int(have), int(self.value))
        if self.operator in ("=", "!="):
            return _OPERATORS[self.operator](have.lower(), self.value.lower())
        return False


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" when something is close."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_condition(token: str, line: int) -> Condition | None:
    """Return the condition that a token is, or None when it is none."""
    match = _CONDITION.match(token)
    if match is None:
        return None
    name, sign, value = match.groups()
    if sign in ("<", "<=", ">", ">=") and not _is_number(value):
        raise ScriptError(f"{token!r}: {sign} compares with a number", line)
    return Condition(name, sign, value)


def show_value(value: object) -> str:
    """Return a fact as scripts write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex() or "none"
    if isinstance(value, (tuple, list, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return ",".join(show_value(item) for item in items) or "none"
    return str(value)


@dataclass(frozen=True, slots=True)
class Direction:
    """From whom to whom; None is anybody."""

    source: MemberId | None = None
    destination: MemberId | None = None
    both_ways: bool = False

    def __str__(self) -> str:
        arrow = "<->" if self.both_ways else "->"
        return f"{self.source or '*'}{arrow}{self.destination or '*'}"

    def matches(self, source: MemberId, destination: MemberId) -> bool:
        """Return whether a message on this way is meant."""
        if self.source in (None, source) and self.destination in (None, destination):
            return True
        return self.both_ways and self.source in (None, destination) and self.destination in (None, source)


def parse_direction(token: str) -> Direction | None:
    """Return the direction that a token is, or None when it is none."""
    match = _ARROW.match(token)
    if match is None:
        return None
    ends = [None if end == "*" else int(end) for end in (match[1], match[3])]
    return Direction(ends[0], ends[1], match[2] == "<->")


def parse_kind(token: str, line: int) -> type | None:
    """Return the message class of a name; None for `any`. Raises ScriptError for an unknown name."""
    if token.lower() in ("any", "*"):
        return None
    found = _BY_NAME.get(token.lower())
    if found is None:
        close = difflib.get_close_matches(token.lower(), _BY_NAME, 1)
        hint = f"; did you mean {SHORT[_BY_NAME[close[0]].__name__]}?" if close else ""
        raise ScriptError(f"unknown message kind {token!r}{hint}", line)
    return found


def field_names(kind: type | None) -> tuple[str, ...]:
    """Return the names of all fields that a condition on this kind may use."""
    if kind is None:
        return ENVELOPE_FIELDS
    own = tuple(f.name for f in fields(kind))
    return (*ENVELOPE_FIELDS, *_SPECIAL.get(kind.__name__, ()), *own)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Messages of one kind (or any), on one way (or any), whose fields fulfil all conditions."""

    kind: type | None = None
    direction: Direction = field(default_factory=Direction)
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        name = "any" if self.kind is None else SHORT[self.kind.__name__]
        return " ".join([name, str(self.direction), *map(str, self.conditions)])

    def matches(self, envelope: Envelope, names: Mapping[bytes, str]) -> bool:
        """Return whether a message is meant. `names`: proposal ids as the script calls them."""
        if self.kind is not None and type(envelope.message) is not self.kind:
            return False
        if not self.direction.matches(envelope.source, envelope.destination):
            return False
        return all(condition.holds(field_of(envelope, condition.name, names)) for condition in self.conditions)


def field_of(envelope: Envelope, name: str, names: Mapping[bytes, str]) -> object:
    """Return one field of a message, in the form that scripts compare."""
    message = envelope.message
    if name == "cluster":
        return envelope.cluster_id
    if name in ENVELOPE_FIELDS:
        return getattr(envelope, name)
    if isinstance(message, msg.Append):
        if name == "entries":
            return len(message.entries)
        if name == "terms":
            return tuple(entry.term for entry in message.entries)
        if name == "kinds":
            return tuple(entry.kind.name for entry in message.entries)
        if name == "proposals":
            return tuple(names.get(e.proposal_id, e.proposal_id.hex()) for e in message.entries if e.proposal_id)
    value = getattr(message, "proposal_id" if name == "proposal" else name, None)
    if isinstance(value, bytes) and name.startswith("proposal"):
        return names.get(value, value.hex())
    return value


_SHOWN: dict[str, tuple[str, ...]] = {
    "Hello": ("last_index", "last_term", "commit", "answer", "features"),
    "Append": ("previous_index", "previous_term", "terms", "proposals", "commit", "sequence"),
    "AppendResponse": ("ok", "match", "sequence", "hint_index", "hint_term", "reason"),
    "Heartbeat": ("commit", "read_sequence", "heir"),
    "HeartbeatResponse": ("read_sequence", "applied", "match", "last_index"),
    "SnapshotOffer": ("snapshot_id", "index", "size"),
    "SnapshotChunk": ("snapshot_id", "offset"),
    "Propose": ("proposal",),
    "ProposeResponse": ("proposal", "status", "leader"),
}


def show_message(envelope: Envelope, names: Mapping[bytes, str]) -> str:
    """Return a message in one line: way, kind, term and what matters of its fields."""
    name = type(envelope.message).__name__
    shown = _SHOWN.get(name) or tuple(f.name for f in fields(envelope.message))
    texts = [f"{each}={_show_field(envelope, each, names)}" for each in shown]
    return " ".join([f"{envelope.source}->{envelope.destination}", SHORT[name], f"term={envelope.term}", *texts])


def _show_field(envelope: Envelope, name: str, names: Mapping[bytes, str]) -> str:
    value = field_of(envelope, name, names)
    return "(configuration)" if isinstance(value, Configuration) else show_value(value)
