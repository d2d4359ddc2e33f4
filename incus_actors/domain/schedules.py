"""When something that is scheduled is due: cron expressions and Incus' aliases.

Owns the reading of "<minute> <hour> <day-of-month> <month> <day-of-week>" and of "@daily, @weekly". Pure: the moment
is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@annually": "0 0 1 1 *",
    "@yearly": "0 0 1 1 *",
}
STARTUP: Final = "@startup"
_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}  # noqa: SIM905
_DAYS = {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())}  # noqa: SIM905
_FIELDS: Final[tuple[tuple[int, int, Mapping[str, int]], ...]] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 7, _DAYS),
)


@lru_cache(maxsize=256)
def _fields(expression: str) -> tuple[frozenset[int], ...]:
    """Return what each of the five fields allows. Raises ValueError."""
    words = expression.split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"Invalid schedule: {expression}")
    return tuple(_values(word, low, high, names) for word, (low, high, names) in zip(words, _FIELDS, strict=True))


def _values(word: str, low: int, high: int, names: Mapping[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in word.lower().split(","):
        span, _, step_text = part.partition("/")
        step = _number(step_text, names) if step_text else 1
        if span in ("*", "?"):
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = _number(begin, names)
            last = _number(end, names) if dash else (high if step_text else first)
        if not (low <= first <= last <= high and step > 0):
            raise ValueError(f"Invalid schedule: {part}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, names: Mapping[str, int]) -> int:
    if text in names:
        return names[text]
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"Invalid schedule: {text}")
    return int(text)


def check(schedule: str) -> None:
    """Raise ValueError for a schedule that can't be read; "" is none."""
    for expression in _expressions(schedule):
        _fields(expression)


def _expressions(schedule: str) -> list[str]:
    words = [word.strip() for word in schedule.split(",")]
    if words and all(word.startswith("@") for word in words):
        return [ALIASES[word] for word in words if word in ALIASES]
    return [schedule] if schedule.strip() else []


def at_startup(schedule: str) -> bool:
    """Return whether it asks for something at the start of the server."""
    return STARTUP in [word.strip() for word in schedule.split(",")]


def due(schedule: str, moment: datetime) -> bool:
    """Return whether it is time in the minute of `moment`; a schedule that can't be read never is."""
    try:
        return any(_matches(_fields(expression), moment) for expression in _expressions(schedule))
    except ValueError:
        return False


def _matches(fields: tuple[frozenset[int], ...], moment: datetime) -> bool:
    minutes, hours, days, months, weekdays = fields
    if moment.minute not in minutes or moment.hour not in hours or moment.month not in months:
        return False
    weekday = moment.isoweekday() % 7
    of_week = weekday in weekdays or (weekday == 0 and 7 in weekdays)
    of_month = moment.day in days
    # As cron has it: when both are restricted, one of them is enough.
    both = len(days) < 31 and len(weekdays - {7}) < 7
    return of_week or of_month if both else of_week and of_month
