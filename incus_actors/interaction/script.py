"""Reading a script: lines into commands, with every error found before anything runs.

Owns the syntax (one command a line, words, quotes, `name=value`, `#` comments) and the helpers with which commands
read their words; used by commands.py and runner.py. Must never know what a command does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from incus_actors.consensus.types import MemberId
from incus_actors.interaction.errors import ScriptError
from incus_actors.interaction.patterns import (
    Condition,
    Direction,
    Pattern,
    field_names,
    parse_condition,
    parse_direction,
    parse_kind,
    suggest,
)
from incus_actors.interaction.values import UnfitValueError, checked_field, member_ids

if TYPE_CHECKING:
    from incus_actors.interaction.world import World

Action: TypeAlias = "Callable[[World], None]"
MOST_BYTES = 1 << 20  #: a longer script is a mistake
TOO_LONG = "the script is longer than 1 MiB"
MOST_MS = 3_600_000  #: a longer time is one, too: every 10 ms of it are looked at


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a script, ready to run."""

    line: int
    text: str
    action: Action


@dataclass(frozen=True, slots=True)
class Members:
    """Which members a command or an expectation is about: some, `all` that run, or `any` of them."""

    ids: tuple[MemberId, ...]
    word: str

    def __str__(self) -> str:
        return self.word


class Words:
    """The words of one line behind the command, taken one by one. Every complaint names the line."""

    def __init__(self, line: int, verb: str, words: list[str]) -> None:
        self.line = line
        self.verb = verb
        self.words = words

    def error(self, text: str) -> ScriptError:
        """Return an error at this line."""
        return ScriptError(f"{self.verb}: {text}", self.line)

    def __bool__(self) -> bool:
        return bool(self.words)

    def peek(self) -> str:
        """Return the next word without taking it, or nothing."""
        return self.words[0] if self.words else ""

    def take(self, what: str) -> str:
        """Take the next word. Raises ScriptError when there is none."""
        if not self.words:
            raise self.error(f"{what} is missing")
        return self.words.pop(0)

    def end(self) -> None:
        """Raise ScriptError when words are left."""
        if self.words:
            raise self.error(f"unexpected {' '.join(self.words)!r}")

    # -- values ---------------------------------------------------------------------------------------------------

    def number(self, what: str, *, least: int = 0, default: int | None = None) -> int:
        """Take a whole number."""
        if not self.words and default is not None:
            return default
        return self.as_number(self.take(what), what, least=least)

    def as_number(self, text: str, what: str, *, least: int = 0) -> int:
        """Return a whole number from a text."""
        if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < least:
            raise self.error(f"{what} must be a whole number of at least {least}, not {text!r}")
        return int(text)

    def duration(self, what: str = "the time") -> int:
        """Take milliseconds: `600`, `600ms` or `2s`."""
        return self.as_duration(self.take(what), what)

    def as_duration(self, text: str, what: str) -> int:
        """Return milliseconds from a text."""
        match = re.fullmatch(r"([0-9]{1,9})(ms|s)?", text)
        if match is None:
            raise self.error(f"{what} must be milliseconds (600, 600ms, 2s), not {text!r}")
        ms = int(match[1]) * (1000 if match[2] == "s" else 1)
        if ms > MOST_MS:
            raise self.error(f"{what} is at most {MOST_MS // 1000}s, not {text!r}")
        return ms

    def member(self) -> MemberId:
        """Take the number of one member."""
        return self.number("the member", least=1)

    def members(self) -> Members:
        """Take `2`, `1,3`, `1-3` or `all`."""
        return self.as_members(self.take("the member"))

    def as_members(self, text: str, *, also: Collection[str] = ()) -> Members:
        """Return members from a text; `also`: words that are allowed beside `all`."""
        if text == "all" or text in also:
            return Members((), text)
        return Members(self.as_ids(text), text)

    def as_ids(self, text: str) -> tuple[MemberId, ...]:
        """Return the members of `2`, `1,3` or `1-3`."""
        try:
            return member_ids(text)
        except UnfitValueError as error:
            raise self.error(str(error)) from None

    def choice(self, what: str, options: Iterable[str], *, default: str | None = None) -> str:
        """Take one of some words."""
        known = list(options)
        if not self.words and default is not None:
            return default
        word = self.take(what)
        if word not in known:
            raise self.error(f"{what} must be one of {', '.join(known)}, not {word!r}{suggest(word, known)}")
        return word

    def count_or_all(self) -> int | None:
        """Take a number (1 when nothing is left) or `all`, which is None."""
        if self.peek() == "all":
            self.words.pop(0)
            return None
        return self.number("the count", least=1, default=1)

    def options(self, *names: str) -> dict[str, str]:
        """Take all `name=value` words that are left; nothing else may be left."""
        found: dict[str, str] = {}
        for word in self.words:
            name, sign, value = word.partition("=")
            if not sign or name not in names:
                known = ", ".join(f"{each}=" for each in names) or "nothing more"
                raise self.error(f"unexpected {word!r}, expected {known}{suggest(name, names)}")
            if name in found:
                raise self.error(f"{name}= is given twice")
            found[name] = value
        self.words.clear()
        return found

    # -- messages -------------------------------------------------------------------------------------------------

    def pattern(self, *, required: bool = False) -> tuple[Pattern, Condition | None]:
        """Take `[KIND] [A->B] [FIELD=VALUE…] [count=N]`; return the pattern and the `count`."""
        kind, direction = self.kind_and_way(required=required)
        conditions: list[Condition] = []
        count: Condition | None = None
        for word in self.words:
            condition = parse_condition(word, self.line)
            if condition is None:
                raise self.error(f"expected FIELD=VALUE, not {word!r}")
            if condition.name == "count":
                if condition.operator == "~":
                    raise self.error("count takes =, !=, <, <=, > or >=")
                self.as_number(condition.value, "count")
                count = condition
                continue
            known = field_names(kind)
            if condition.name not in known:
                raise self.error(
                    f"{'any message' if kind is None else kind.__name__} has no field {condition.name!r}"
                    f"{suggest(condition.name, known)} (fields: {', '.join(known)})"
                )
            try:
                conditions.append(checked_field(condition, kind))
            except UnfitValueError as error:
                raise self.error(str(error)) from None
        self.words.clear()
        return Pattern(kind, direction, tuple(conditions)), count

    def kind_and_way(self, *, required: bool = False) -> tuple[type | None, Direction]:
        """Take `[KIND] [A->B]`, in this order or the other."""
        kind: type | None = None
        ways: list[Direction] = []
        named = False
        while self.words:
            way = parse_direction(self.words[0])
            if way is not None and not ways:
                ways.append(way)
            elif way is None and not named and parse_condition(self.words[0], self.line) is None:
                kind, named = parse_kind(self.words[0], self.line), True
            else:
                break
            self.words.pop(0)
        if required and not named:
            raise self.error("the kind of message is missing (any: every kind)")
        return kind, ways[0] if ways else Direction()


