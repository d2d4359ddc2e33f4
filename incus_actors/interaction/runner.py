"""Running scripts: one file in, pass or the failed line out.

Owns the outcome of a script and how it is told; used by the command line, the tests and the mutants. Must never let
an exception of a script escape: everything is an outcome with file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.consensus.core import Core
from incus_actors.interaction.commands import GRAMMAR
from incus_actors.interaction.errors import ScriptError, StepFailedError
from incus_actors.interaction.expectations import overview
from incus_actors.interaction.script import MOST_BYTES, TOO_LONG, Step
from incus_actors.interaction.world import CoreFactory, World

SHOWN = 10


@dataclass
class Outcome:
    """What became of one script. `line` 0: no line is to blame."""

    name: str
    passed: bool
    steps: int = 0
    line: int = 0
    error: bool = False  #: the script is wrong, rather than the core
    text: str = ""
    source: str = ""
    expected: str = ""
    found: str = ""
    members: str = ""
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self) -> Iterator[str]:
        """Return the lines to print."""
        if self.passed:
            yield f"pass  {self.name} ({self.steps} steps)"
            return
        where = f"{self.name}:{self.line}" if self.line else self.name
        yield f"{'ERROR' if self.error else 'FAIL'}  {where}: {self.source or self.text}"
        if self.source:
            yield f"  {self.text}"
        if self.expected:
            yield f"  expected: {self.expected}"
        if self.found:
            yield f"  found:    {self.found}"
        if self.members:
            yield f"  members:  {self.members.replace('; ', chr(10) + '            ')}"
        if self.messages:
            yield "  last messages:"
            yield from (f"    {line}" for line in self.messages)


def parse(text: str) -> list[Step]:
    """Return the steps of a script. Raises ScriptError."""
    return GRAMMAR.parse(text)


def run_text(text: str, name: str, *, make_core: CoreFactory = Core) -> Outcome:
    """Run a script and return what became of it. Never raises for anything that a script can do."""
    try:
        steps = parse(text)
    except ScriptError as error:
        return Outcome(name, passed=False, line=error.line, error=True, text=error.text)
    world = World(make_core)
    for count, step in enumerate(steps):
        world.line = step.line
        try:
            step.action(world)
        except StepFailedError as error:
            return _failed(world, name, count, step, error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return _failed(
                world, name, count, step, StepFailedError(f"this program failed here, please report: {reason}")
            )
    unexpected = [each for each in world.stopped if not each.expected]
    if unexpected:
        first = unexpected[0]
        step = next(step for step in steps if step.line == first.line)
        failure = StepFailedError(
            f"member {first.member} stopped here and no line expects it",
            expected="that it goes on, or `expect stopped`",
            found=f"{first.kind}: {first.reason}",
        )
        return _failed(world, name, len(steps), step, failure)
    return Outcome(name, passed=True, steps=len(steps), notes=world.notes)


def _failed(world: World, name: str, count: int, step: Step, failure: StepFailedError) -> Outcome:
    return Outcome(
        name,
        passed=False,
        steps=count,
        line=step.line,
        text=failure.text,
        source=step.text,
        expected=failure.expected,
        found=failure.found,
        members=overview(world) if world.booted else "",
        messages=world.network.last(SHOWN),
        notes=world.notes,
    )


def run_file(path: Path, *, make_core: CoreFactory = Core) -> Outcome:
    """Run a script from a file; a file that cannot be read is a failed script."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        return Outcome(str(path), passed=False, error=True, text=f"cannot be read: {error.strerror or error}")
    return run_bytes(content, str(path), make_core=make_core)


def run_bytes(content: bytes, name: str, *, make_core: CoreFactory = Core) -> Outcome:
    """Run a script as it stands in a file: UTF-8, with or without a byte order mark."""
    if len(content) > MOST_BYTES:
        return Outcome(name, passed=False, error=True, text=TOO_LONG)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Outcome(name, passed=False, line=line, error=True, text=f"cannot be read: this is no UTF-8 ({error})")
    return run_text(text, name, make_core=make_core)
