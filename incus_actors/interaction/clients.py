"""The commands of scripts that ask members for something: propose, read, transfer, change.

Owns their readers; registered by commands.py. Every request has a name, by which `expect result` finds its end.
"""

from __future__ import annotations

import re
from dataclasses import replace

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import EntryKind, Member, MemberId, Role
from incus_actors.interaction.machine import proposal_id
from incus_actors.interaction.script import Action, Grammar, Words
from incus_actors.interaction.world import World
from incus_actors.model.features import encode_level

DEADLINE_MS = 1 << 40
MOST_BODY = 4 << 20
MOST_LEVEL = 1000
KINDS = "sql|schema|expire|check|delete|feature"


def register(grammar: Grammar) -> None:
    """Add these commands to the grammar."""
    for usage, reader in (
        (
            f"propose MEMBER NAME [deadline=TIME] [kind={KINDS}] [body=TEXT | size=BYTES | level=N]",
            _propose,
        ),
        ("read MEMBER NAME [deadline=TIME]", _read),
        ("transfer MEMBER NAME [to=ID]", _transfer),
        ("change MEMBER NAME voters=IDS [standbys=IDS] [spares=IDS] [address.ID=TEXT] [domain.ID=TEXT]", _change),
    ):
        grammar.command(usage)(reader)


def _label(words: Words) -> str:
    label = words.take("the name of the request")
    if not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,60}", label):
        raise words.error(f"a name is made of letters, digits and _.:/-, not {label!r}")
    return label


def _deadline(words: Words, given: dict[str, str]) -> int | None:
    return words.as_duration(given["deadline"], "the deadline") if "deadline" in given else None


def _at(world: World, member: MemberId, ms: int | None) -> int:
    return DEADLINE_MS if ms is None else world.clocks[member] + ms


def _propose(words: Words) -> Action:
    member, label = words.member(), _label(words)
    given = words.options("deadline", "kind", "body", "size", "level")
    deadline = _deadline(words, given)
    kind = given.get("kind", "sql").upper()
    if kind not in EntryKind.__members__:
        raise words.error(f"kind must be one of {', '.join(EntryKind.__members__).lower()}")
    body = _body(words, given, label)

    def act(world: World) -> None:
        world.running(member)
        key = proposal_id(label)
        world.names[key] = label
        world.ask(member, label, "propose", key)
        world.step(member, ev.Propose(key, EntryKind[kind], body, 0, _at(world, member, deadline)))

    return act


def _body(words: Words, given: dict[str, str], label: str) -> bytes:
    if len(given.keys() & {"body", "size", "level"}) > 1:
        raise words.error("body=, size= and level= exclude each other")
    if "level" in given:
        level = words.as_number(given["level"], "level", least=1)
        if level > MOST_LEVEL:
            raise words.error(f"level is at most {MOST_LEVEL}")
        return encode_level(level)
    size = words.as_number(given["size"], "size") if "size" in given else 0
    if size > MOST_BODY:
        raise words.error(f"size is at most {MOST_BODY}")
    return bytes(size) if "size" in given else given.get("body", label).encode()


def _read(words: Words) -> Action:
    member, label = words.member(), _label(words)
    deadline = _deadline(words, words.options("deadline"))

    def act(world: World) -> None:
        world.running(member)
        key = world.ask(member, label, "read")
        world.step(member, ev.ReadIndex(int(key), _at(world, member, deadline)))

    return act


def _transfer(words: Words) -> Action:
    member, label = words.member(), _label(words)
    target = words.as_number(words.options("to").get("to", "0"), "to")

    def act(world: World) -> None:
        world.running(member)
        key = world.ask(member, label, "transfer")
        world.step(member, ev.Transfer(int(key), target))

    return act


_ATTRIBUTE = re.compile(r"^(address|domain)\.(\d{1,3})=(.*)$")


def _change(words: Words) -> Action:
    member, label = words.member(), _label(words)
    attributes: dict[MemberId, dict[str, str]] = {}
    for word in list(words.words):
        match = _ATTRIBUTE.match(word)
        if match is not None:
            words.words.remove(word)
            attributes.setdefault(int(match[2]), {})[match[1]] = match[3]
    given = words.options("voters", "standbys", "spares")
    roles: list[tuple[MemberId, Role]] = []
    for name, role in (("voters", Role.VOTER), ("standbys", Role.STANDBY), ("spares", Role.SPARE)):
        if given.get(name, "none") != "none":
            roles.extend((each, role) for each in words.as_ids(given[name]))
    unknown = set(attributes) - {each for each, _ in roles}
    if unknown:
        raise words.error(f"an attribute of {sorted(unknown)}, who is not in the target")

    def act(world: World) -> None:
        core = world.running(member)
        now = core.configuration.members()
        target = []
        for each, role in roles:
            known = now.get(each) or world.genesis.members().get(each) or Member(each, f"m{each}")
            values = attributes.get(each, {})
            changed = replace(known, role=role, address=values.get("address", known.address))
            target.append(replace(changed, domain=values.get("domain", known.domain)))
        key = world.ask(member, label, "change")
        world.step(member, ev.ChangeConfiguration(int(key), tuple(target)))

    return act
