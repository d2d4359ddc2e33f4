"""Mutations of the core: historic bugs that can be switched on, to see whether the tests see them.

Owns what a mutant is and how it is switched on and off: the text of one function or method is changed and compiled
again, in this process only. A mutation whose text is not found any more raises, so that none becomes void unnoticed.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PACKAGE = "incus_actors.consensus"


class StaleMutantError(Exception):
    """The code that a mutant changes is not there any more: the mutant must be written anew."""


@dataclass(frozen=True)
class Edit:
    """In `place` (module.function or module.Class.method) `before` becomes `after`."""

    place: str
    before: str
    after: str


@dataclass(frozen=True)
class Mutant:
    """One historic bug. `caught_by`: the interaction scripts that must fail with it."""

    name: str
    incident: str
    what: str
    caught_by: tuple[str, ...]
    edits: tuple[Edit, ...]


def mutant(name: str, incident: str, what: str, caught_by: str, *edits: tuple[str, str, str]) -> Mutant:
    """Make a mutant from plain texts."""
    return Mutant(name, incident, what, tuple(caught_by.split()), tuple(Edit(*edit) for edit in edits))


@contextmanager
def switched_on(bug: Mutant) -> Iterator[None]:
    """Have the bug in the core of this process for a while. Raises StaleMutantError."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for edit in bug.edits:
            undo.extend(_apply(edit))
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def _apply(edit: Edit) -> list[tuple[Any, str, Any]]:
    module_name, *path = edit.place.split(".")
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    owner: Any = module
    for name in path[:-1]:
        owner = getattr(owner, name)
    raw = vars(owner)[path[-1]]
    function = raw.fget if isinstance(raw, property) else raw
    changed = _compile(edit, module, function)
    if isinstance(raw, property):
        changed = property(changed)
    if owner is not module:
        setattr(owner, path[-1], changed)
        return [(owner, path[-1], raw)]
    return _replace_everywhere(raw, changed)


def _compile(edit: Edit, module: ModuleType, function: Any) -> Any:
    source = textwrap.dedent(getattr(function, "__mutated__", None) or inspect.getsource(function))
    if source.count(edit.before) != 1:
        raise StaleMutantError(f"{edit.place} has {source.count(edit.before)} times {edit.before!r}")
    changed = source.replace(edit.before, edit.after).replace("@property\n", "")
    flags = __future__.annotations.compiler_flag
    code = compile(changed, f"<mutant of {edit.place}>", "exec", flags=flags, dont_inherit=True)
    names: dict[str, Any] = {}
    exec(code, module.__dict__, names)  # a function of the core itself, with one change
    made = names[function.__name__]
    made.__mutated__ = changed
    return made


def _replace_everywhere(original: Any, changed: Any) -> list[tuple[Any, str, Any]]:
    """Functions are imported by name: replace each of these names."""
    undo = []
    for name, module in sorted(sys.modules.items()):
        if name.startswith(PACKAGE) and module is not None:
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, changed)
                    undo.append((module, key, original))
    return undo
