"""Messages that no core has sent: `send A->B KIND FIELD=VALUE…`.

Owns the making of a message from a line of a script; used by commands.py. What is not given gets a harmless default;
entries follow from the sender's log, so that only what the script says is wrong with them.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields, replace
from typing import Any

from incus_actors.consensus.messages import Envelope, Message, WireEntry
from incus_actors.consensus.types import Configuration, EntryKind, MemberId
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.machine import proposal_id
from incus_actors.interaction.patterns import ENVELOPE_FIELDS, suggest
from incus_actors.interaction.script import Words
from incus_actors.interaction.values import NONE
from incus_actors.interaction.world import World


@dataclass(frozen=True, slots=True)
class Forgery:
    """A message as the script describes it; made when it is sent, because defaults depend on the world."""

    kind: type
    source: MemberId
    destination: MemberId
    values: dict[str, Any]
    envelope: dict[str, Any]
    labels: tuple[str, ...] = ()

    def make(self, world: World) -> Envelope:
        """Return the envelope."""
        for member in (self.source, self.destination):
            if member not in world.machines:
                raise StepFailedError(f"there is no member {member}")
        world.names.update({proposal_id(label): label for label in self.labels})
        hints = typing.get_type_hints(self.kind)
        values = {each.name: self.values.get(each.name, _default(hints[each.name])) for each in fields(self.kind)}
        durable = world.machines[self.source].durable
        if "configuration" in values:
            core = world.cores.get(self.source)
            values["configuration"] = durable.snapshot.configuration if core is None else core.configuration
        if "previous_chain" in values and "previous_chain" not in self.values:
            values["previous_chain"] = _chain(world, self.source, values["previous_index"])
        core = world.cores.get(self.source)
        term = durable.hard.term if core is None else core.term
        message: Message = self.kind(**values)
        made = world.envelope(self.source, self.destination, message, term)
        return replace(made, **self.envelope)


def _chain(world: World, source: MemberId, index: int) -> bytes:
    core = world.cores.get(source)
    if core is not None:
        return core.log.chain_at(index) or bytes(8)
    entry = world.machines[source].entry(index)
    return bytes(8) if entry is None else entry.chain


def _default(hint: Any) -> Any:
    if hint is Configuration:
        return None
    if hint is EntryKind:
        return EntryKind.SQL
    if typing.get_origin(hint) is tuple:
        return ()
    return hint()


def parse_forgery(words: Words, kind: type, source: MemberId, destination: MemberId) -> Forgery:
    """Take `FIELD=VALUE…` for a message of this kind."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    envelope: dict[str, Any] = {}
    aliases = {"proposal": "proposal_id"}
    known = [*ENVELOPE_FIELDS, *(each.name for each in fields(kind))]
    for word in words.words:
        name, sign, text = word.partition("=")
        name = aliases.get(name, name)
        if not sign or (name not in hints and name not in ENVELOPE_FIELDS):
            raise words.error(f"{kind.__name__} has no field {name!r}{suggest(name, known)}")
        if name in hints and hints[name] is Configuration:
            raise words.error("the configuration of an offer is the sender's own")
        if name == "cluster":
            envelope["cluster_id"] = text.encode()[:8].ljust(8, b"\0")
        elif name in ENVELOPE_FIELDS:
            envelope[name] = words.as_number(text, name)
        else:
            values[name] = _value(words, name, hints[name], text)
    labels = [text for name, _, text in (word.partition("=") for word in words.words) if name in aliases]
    labels += [item.body.decode() for item in values.get("entries", ()) if item.kind is EntryKind.SQL]
    words.words.clear()
    return Forgery(kind, source, destination, values, envelope, tuple(labels))


def _value(words: Words, name: str, hint: Any, text: str) -> Any:
    if hint is bool:
        if text not in ("true", "false"):
            raise words.error(f"{name} must be true or false, not {text!r}")
        return text == "true"
    if hint is EntryKind:
        if text.upper() not in EntryKind.__members__:
            raise words.error(f"{name} must be one of {', '.join(EntryKind.__members__).lower()}, not {text!r}")
        return EntryKind[text.upper()]
    if hint is int:
        return 0 if text == NONE else words.as_number(text, name)
    if hint is bytes:
        if name == "proposal_id":
            return proposal_id(text)
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise words.error(f"{name} must be hexadecimal, not {text!r}") from None
    if name == "entries":
        return tuple(_entry(words, item, number) for number, item in enumerate(text.split(","), 1) if item)
    if typing.get_origin(hint) is tuple:
        return words.as_ids(text) if text != "none" else ()
    return text


def _entry(words: Words, item: str, number: int) -> WireEntry:
    """`TERM` or `TERM:TEXT`; `TERM:config:GARBAGE` is an entry of kind CONFIG with that body."""
    term, _, text = item.partition(":")
    value = words.as_number(term, "the term of an entry", least=1)
    if text.startswith("config:"):
        return WireEntry(value, EntryKind.CONFIG, number, b"", text.removeprefix("config:").encode())
    label = text or f"forged-{number}"
    return WireEntry(value, EntryKind.SQL, number, proposal_id(label), label.encode())
