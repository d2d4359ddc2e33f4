"""The commands of scripts that set up a world, let time pass and act on members.

Owns the grammar that every command is registered in (the rest of them: traffic.py, clients.py); used by runner.py.
A reader checks its words when the script is read; what it returns acts on a world. No command may do more than it
says.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import Limits, MemberId, RaftRole, Role, Timing
from incus_actors.interaction import clients, traffic
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.expectations import holds, overview, parse_expect, parse_facts
from incus_actors.interaction.facts import CORE_FACTS, fact
from incus_actors.interaction.files import NAMES as JOB_NAMES
from incus_actors.interaction.patterns import show_value
from incus_actors.interaction.script import Action, Grammar, Words
from incus_actors.interaction.world import MemberSpec, World

GRAMMAR = Grammar()
command = GRAMMAR.command
ROLES = {"voter": Role.VOTER, "standby": Role.STANDBY, "spare": Role.SPARE}
MOST_MEMBERS = 50
ELECT_TRIES = 10

command("expect MEMBERS FACT=VALUE… | [no] sent|pending KIND … | result NAME STATUS | stopped MEMBER")(parse_expect)
traffic.register(GRAMMAR)
clients.register(GRAMMAR)


# -- the beginning ----------------------------------------------------------------------------------------------------


def _define(world: World, spec: MemberSpec) -> None:
    if world.booted:
        raise StepFailedError("members of the beginning come before every other command; later ones with `join`")
    world.specs[spec.id] = spec


@command("members COUNT [ID=voter|standby|spare …]")
def _members(words: Words) -> Action:
    count = words.number("the number of members", least=1)
    if count > MOST_MEMBERS:
        raise words.error(f"at most {MOST_MEMBERS} members")
    roles: dict[MemberId, Role] = {}
    for word in words.words:
        member, _, role = word.partition("=")
        if role not in ROLES or not member.isdigit() or not 1 <= int(member) <= count:
            raise words.error(f"expected ID=voter|standby|spare with an id of 1 to {count}, not {word!r}")
        roles[int(member)] = ROLES[role]
    words.words.clear()

    def act(world: World) -> None:
        for member in range(1, count + 1):
            _define(world, MemberSpec(member, roles.get(member, Role.VOTER)))

    return act


@command("member ID [voter|standby|spare] [term=N] [vote=ID] [log=TERM[:TEXT],…] [applied=N] [snapshot=N] [down] …")
def _member(words: Words) -> Action:
    spec = MemberSpec(words.member())
    for flag in [word for word in words.words if "=" not in word]:
        words.words.remove(flag)
        if flag in ROLES:
            spec.role = ROLES[flag]
        elif flag in ("down", "amnesia"):
            setattr(spec, flag, True)
        else:
            raise words.error(f"unexpected {flag!r}: a role, `down` or `amnesia`")
    given = words.options("term", "vote", "log", "applied", "snapshot", "address", "domain")
    spec.log = _log(words, given.get("log", ""))
    for name in ("term", "vote", "applied", "snapshot"):
        setattr(spec, name, words.as_number(given.get(name, "0"), name))
    if spec.applied > len(spec.log) or spec.snapshot > spec.applied:
        raise words.error("needs snapshot <= applied <= the length of the log")
    spec.address, spec.domain = given.get("address", ""), given.get("domain", "default")
    return lambda world: _define(world, replace(spec, log=list(spec.log)))


def _log(words: Words, text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for item in filter(None, text.split(",")):
        term, _, label = item.partition(":")
        value = words.as_number(term, "the term of an entry", least=1)
        if found and value < found[-1][0]:
            raise words.error(f"terms in a log never fall: {text}")
        found.append((value, label))
    return found


def _settings(words: Words, kind: type) -> dict[str, Any]:
    names = {each.name for each in fields(kind) if each.type == "int"}
    given = words.options(*sorted(names))
    if not given:
        raise words.error("NAME=VALUE is missing")
    return {name: words.as_number(value, name) for name, value in given.items()}


@command("timing NAME=MS …")
def _timing(words: Words) -> Action:
    given = _settings(words, Timing)

    def act(world: World) -> None:
        if world.booted:
            raise StepFailedError("timing comes before every other command")
        world.timing = replace(world.timing, **given)

    return act


@command("limits NAME=NUMBER …")
def _limits(words: Words) -> Action:
    given = _settings(words, Limits)

    def act(world: World) -> None:
        if world.booted:
            raise StepFailedError("limits come before every other command")
        world.limits = replace(world.limits, **given)

    return act


# -- time -------------------------------------------------------------------------------------------------------------


@command("tick MEMBERS [TIME]")
def _tick(words: Words) -> Action:
    members = words.members()
    ms = words.duration() if words else 10

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.running(member)
            world.pass_time(member, ms)

    return act


@command("run TIME [only=MEMBERS] [until MEMBERS FACT=VALUE…]")
def _run(words: Words) -> Action:
    ms = words.duration()
    only: tuple[MemberId, ...] = ()
    if words.peek().startswith("only="):
        only = words.as_ids(words.take("only=").removeprefix("only="))
    if not words:
        return lambda world: _let_run(world, ms, only)
    if words.take("until") != "until":
        raise words.error("expected only=MEMBERS or until MEMBERS FACT=VALUE…")
    members = words.as_members(words.take("the member"), also=("any",))
    facts = parse_facts(words)

    def act(world: World) -> None:
        chosen = _clocks(world, only)
        if not world.run(ms, chosen, lambda: holds(world, members, facts)):
            wanted = " ".join([members.word, *map(str, facts)])
            raise StepFailedError(f"not within {ms} ms", expected=wanted, found=overview(world))

    return act


def _let_run(world: World, ms: int, only: tuple[MemberId, ...]) -> None:
    world.run(ms, _clocks(world, only))


def _clocks(world: World, only: tuple[MemberId, ...]) -> list[MemberId]:
    world.boot()
    return world.select(only) if only else sorted(world.machines)


@command("timeout MEMBERS TIME")
def _timeout(words: Words) -> Action:
    members, ms = words.members(), words.duration()

    def act(world: World) -> None:
        for member in world.select(members.ids):
            core = world.running(member)
            timing = world.timing
            world.dice[member].election = (timing.election_min_ms, timing.election_max_ms, ms)
            core.election_timeout_ms = ms
            core.set_election_deadline(world.clocks[member] + ms)

    return act


@command("campaign MEMBER")
def _campaign(words: Words) -> Action:
    member = words.member()
    return lambda world: campaign(world, member)


def campaign(world: World, member: MemberId) -> None:
    """Make the election timer of a member run out now."""
    core = world.running(member)
    if core.role is RaftRole.LEADER:
        raise StepFailedError(f"member {member} leads already")
    core.set_election_deadline(world.clocks[member])
    world.tick(member)


@command("elect MEMBER")
def _elect(words: Words) -> Action:
    member = words.member()

    def act(world: World) -> None:
        core = world.running(member)
        for _ in range(ELECT_TRIES):
            if core.role is RaftRole.LEADER:
                break
            for other in world.cores:
                if other != member:
                    world.clocks[other] += world.timing.election_max_ms + 50
            campaign(world, member)
            world.settle()
        if core.role is not RaftRole.LEADER:
            raise StepFailedError(f"member {member} cannot be elected", found=overview(world))
        world.pass_time(member, world.timing.heartbeat_ms)
        world.settle()
        world.network.mark = len(world.network.sent)

    return act


@command("stall MEMBER TIME")
def _stall(words: Words) -> Action:
    member, ms = words.member(), words.duration()

    def act(world: World) -> None:
        world.running(member)
        world.clocks[member] += ms
        world.step(member, ev.Stalled(ms))

    return act


# -- disks, state, files ----------------------------------------------------------------------------------------------


@command("manual MEMBERS disk|state|files …")
def _manual(words: Words) -> Action:
    return _mode(words, manual=True)


@command("auto MEMBERS disk|state|files …")
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


@command("complete MEMBER [COUNT|all]")
def _complete(words: Words) -> Action:
    member, count = words.member(), words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, "write", world.complete(member, count), count)

    return act


@command("fail MEMBER full|io")
def _fail(words: Words) -> Action:
    member, kind = words.member(), words.choice("the kind of failure", ("full", "io"))

    def act(world: World) -> None:
        world.running(member)
        if not world.writes[member]:
            raise StepFailedError(f"member {member} has no write that waits")
        world.step(member, ev.LogFailed(world.writes[member][0].write_id, kind))

    return act


@command("apply MEMBER [COUNT|all]")
def _apply(words: Words) -> Action:
    member, count = words.member(), words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, "entry to apply", world.apply(member, count), count)

    return act


@command("finish MEMBER [compact|take|read|store|install] [COUNT|all]")
def _finish(words: Words) -> Action:
    member = words.member()
    kind = words.take("the job") if words.peek() in JOB_NAMES else ""
    count = words.count_or_all()

    def act(world: World) -> None:
        world.running(member)
        _done(member, f"{kind} job".strip(), world.finish(member, kind, count), count)

    return act


@command("abort MEMBER [take|read|store|install] [REASON]")
def _abort(words: Words) -> Action:
    member = words.member()
    kind = words.take("the job") if words.peek() in JOB_NAMES else ""
    reason = words.take("the reason") if words else "disk"

    def act(world: World) -> None:
        world.running(member)
        _done(member, f"{kind} job".strip(), world.finish(member, kind, 1, failing=reason), 1)

    return act


@command("compact MEMBERS INDEX")
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


@command("free MEMBERS KIB")
def _free(words: Words) -> Action:
    members, kib = words.members(), words.number("the free space in KiB")

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.free_kib[member] = kib

    return act


@command("diverge MEMBER")
def _diverge(words: Words) -> Action:
    member = words.member()

    def act(world: World) -> None:
        world.select((member,))
        world.machines[member].state.salt = b"damaged"

    return act


# -- life and links ---------------------------------------------------------------------------------------------------


@command("crash MEMBERS [applied=N]")
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


@command("kill MEMBER")
def _kill(words: Words) -> Action:
    member = words.member()

    def act(world: World) -> None:
        world.running(member)
        world.crash(member)
        for other in sorted(world.cores):
            world.step(other, ev.LinkDown(member, "E2"))

    return act


@command("restart MEMBERS [amnesia]")
def _restart(words: Words) -> Action:
    members = words.members()
    burnt = words.peek() == "amnesia"
    if burnt:
        words.take("amnesia")

    def act(world: World) -> None:
        world.boot()
        for member in members.ids or sorted(world.machines):
            if member not in world.machines:
                raise StepFailedError(f"there is no member {member}")
            world.crash(member)
            machine = world.machines[member]
            if burnt:
                machine.durable = replace(machine.durable, amnesia=True)
            world.start(member)

    return act


@command("join MEMBER")
def _join(words: Words) -> Action:
    member = words.member()

    def act(world: World) -> None:
        world.boot()
        world.join(member)

    return act


@command("shutdown MEMBER [REASON]")
def _shutdown(words: Words) -> Action:
    member = words.member()
    why = words.take("the reason") if words else "shutdown"

    def act(world: World) -> None:
        world.running(member)
        world.step(member, ev.Shutdown(why))
        world.crash(member)

    return act


@command("link up|down MEMBER [at=MEMBERS] [evidence=E0|E1|E2|E3]")
def _link(words: Words) -> Action:
    state, member = words.choice("the state", ("up", "down")), words.member()
    given = words.options("at", "evidence")
    at = words.as_ids(given["at"]) if "at" in given else ()
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


# -- looking ----------------------------------------------------------------------------------------------------------


@command("show MEMBERS|messages|pending|results")
def _show(words: Words) -> Action:
    if words.peek() in ("messages", "pending", "results"):
        what = words.take("what")
        return lambda world: _show_list(world, what)
    members = words.members()

    def act(world: World) -> None:
        for member in world.select(members.ids):
            world.notes.append(overview(world).split("; ")[sorted(world.machines).index(member)])
            if member in world.cores:
                rest = {name: show_value(fact(world, member, name, "")) for name in CORE_FACTS}
                world.notes.append("   " + " ".join(f"{name}={value}" for name, value in rest.items()))

    return act


def _show_list(world: World, what: str) -> None:
    world.boot()
    if what == "messages":
        world.notes.extend(flight.show(world.names) for flight in world.network.sent[world.network.mark :])
    elif what == "pending":
        world.notes.extend(flight.show(world.names) for flight in world.network.under_way)
    else:
        for request in world.requests.values():
            world.notes.append(
                f"{request.kind} {request.label}@{request.member}: {request.status} index={request.index} "
                f"result={show_value(request.result)} {request.detail}".rstrip()
            )
