"""Tables, CSV, JSON and YAML exactly as the stock client prints them.

Owns headings, widths, sorting and quoting; called by every listing command. Must never know what the rows mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cmp_to_key
from typing import Any

import click

FORMATS = ("csv", "json", "table", "yaml", "compact")
FORMAT_HELP = (
    'Format (csv|json|table|yaml|compact), use suffix ",noheader" to disable headers and ",header" to enable it if '
    "missing, e.g. csv,header"
)

_RUNS = re.compile(r"\d+|\D")


def check_format(text: str) -> tuple[str, bool]:
    """Return (format, whether headings are shown). Raises ClickException with the stock client's words."""
    name, comma, modifier = text.partition(",")
    if name not in FORMATS:
        raise click.ClickException(f'Invalid value "{text}" for flag "--format"')
    if not comma:
        return name, name != "csv"
    if modifier not in ("header", "noheader"):
        raise click.ClickException(f'Invalid modifier "{modifier}" on flag "--format" ("{text}")')
    return name, modifier == "header"


def render(text_format: str, headings: Sequence[str], rows: Sequence[Sequence[str]], raw: Any) -> str:
    """Return what is printed, without the last line end; `raw` is what JSON and YAML show. Raises ClickException."""
    name, shown = check_format(text_format)
    if name == "json":
        return go_json(raw)
    if name == "yaml":
        from incus_actors.cli.yaml_text import dump

        return dump(raw).rstrip("\n")
    if name == "csv":
        return csv_lines([list(headings), *rows] if shown else rows)
    titles = [title(heading) for heading in headings] if shown else None
    return compact(titles, rows) if name == "compact" else table(titles, rows)


def echo(text: str) -> None:
    """Print a rendered listing; an empty CSV prints nothing at all."""
    if text:
        click.echo(text)


def title(heading: str) -> str:
    """Return a heading as tables show it."""
    return heading.replace("_", " ").upper()


# -- sorting ----------------------------------------------------------------------------------------------------------


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which m2 comes before m10, and digits before everything else."""
    return [
        (0, int(run), run) if run.isdigit() and run.isascii() else (1, ord(run[0]), run) for run in _RUNS.findall(text)
    ]


def _compare(left: Sequence[str], right: Sequence[str]) -> int:
    for ours, theirs in zip(left, right, strict=False):
        if ours == theirs:
            continue
        if not ours or not theirs:
            return 1 if not ours else -1  # nothing sorts after something
        return -1 if natural_key(ours) < natural_key(theirs) else 1
    return 0


def sorted_rows(rows: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """Return rows in the order of all their columns, naturally."""
    return sorted(rows, key=cmp_to_key(_compare))


# -- columns ----------------------------------------------------------------------------------------------------------

#: shorthand letter → (heading, how to make the cell)
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]


def chosen(columns: Columns, letters: str) -> list[tuple[str, Callable[[Any], str]]]:
    """Return the columns that `-c` names. Raises ClickException with the stock client's words."""
    found = []
    for entry in letters.split(","):
        if not entry:
            raise click.ClickException(f"Empty column entry (redundant, leading or trailing command) in '{letters}'")
        for letter in entry:
            if letter not in columns:
                raise click.ClickException(f"Unknown column shorthand char '{letter}' in '{entry}'")
            found.append(columns[letter])
    return found


def listing(text_format: str, columns: Columns, letters: str, objects: Sequence[Any], raw: Any | None = None) -> str:
    """Return the whole listing of `objects`: chosen columns, sorted rows, any format. Raises ClickException."""
    check_format(text_format)
    wanted = chosen(columns, letters)
    rows = sorted_rows([[make(each) for _heading, make in wanted] for each in objects])
    return render(text_format, [heading for heading, _make in wanted], rows, objects if raw is None else raw)


# -- text formats -----------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Return how many terminal columns a line takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _widths(titles: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> list[int]:
    every = [*([titles] if titles is not None else []), *rows]
    count = max((len(row) for row in every), default=0)
    return [max(max(width(line) for line in row[i].split("\n")) for row in every) for i in range(count)]


def _left(text: str, size: int) -> str:
    return text + " " * (size - width(text))


def _centred(text: str, size: int) -> str:
    gap = size - width(text)
    return " " * (gap // 2) + text + " " * (gap - gap // 2)


def _lines_of(row: Sequence[str]) -> list[list[str]]:
    cells = [cell.split("\n") for cell in row]
    height = max((len(cell) for cell in cells), default=0)
    return [[cell[i] if i < len(cell) else "  " for cell in cells] for i in range(height)]  # as tablewriter fills


def table(titles: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a line under every row."""
    sizes = _widths(titles, rows)
    border = "+" + "+".join("-" * (size + 2) for size in sizes) + "+"
    lines = [border]
    if titles is not None:
        lines += ["| " + " | ".join(map(_centred, titles, sizes)) + " |", border]
    for row in rows:
        lines += ["| " + " | ".join(map(_left, cells, sizes)) + " |" for cells in _lines_of(row)]
        lines.append(border)
    return "\n".join(lines)


def compact(titles: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Return columns without lines."""
    sizes = _widths(titles, rows)
    lines = []
    if titles is not None:
        lines.append("  " + "  ".join(map(_centred, titles, sizes)) + "  ")
    for row in rows:
        lines += ["  " + "  ".join(map(_left, cells, sizes)) + "  " for cells in _lines_of(row)]
    return "\n".join(lines)


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Return CSV as Go's encoding/csv writes it: quotes only where they are needed."""
    return "\n".join(",".join(map(_csv_cell, row)) for row in rows)


def _csv_cell(text: str) -> str:
    if not text:
        return ""
    if text == "\\." or text[0].isspace() or any(char in text for char in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def go_json(value: Any) -> str:
    """Return JSON as Go's encoder writes it: no spaces, and <, > and & escaped."""
    import json

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
