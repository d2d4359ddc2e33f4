"""The commands of scripts that act on the network: deliver, drop, duplicate, hold, cut, send.

Owns their readers; registered by commands.py. Must never touch a core other than by handing it a message.
"""

from __future__ import annotations

from incus_actors.consensus.types import MemberId
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.forging import parse_forgery
from incus_actors.interaction.network import Flight
from incus_actors.interaction.patterns import Pattern, parse_direction
from incus_actors.interaction.script import Action, Grammar, Words
from incus_actors.interaction.world import World


def register(grammar: Grammar) -> None:
    """Add these commands to the grammar."""
    for usage, reader in (
        ("deliver [KIND] [A->B] [FIELD=VALUE…] [count=N]", _deliver),
        ("drop [KIND] [A->B] [FIELD=VALUE…] [count=N]", _drop),
        ("duplicate [KIND] [A->B] [FIELD=VALUE…] [count=N]", _duplicate),
        ("hold KIND [A->B] [FIELD=VALUE…]", _hold),
        ("release [KIND] [A->B] [FIELD=VALUE…]", _release),
        ("cut A->B | A<->B", _cut),
        ("isolate MEMBERS", _isolate),
        ("partition MEMBERS | MEMBERS …", _partition),
        ("heal", _heal),
        ("settle", _settle),
        ("send A->B KIND [FIELD=VALUE…] [term=N]", _send),
        ("mark", _mark),
    ):
        grammar.command(usage)(reader)


def _select(words: Words) -> tuple[Pattern, int | None]:
    pattern, count = words.pattern()
    if count is None:
        return pattern, None
    if count.operator != "=" or int(count.value) < 1:
        raise words.error("count= takes a number of at least 1 here")
    return pattern, int(count.value)


def _chosen(world: World, pattern: Pattern, count: int | None) -> list[Flight]:
    """Messages under way that are meant. Naming messages that do not exist is an error of the script."""
    world.boot()
    found = world.network.matching(pattern)[:count]
    named = pattern.kind is not None or count is not None
    if (named and not found) or (count is not None and len(found) < count):
        under_way = [flight.show(world.names) for flight in world.network.under_way[-12:]]
        raise StepFailedError(
            "no such message is under way",
            expected=f"{count or 'at least 1'} of {pattern}",
            found=f"{len(found)}; under way: " + ("".join(f"\n      {line}" for line in under_way) or "nothing"),
        )
    return found


def _deliver(words: Words) -> Action:
    pattern, count = _select(words)

    def act(world: World) -> None:
        for flight in _chosen(world, pattern, count):
            if flight in world.network.under_way:
                running = flight.envelope.destination in world.cores
                world.receive(world.network.take(flight, "delivered" if running else "lost: not running"))

    return act


def _drop(words: Words) -> Action:
    pattern, count = _select(words)

    def act(world: World) -> None:
        for flight in _chosen(world, pattern, count):
            world.network.take(flight, "dropped")

    return act


def _duplicate(words: Words) -> Action:
    pattern, count = _select(words)

    def act(world: World) -> None:
        for flight in _chosen(world, pattern, count):
            world.network.send(flight.envelope)

    return act


def _uncounted(words: Words, *, required: bool = False) -> Pattern:
    pattern, count = words.pattern(required=required)
    if count is not None:
        raise words.error(f"{words.verb} takes no count=")
    return pattern


def _hold(words: Words) -> Action:
    pattern = _uncounted(words, required=True)

    def act(world: World) -> None:
        world.boot()
        world.network.holds.append(pattern)

    return act


def _release(words: Words) -> Action:
    everything = not words
    pattern = _uncounted(words)

    def act(world: World) -> None:
        world.boot()
        if everything:
            world.network.holds.clear()
        elif pattern in world.network.holds:
            world.network.holds.remove(pattern)
        else:
            held = ", ".join(map(str, world.network.holds)) or "nothing"
            raise StepFailedError(f"{pattern} is not held", found=f"held: {held}")

    return act


def _cut(words: Words) -> Action:
    token = words.take("A->B")
    direction = parse_direction(token)
    if direction is None:
        raise words.error(f"expected A->B, not {token!r}")

    def act(world: World) -> None:
        world.boot()
        for one in world.machines:
            for other in world.machines:
                if one != other and direction.matches(one, other):
                    world.network.cut(one, other)

    return act


def _divide(world: World, groups: list[list[MemberId]]) -> None:
    place = {member: number for number, group in enumerate(groups, 1) for member in group}
    for one in world.machines:
        for other in world.machines:
            if one != other and place.get(one, 0) != place.get(other, 0):
                world.network.cut(one, other)


def _isolate(words: Words) -> Action:
    members = words.members()

    def act(world: World) -> None:
        world.select(members.ids)
        _divide(world, [[member] for member in members.ids or world.machines])

    return act


def _partition(words: Words) -> Action:
    groups: list[list[MemberId]] = [[]]
    for word in words.words:
        if word == "|":
            groups.append([])
        else:
            groups[-1].extend(words.as_ids(word))
    words.words.clear()
    flat = [member for group in groups for member in group]
    if len(groups) < 2 or not all(groups) or len(set(flat)) != len(flat):
        raise words.error("expected at least two groups of different members, such as `1,2 | 3-5`")

    def act(world: World) -> None:
        world.select(flat)
        _divide(world, groups)

    return act


def _heal(words: Words) -> Action:
    def act(world: World) -> None:
        world.boot()
        world.network.cuts.clear()

    return act


def _settle(words: Words) -> Action:
    return lambda world: world.settle()


def _send(words: Words) -> Action:
    kind, direction = words.kind_and_way(required=True)
    if direction.source is None or direction.destination is None or direction.both_ways:
        raise words.error(f"expected A->B with two members, not {direction}")
    if kind is None:
        raise words.error("the kind of message must be named")
    forgery = parse_forgery(words, kind, direction.source, direction.destination)

    def act(world: World) -> None:
        world.boot()
        world.network.line = world.line
        world.network.send(forgery.make(world))

    return act


def _mark(words: Words) -> Action:
    def act(world: World) -> None:
        world.boot()
        world.network.begin(world.line)

    return act
