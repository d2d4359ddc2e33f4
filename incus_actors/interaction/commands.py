"""The commands of scripts that set up a world, let time pass and look at it.

Owns the grammar that every command is registered in (the rest of them: machines.py, traffic.py, clients.py); used by runner.py.
A reader checks its words when the script is read; what it returns acts on a world. No command may do more than it
says.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import Limits, MemberId, RaftRole, Role, Timing
from incus_actors.interaction import clients, machines, traffic
from incus_actors.interaction.cast import MemberSpec
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.expectations import holds, overview, parse_expect, parse_facts
from incus_actors.interaction.facts import CORE_FACTS, fact
from incus_actors.interaction.patterns import show_value
from incus_actors.interaction.script import Action, Grammar, Words
from incus_actors.interaction.world import World

GRAMMAR = Grammar()
command = GRAMMAR.command
ROLES = {"voter": Role.VOTER, "standby": Role.STANDBY, "spare": Role.SPARE}
MOST_MEMBERS = 50
ELECT_TRIES = 10

command("expect MEMBERS FACT=VALUE… | [no] sent|pending KIND … | result NAME STATUS | stopped MEMBER")(parse_expect)
machines.register(GRAMMAR)
traffic.register(GRAMMAR)
clients.register(GRAMMAR)


# -- the beginning ----------------------------------------------------------------------------------------------------


def _define(world: World, spec: MemberSpec) -> None:
    if world.booted:
        raise StepFailedError("members of the beginning come before every other command; later ones with `join`")
    world.specs[spec.id] = spec


@command("members COUNT [IDS=voter|standby|spare …]")
def _members(words: Words) -> Action:
    count = words.number("the number of members", least=1)
    if count > MOST_MEMBERS:
        raise words.error(f"at most {MOST_MEMBERS} members")
    roles: dict[MemberId, Role] = {}
    for word in words.words:
        ids, _, role = word.partition("=")
        if role not in ROLES or not ids or max(words.as_ids(ids)) > count:
            raise words.error(f"expected IDS=voter|standby|spare with an id of 1 to {count}, not {word!r}")
        roles.update(dict.fromkeys(words.as_ids(ids), ROLES[role]))
    words.words.clear()

    def act(world: World) -> None:
        for member in range(1, count + 1):
            _define(world, MemberSpec(member, roles.get(member, Role.VOTER)))

    return act


@command(
    "member IDS [voter|standby|spare] [term=N] [vote=ID] [log=TERM[:TEXT],…] [applied=N] [snapshot=N] [features=N] [down] …"
)
def _member(words: Words) -> Action:
    ids = words.as_ids(words.take("the member"))
    spec = MemberSpec(ids[0])
    for flag in [word for word in words.words if "=" not in word]:
        words.words.remove(flag)
        if flag in ROLES:
            spec.role = ROLES[flag]
        elif flag in ("down", "amnesia"):
            setattr(spec, flag, True)
        else:
            raise words.error(f"unexpected {flag!r}: a role, `down` or `amnesia`")
    given = words.options("term", "vote", "log", "applied", "snapshot", "features", "address", "domain")
    spec.log = _log(words, given.get("log", ""))
    for name in ("term", "vote", "applied", "snapshot", "features"):
        if name in given:
            setattr(spec, name, words.as_number(given[name], name))
    if spec.applied > len(spec.log) or spec.snapshot > spec.applied:
        raise words.error("needs snapshot <= applied <= the length of the log")
    spec.address, spec.domain = given.get("address", ""), given.get("domain", "default")

    def act(world: World) -> None:
        for member in ids:
            _define(world, replace(spec, id=member, log=list(spec.log)))

    return act


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
        only = words.as_members(words.take("only=").removeprefix("only=")).ids
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
        world.network.begin(world.line)

    return act


@command("stall MEMBER TIME")
def _stall(words: Words) -> Action:
    member, ms = words.member(), words.duration()

    def act(world: World) -> None:
        world.running(member)
        world.clocks[member] += ms
        world.step(member, ev.Stalled(ms))

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