@dataclass
class Grammar:
    """The commands by name, each with how it is written and what reads it."""

    commands: dict[str, Callable[[Words], Action]] = field(default_factory=dict)
    usages: dict[str, str] = field(default_factory=dict)

    def command(self, usage: str) -> Callable[[Callable[[Words], Action]], Callable[[Words], Action]]:
        """Register a reader of the command that `usage` begins with."""

        def register(reader: Callable[[Words], Action]) -> Callable[[Words], Action]:
            verb = usage.split()[0]
            self.commands[verb] = reader
            self.usages[verb] = usage
            return reader

        return register

    def parse(self, text: str) -> list[Step]:
        """Return the steps of a script. Raises ScriptError with the line of the first mistake."""
        if len(text) > MOST_BYTES:
            raise ScriptError(TOO_LONG)
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        steps = [step for number, line in enumerate(lines, 1) if (step := self._line(number, line))]
        if not steps:
            raise ScriptError("the script has no commands")
        return steps

    def _line(self, number: int, line: str) -> Step | None:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ScriptError(f"cannot read the line: {str(error).lower()}", number) from error
        if not words:
            return None
        verb, rest = words[0], Words(number, words[0], words[1:])
        reader = self.commands.get(verb)
        if reader is None:
            raise ScriptError(f"unknown command {verb!r}{suggest(verb, self.commands)}", number)
        try:
            action = reader(rest)
            rest.end()
        except ScriptError as error:
            raise ScriptError(f"{error.text}\n    usage: {self.usages[verb]}", error.line or number) from None
        return Step(number, line.split(" #")[0].strip(), action)
