"""Questions on the terminal, in the stock client's manner: prompt, default, and the same question again for nonsense.

Owns reading answers and the editor; called by commands that ask. Must never take an answer that was not given: the
end of the input is an error.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

T = TypeVar("T")

_YES = ("yes", "y")
_NO = ("no", "n")


class InvalidAnswerError(Exception):
    """What was typed cannot be used; its text says why."""


def _line(prompt: str) -> str:
    sys.stdout.write(prompt)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:
        raise click.ClickException("EOF")
    return line.strip()


def _again(reason: str = "") -> None:
    click.echo(f"Invalid input: {reason}\n" if reason else "Invalid input, try again.\n", err=True)


def ask_bool(question: str, default: str = "") -> bool:
    """Return whether the answer is yes; `default` is "yes", "no" or none at all. Raises ClickException at EOF."""
    while True:
        answer = (_line(question) or default).lower()
        if answer in _YES:
            return True
        if answer in _NO:
            return False
        _again()


def ask_choice(question: str, choices: list[str], default: str) -> str:
    """Return one of `choices`."""
    while True:
        answer = _line(question) or default
        if answer in choices:
            return answer
        _again()


def ask_int(question: str, low: int, high: int, default: str = "") -> int:
    """Return a number from `low` to `high` (-1: no limit)."""
    while True:
        answer = _line(question) or default
        try:
            number = int(answer)
        except ValueError:
            _again()
            continue
        if (low != -1 and number < low) or (high != -1 and number > high):
            _again("out of range")
            continue
        return number


def ask_text(question: str, default: str = "", check: Callable[[str], T] | None = None) -> str:
    """Return a text; without a default and a check it must not be empty. `check` raises InvalidAnswerError."""
    while True:
        answer = _line(question) or default
        if check is None:
            if answer:
                return answer
            _again()
            continue
        try:
            check(answer)
        except InvalidAnswerError as problem:
            _again(str(problem))
            continue
        return answer


def ask_password(question: str) -> str:
    """Return what was typed, which is not shown on a terminal."""
    if not sys.stdin.isatty():
        return _line(question)
    while True:
        sys.stdout.flush()
        answer = getpass.getpass(question)
        if answer:
            return answer
        _again()


def edited(text: str) -> str:
    """Return `text` as the user's editor leaves it. Raises ClickException if the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    handle, name = tempfile.mkstemp(prefix="incus-actors_editor_", suffix=".yaml")
    file = Path(name)
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
        done = subprocess.run([*editor.split(), str(file)], check=False)
        if done.returncode:
            raise click.ClickException(f"the editor ended with exit status {done.returncode}")
        return file.read_text()
    except OSError as problem:
        raise click.ClickException(f"{editor}: {problem.strerror}") from None
    finally:
        file.unlink()


def edit_until_accepted(text: str, accept: Callable[[str], None]) -> None:
    """Open the editor until `accept` takes what it left; it raises ClickException otherwise."""
    while True:
        text = edited(text)
        try:
            accept(text)
        except click.ClickException as problem:
            click.echo(f"Config parsing error: {problem.message}", err=True)
            _line("Press enter to open the editor again or ctrl+c to abort change\n")
        else:
            return


def input_text() -> str | None:
    """Return the standard input if it is no terminal, else None: the user wants an editor."""
    return None if sys.stdin.isatty() else sys.stdin.read()
