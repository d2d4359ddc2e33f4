"""Tables as the stock client prints them: table, compact, csv, json, yaml.

Owns the layout; used by the daemon's administration commands, which scripts parse. Pure.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

FORMATS = ("csv", "json", "table", "yaml", "compact")


def render_table(headings: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    """Return the text, ending in a newline. `form` may end in ",header" or ",noheader".

    Raises ValueError for an unknown format.
    """
    asked, _, option = form.partition(",")
    if option not in ("", "header", "noheader") or asked not in FORMATS:
        raise ValueError(f'Invalid format "{form}"')
    shown = [headings] if option == "header" or (not option and asked != "csv") else []
    keys = [heading.lower() for heading in headings]
    match asked:
        case "table":
            return _boxed(shown, rows)
        case "compact":
            widths = _widths(shown, rows)
            lines = [[heading.center(width) for heading, width in zip(head, widths, strict=True)] for head in shown]
            lines += [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
            return "".join(f"  {'  '.join(line)}  \n" for line in lines)
        case "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([*shown, *rows])
            return text.getvalue()
        case "json":
            return json.dumps([dict(zip(keys, row, strict=True)) for row in rows]) + "\n"
        case "yaml":
            import yaml

            dumped: str = yaml.safe_dump([dict(zip(keys, row, strict=True)) for row in rows], sort_keys=False)
            return dumped
        case _:
            raise AssertionError(form)


def _widths(shown: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*shown, *rows, strict=True)]


def _boxed(shown: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """`shown`: the line of headings, or none."""
    widths = _widths(shown, rows)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    text = rule
    for headings in shown:
        text += "|" + "|".join(f" {h:^{w}} " for h, w in zip(headings, widths, strict=True)) + "|\n" + rule
    for row in rows:
        text += "|" + "|".join(f" {cell:<{w}} " for cell, w in zip(row, widths, strict=True)) + "|\n" + rule
    return text
