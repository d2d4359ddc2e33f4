"""The `expect` command: facts, messages, results, stops.

Owns how expectations are written and judged; registered into the grammar by commands.py. An expectation must never
change the world, apart from noting that a stop was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from incus_actors.interaction.cast import Request
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.facts import fact, fact_names, known_fact
from incus_actors.interaction.patterns import Condition, Pattern, parse_condition, show_value, suggest
from incus_actors.interaction.script import Action, Members, Words
from incus_actors.interaction.values import UnfitValueError, checked_fact, checked_result
from incus_actors.interaction.world import World

SHOWN_MESSAGES = 12
RESULT_FACTS = ("status", "index", "result", "detail", "at")


def parse_facts(words: Words, *, least: int = 1) -> tuple[Condition, ...]:
    """Take all words that are left as conditions on facts."""
    found: list[Condition] = []
    for word in words.words:
        condition = parse_condition(word, words.line)
        if condition is None:
            raise words.error(f"expected FACT=VALUE, not {word!r}")
        if not known_fact(condition.name):
            names = fact_names()
            raise words.error(f"unknown fact {condition.name!r}{suggest(condition.name, names)}")
        found.append(_checked(words, condition, checked_fact))
    if len(found) < least:
        raise words.error("what is expected? (FACT=VALUE)")
    words.words.clear()
    return tuple(found)


def _checked(words: Words, condition: Condition, check: Callable[[Condition], Condition]) -> Condition:
    try:
        return check(condition)
    except UnfitValueError as error:
        raise words.error(str(error)) from None


def holds(world: World, members: Members, facts: tuple[Condition, ...]) -> bool:
    """Return whether all facts hold, of every member or, for `any`, of at least one."""
    quantifier: Callable[[list[bool]], bool] = any if members.word == "any" else all
    found = [_all_hold(world, member, facts) for member in world.select(members.ids)]
    return bool(found) and quantifier(found)


def _all_hold(world: World, member: int, facts: tuple[Condition, ...]) -> bool:
    try:
        return all(condition.holds(fact(world, member, condition.name, condition.value)) for condition in facts)
    except StepFailedError:
        return False


def expect_members(words: Words) -> Action:
    """`expect MEMBERS FACT=VALUE…`."""
    members = words.as_members(words.take("the member"), also=("any",))
    facts = parse_facts(words)

    def check(world: World) -> None:
        chosen = world.select(members.ids)
        if members.word == "any":
            if not any(_all_hold(world, member, facts) for member in chosen):
                texts = " ".join(map(str, facts))
                raise StepFailedError("no member fits", expected=f"any member with {texts}", found=overview(world))
            return
        if not chosen:
            raise StepFailedError("no member runs", expected=" ".join(["all", *map(str, facts)]))
        for member in chosen:
            for condition in facts:
                found = fact(world, member, condition.name, condition.value)
                if not condition.holds(found):
                    raise StepFailedError(
                        f"{condition.name} of member {member}",
                        expected=str(condition),
                        found=f"{condition.name}={show_value(found)}",
                    )

    return check


def overview(world: World) -> str:
    """Return one line about every member."""
    lines = []
    for member in sorted(world.machines):
        core = world.cores.get(member)
        if core is None:
            lines.append(f"{member}: down")
            continue
        lines.append(
            f"{member}: {core.role.value} term={core.term} vote={core.vote or 'none'} leader={core.leader or 'none'} "
            f"last={core.last_index}/{core.log.last_term} durable={core.durable_index} commit={core.commit} "
            f"applied={core.applied}"
        )
    return "; ".join(lines)


COUNTS = {"=": "", "!=": "other than ", ">=": "at least ", "<=": "at most ", ">": "more than ", "<": "less than "}


def _limit(count: Condition | None, *, negated: bool) -> tuple[Callable[[int], bool], str]:
    if negated:
        return (lambda found: found == 0), "none"
    if count is None:
        return (lambda found: found > 0), "at least 1"
    return count.holds, f"{COUNTS[count.operator]}{count.value}"


def expect_messages(words: Words, where: str, *, negated: bool) -> Action:
    """`expect [no] sent|pending KIND [A->B] [FIELD=VALUE…] [count=N]`."""
    pattern, count = words.pattern(required=True)
    if negated and count is not None:
        raise words.error("`no` and count= exclude each other")
    fits, wanted = _limit(count, negated=negated)

    def check(world: World) -> None:
        world.boot()
        network = world.network
        pool = network.under_way if where == "pending" else network.sent[network.mark :]
        found = [flight for flight in pool if pattern.matches(flight.envelope, world.names)]
        if fits(len(found)):
            return
        near = [flight for flight in pool if _near(pattern, world).matches(flight.envelope, world.names)]
        shown = "".join(f"\n      {flight.show(world.names)}" for flight in near[-SHOWN_MESSAGES:])
        since = f" since line {network.marked}" if where == "sent" and network.marked else ""
        raise StepFailedError(
            f"messages {where}{since}",
            expected=f"{wanted} of {pattern}",
            found=f"{len(found)}" + (f"; of that kind and way {len(near)}:{shown}" if near else ", none of that kind"),
        )

    return check


def _near(pattern: Pattern, world: World) -> Pattern:
    return Pattern(pattern.kind, pattern.direction)


def expect_result(words: Words) -> Action:
    """`expect result LABEL[@MEMBER] STATUS [index=N] [detail~TEXT]…`."""
    label, _, where = words.take("the name of the request").partition("@")
    member = words.as_number(where, "the member behind @", least=1) if where else None
    conditions: list[Condition] = []
    if words and parse_condition(words.peek(), words.line) is None:
        conditions.append(Condition("status", "=", words.take("the status")))
    for word in words.words:
        condition = parse_condition(word, words.line)
        if condition is None or condition.name not in RESULT_FACTS:
            raise words.error(f"unexpected {word!r}; a result has {', '.join(RESULT_FACTS)}")
        conditions.append(condition)
    conditions = [_checked(words, condition, checked_result) for condition in conditions]
    words.words.clear()
    if not conditions:
        raise words.error("what is expected? (a status such as applied, or FACT=VALUE)")

    def check(world: World) -> None:
        request = find_request(world, label, member)
        values = {
            "status": request.status,
            "index": request.index,
            "result": request.result,
            "detail": request.detail,
            "at": request.member,
        }
        for condition in conditions:
            if not condition.holds(values[condition.name]):
                detail = f" ({request.detail})" if request.detail else ""
                raise StepFailedError(
                    f"result of {label!r} at member {request.member}",
                    expected=str(condition),
                    found=f"{condition.name}={show_value(values[condition.name])}{detail}",
                )

    return check


def find_request(world: World, label: str, member: int | None) -> Request:
    """Return a request by its name: at this member, or the newest of that name."""
    found = [r for (name, at), r in world.requests.items() if name == label and member in (None, at)]
    if not found:
        where = "" if member is None else f" of member {member}"
        raise StepFailedError(f"nothing named {label!r} was asked{where}")
    return found[-1]


def expect_stopped(words: Words) -> Action:
    """`expect stopped MEMBER [KIND] [REASON-PART]`."""
    member = words.member()
    kind = words.choice("the kind", ("fatal", "io", "amnesia", "any"), default="any")
    part = words.take("the reason") if words else ""

    def check(world: World) -> None:
        world.boot()
        found = [each for each in world.stopped if each.member == member]
        for each in found:
            if kind in ("any", each.kind) and part in each.reason:
                each.expected = True
                return
        wanted = " ".join(filter(None, [f"member {member} stopped", kind, part]))
        have = "; ".join(f"{each.kind}: {each.reason}" for each in found) or "it has not asked to be stopped"
        raise StepFailedError("stopped", expected=wanted, found=have)

    return check


def parse_expect(words: Words) -> Action:
    """Read one expectation."""
    word = words.peek()
    negated = word == "no"
    if negated:
        words.take("no")
        word = words.peek()
        if word not in ("sent", "pending"):
            raise words.error("`expect no` is followed by sent or pending")
    if word in ("sent", "pending"):
        return expect_messages(words, words.take("where"), negated=negated)
    if word == "result":
        words.take("result")
        return expect_result(words)
    if word == "stopped":
        words.take("stopped")
        return expect_stopped(words)
    if not re.match(r"^(\d|all$|any$)", word):
        options = ("sent", "pending", "no", "result", "stopped", "all", "any")
        raise words.error(f"expected a member or one of {', '.join(options)}, not {word!r}{suggest(word, options)}")
    return expect_members(words)
