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
    """Return the text, ending in a newline. Raises ValueError for an unknown format."""
    keys = [heading.lower() for heading in headings]
    match form:
        case "table":
            return _boxed(headings, rows)
        case "compact":
            widths = _widths(headings, rows)
            lines = [[heading.center(width) for heading, width in zip(headings, widths, strict=True)]]
            lines += [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
            return "".join(f"  {'  '.join(line)}  \n" for line in lines)
        case "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            return text.getvalue()
        case "json":
            return json.dumps([dict(zip(keys, row, strict=True)) for row in rows]) + "\n"
        case "yaml":
            import yaml

            dumped: str = yaml.safe_dump([dict(zip(keys, row, strict=True)) for row in rows], sort_keys=False)
            return dumped
        case _:
            raise ValueError(f'Invalid format "{form}"')


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(headings, *rows, strict=True)]


def _boxed(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(headings, rows)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    text = rule
    text += "|" + "|".join(f" {h:^{w}} " for h, w in zip(headings, widths, strict=True)) + "|\n" + rule
    for row in rows:
        text += "|" + "|".join(f" {cell:<{w}} " for cell, w in zip(row, widths, strict=True)) + "|\n" + rule
    return text
