"""The replicated state machine of the simulator: a small key-value store with guards, in memory.

Owns state, answers already given (exactly-once) and the running digest, as `state/apply.py` keeps them; called by
hosts for each committed entry. Must be deterministic: nothing but the entry decides what it does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, TypeAlias

from incus_actors.consensus.types import GENESIS_CHAIN, Entry, EntryKind, Index
from incus_actors.model.features import decode_level

Value: TypeAlias = str | tuple[int, ...] | None
#: (status, value of each action, index where it was executed); status: applied, conflict, too_old
Outcome: TypeAlias = tuple[str, tuple[Value, ...], Index]
TOO_OLD: Outcome = ("too_old", (), 0)


@dataclass(frozen=True, slots=True)
class Action:
    """`set` key to a text, `append` a number to the list at key, or `get` key."""

    kind: str
    key: str
    value: str | int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """Actions that happen together, if the key of every guard has the value it expects."""

    actions: tuple[Action, ...]
    guards: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """All of a state at one index: what a transfer snapshot holds. `content` belongs to the kind of machine."""

    index: Index
    chain: bytes
    digest: bytes
    content: object
    level: int = 0  #: the feature level that is switched on


def noisy(digest: bytes, noise: int) -> bytes:
    """Return the digest of a state that was damaged."""
    return blake2b(digest + noise.to_bytes(8, "big"), digest_size=8).digest()


class Machine(Protocol):
    """What a host needs of a state machine."""

    @property
    def index(self) -> Index:
        """What is applied."""

    @property
    def chain(self) -> bytes:
        """The chain of hashes there."""

    @property
    def digest(self) -> bytes:
        """The running digest there."""

    @property
    def level(self) -> int:
        """The feature level that is switched on."""

    def encode(self, command: Command) -> bytes:
        """Return the body of a proposal."""

    def encode_expire(self, cutoff_ms: int) -> bytes:
        """Return the body of an EXPIRE entry."""

    def apply(self, entries: tuple[Entry, ...]) -> list[Outcome | None]:
        """Apply contiguous entries; return what each gave, None for those without a meaning here."""

    def read(self, keys: tuple[str, ...]) -> tuple[Value, ...]:
        """Return the values of some keys at one moment."""

    def image(self) -> Image:
        """Return a copy of everything."""

    def restore(self, image: Image) -> None:
        """Become what an image says."""

    def diverge(self, noise: int) -> None:
        """Bits flip that only the digest shows; never the same ones on two members."""

    def reopen(self) -> None:
        """A new process opens what is there."""

    def close(self) -> None:
        """Release files."""


@dataclass(slots=True)
class _Content:
    values: dict[str, Value]
    sessions: dict[bytes, Outcome]
    horizon_ms: int


class MemoryMachine:
    """In memory: values are immutable, so copies are cheap."""

    def __init__(self) -> None:
        self.index: Index = 0
        self.chain = GENESIS_CHAIN
        self.digest = b"\0" * 8
        self.values: dict[str, Value] = {}
        self.sessions: dict[bytes, Outcome] = {}
        self.horizon_ms = 0
        self.level = 0

    def encode(self, command: Command) -> bytes:
        """Return the body of a proposal."""
        actions = [[action.kind, action.key, action.value] for action in command.actions]
        return json.dumps([actions, command.guards]).encode()

    def encode_expire(self, cutoff_ms: int) -> bytes:
        """Return the body of an EXPIRE entry."""
        return json.dumps(cutoff_ms).encode()

    def apply(self, entries: tuple[Entry, ...]) -> list[Outcome | None]:
        """Apply contiguous entries."""
        return [self._apply_one(entry) for entry in entries]

    def _apply_one(self, entry: Entry) -> Outcome | None:
        if entry.index != self.index + 1:
            raise ValueError(f"entry {entry.index} can't follow {self.index}")
        self.index, self.chain = entry.index, entry.chain
        if entry.kind not in (EntryKind.SQL, EntryKind.EXPIRE, EntryKind.FEATURE):
            return None
        outcome = self._answered(entry.proposal_id)
        if outcome is None:
            outcome = self._run(entry)
            self.sessions[entry.proposal_id] = outcome
        digest = blake2b(self.digest + entry.index.to_bytes(8, "big"), digest_size=8)
        digest.update(repr(outcome).encode())
        self.digest = digest.digest()
        return outcome

    def _run(self, entry: Entry) -> Outcome:
        if entry.kind is EntryKind.EXPIRE:
            return self._expire(entry)
        if entry.kind is EntryKind.FEATURE:
            self.level = max(self.level, decode_level(entry.body))
            return ("applied", (), entry.index)
        return self._execute(entry)

    def _answered(self, proposal_id: bytes) -> Outcome | None:
        known = self.sessions.get(proposal_id)
        if known is None and int.from_bytes(proposal_id[:6], "big") <= self.horizon_ms:
            return TOO_OLD
        return known

    def _expire(self, entry: Entry) -> Outcome:
        cutoff_ms = min(json.loads(entry.body), entry.timestamp_ms)
        self.horizon_ms = max(self.horizon_ms, cutoff_ms)
        mark = (max(0, self.horizon_ms) + 1).to_bytes(6, "big")
        self.sessions = {known: outcome for known, outcome in self.sessions.items() if known >= mark}
        return ("applied", (), entry.index)

    def _execute(self, entry: Entry) -> Outcome:
        actions, guards = json.loads(entry.body)
        values = self.values
        for key, expected in guards:
            if values.get(key) != expected:
                return ("conflict", (), entry.index)
        found: list[Value] = []
        for kind, key, value in actions:
            if kind == "set":
                values[key] = value
                found.append(value)
            elif kind == "append":
                before = values.get(key) or ()
                values[key] = after = (*before, value) if isinstance(before, tuple) else (value,)
                found.append(after)
            else:
                found.append(values.get(key))
        return ("applied", tuple(found), entry.index)

    def read(self, keys: tuple[str, ...]) -> tuple[Value, ...]:
        """Return the values of some keys at one moment."""
        return tuple(self.values.get(key) for key in keys)

    def image(self) -> Image:
        """Return a copy of everything."""
        content = _Content(dict(self.values), dict(self.sessions), self.horizon_ms)
        return Image(self.index, self.chain, self.digest, content, self.level)

    def restore(self, image: Image) -> None:
        """Become what an image says."""
        content = image.content
        if not isinstance(content, _Content):
            raise TypeError(content)
        self.index, self.chain, self.digest = image.index, image.chain, image.digest
        self.values, self.sessions = dict(content.values), dict(content.sessions)
        self.horizon_ms, self.level = content.horizon_ms, image.level

    def diverge(self, noise: int) -> None:
        """Bits flip that only the digest shows; never the same ones on two members."""
        self.digest = noisy(self.digest, noise)

    def reopen(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to release."""
