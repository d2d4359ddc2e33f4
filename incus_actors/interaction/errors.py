"""What can be wrong with a script, and what can go wrong while one runs.

Owns the two exceptions; raised everywhere in this package, reported by runner.py.
"""

from __future__ import annotations


class ScriptError(Exception):
    """The script itself is wrong: unknown command, bad value. `line` is 1-based, 0 when no line is to blame."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.line = line


class StepFailedError(Exception):
    """A line could not be carried out, an expectation does not hold, or a safety property is broken."""

    def __init__(self, text: str, *, expected: str = "", found: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.expected = expected
        self.found = found
