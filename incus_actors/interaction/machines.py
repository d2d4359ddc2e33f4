"""The commands of scripts that act on machines: disks, state, files, life and death, links.

Owns their readers; registered by commands.py. Must never do more than one event of a machine at a time.
"""

from __future__ import annotations

import re
from dataclasses import replace

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import MemberId
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.files import NAMES as JOB_NAMES
from incus_actors.interaction.script import Action, Grammar, Words
from incus_actors.interaction.world import World
from incus_actors.model.features import SUPPORTED


def register(grammar: Grammar) -> None:
    """Add these commands to the grammar."""
    for usage, reader in (
        ("manual MEMBERS disk|state|files …", _manual),
        ("auto MEMBERS disk|state|files …", _auto),
        ("complete MEMBER [COUNT|all]", _complete),
        ("fail MEMBER full|io", _fail),
        ("apply MEMBER [COUNT|all]", _apply),
        ("finish MEMBER [compact|take|read|store|install] [COUNT|all]", _finish),
        ("abort MEMBER [take|read|store|install] [REASON]", _abort),
        ("compact MEMBERS INDEX", _compact),
        ("free MEMBERS KIB", _free),
        ("diverge MEMBER", _diverge),
        ("crash MEMBERS [applied=N]", _crash),
        ("kill MEMBERS", _kill),
        ("restart MEMBERS [amnesia] [features=N]", _restart),
        ("join MEMBER [features=N]", _join),
        ("shutdown MEMBER [REASON]", _shutdown),
        ("link up|down MEMBER [at=MEMBERS] [evidence=E0|E1|E2|E3]", _link),
    ):
        grammar.command(usage)(reader)


# -- disks, state, files ----------------------------------------------------------------------------------------------


def _manual(words: Words) -> Action:
    return _mode(words, manual=True)


def _auto(words: Words) -> Action:
    return _mode(words, manual=False)


def _mode(words: Words, *, manual: bool) -> Action:
    members = words.members()
    what = [words.choice("what", ("disk", "state", "files"))]
    while words:
        what.append(words.choice("what", ("disk", "state", "files")))

    def act(world: World) -> None:
        world.boot()
        for member in members.ids or sorted(world.machines):
            for each in what:
                (world.manual.add if manual else world.manual.discard)((member, each))

    return act


def _done(member: MemberId, what: str, done: int, wanted: int | None) -> None:
    if not done or (wanted is not None and done < wanted):
        raise StepFailedError(f"member {member} has no {what} that waits", expected=str(wanted or 1), found=str(done))


def _complete(words: Words) -> Action:
    member, count = words.member(), words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, "write", world.complete(member, count), count)

    return act


def _fail(words: Words) -> Action:
    member, kind = words.member(), words.choice("the kind of failure", ("full", "io"))

    def act(world: World) -> None:
        world.running(member)
        if not world.writes[member]:
            raise StepFailedError(f"member {member} has no write that waits")
        world.step(member, ev.LogFailed(world.writes[member][0].write_id, kind))

    return act


def _apply(words: Words) -> Action:
    member, count = words.member(), words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, "entry to apply", world.apply(member, count), count)

    return act


def _finish(words: Words) -> Action:
    member = words.member()
    kind = words.take("the job") if words.peek() in JOB_NAMES else ""
    count = words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, f"{kind} job".strip(), world.finish(member, kind, count), count)

    return act


def _abort(words: Words) -> Action:
    member = words.member()
    kind = words.take("the job") if words.peek() in JOB_NAMES else ""
    reason = words.take("the reason") if words else "disk"

    def act(world: World) -> None:
        world.running(member)
        _done(member, f"{kind} job".strip(), world.finish(member, kind, 1, failing=reason), 1)

    return act


def _compact(words: Words) -> Action:
    members, index = words.members(), words.number("the index", least=1)

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.running(member)
            machine = world.machines[member]
            if index > machine.state.index:
                raise StepFailedError(f"member {member} has only applied {machine.state.index}")
            machine.compact(index)
            world.step(member, ev.Compacted(index))

    return act


def _free(words: Words) -> Action:
    members, kib = words.members(), words.number("the free space in KiB")

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.free_kib[member] = kib

    return act


def _diverge(words: Words) -> Action:
    member = words.member()

    def act(world: World) -> None:
        world.select((member,))
        world.machines[member].state.salt = b"damaged"

    return act


# -- life and links ---------------------------------------------------------------------------------------------------


def _crash(words: Words) -> Action:
    members = words.members()
    given = words.options("applied")
    applied = words.as_number(given["applied"], "applied") if "applied" in given else None

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.running(member)
            world.crash(member)
            if applied is not None and not world.machines[member].rewind(applied):
                raise StepFailedError(f"the state of member {member} cannot go back to {applied}")

    return act


def _kill(words: Words) -> Action:
    members = words.members()

    def act(world: World) -> None:
        killed = world.select(members.ids)
        for member in killed:
            world.running(member)
            world.crash(member)
        for other in sorted(world.cores):
            for member in killed:
                world.step(other, ev.LinkDown(member, "E2"))

    return act


def _restart(words: Words) -> Action:
    members = words.members()
    burnt = words.peek() == "amnesia"
    if burnt:
        words.take("amnesia")
    given = words.options("features")
    features = words.as_number(given["features"], "features") if given else None

    def act(world: World) -> None:
        world.boot()
        for member in members.ids or sorted(world.machines):
            if member not in world.machines:
                raise StepFailedError(f"there is no member {member}")
            world.crash(member)
            machine = world.machines[member]
            if burnt:
                machine.durable = replace(machine.durable, amnesia=True)
            if features is not None:
                machine.durable = replace(machine.durable, features=features)
            world.start(member)

    return act


def _join(words: Words) -> Action:
    member = words.member()
    features = words.as_number(words.options("features").get("features", str(SUPPORTED)), "features")

    def act(world: World) -> None:
        world.boot()
        world.join(member, features)

    return act


def _shutdown(words: Words) -> Action:
    member = words.member()
    why = words.take("the reason") if words else "shutdown"

    def act(world: World) -> None:
        world.running(member)
        world.step(member, ev.Shutdown(why))
        world.crash(member)

    return act


def _link(words: Words) -> Action:
    state, member = words.choice("the state", ("up", "down")), words.member()
    given = words.options("at", "evidence")
    at = words.as_members(given["at"]).ids if "at" in given else ()
    evidence = given.get("evidence", "E2")
    if not re.fullmatch("E[0-3]", evidence):
        raise words.error(f"evidence must be E0, E1, E2 or E3, not {evidence!r}")

    def act(world: World) -> None:
        world.select((member,))
        for other in at or sorted(world.cores):
            if other == member:
                continue
            world.running(other)
            world.step(other, ev.LinkDown(member, evidence) if state == "down" else ev.LinkUp(member))

    return act
