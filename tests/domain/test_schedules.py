"""When cron expressions and aliases are due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from incus_actors.domain import schedules

SUNDAY = datetime(2026, 3, 1, 0, 0, tzinfo=UTC)  # a first of the month, too


@pytest.mark.parametrize(
    ("schedule", "moment", "expected"),
    [
        ("", SUNDAY, False),
        ("* * * * *", SUNDAY, True),
        ("0 0 * * *", SUNDAY, True),
        ("1 0 * * *", SUNDAY, False),
        ("*/15 * * * *", SUNDAY.replace(minute=45), True),
        ("*/15 * * * *", SUNDAY.replace(minute=46), False),
        ("5-10/5 3,4 * mar sun", SUNDAY.replace(hour=4, minute=10), True),
        ("5-10/5 3,4 * mar sun", SUNDAY.replace(hour=5, minute=10), False),
        ("30/10 * * * *", SUNDAY.replace(minute=50), True),
        ("0 0 * * 7", SUNDAY, True),
        ("0 0 * * 1-5", SUNDAY, False),
        ("0 0 15 * 0", SUNDAY, True),  # one of the two days is enough
        ("0 0 15 * 1", SUNDAY, False),
        ("@daily", SUNDAY, True),
        ("@hourly", SUNDAY.replace(hour=7), True),
        ("@weekly", SUNDAY, True),
        ("@weekly", SUNDAY.replace(day=2), False),
        ("@monthly, @hourly", SUNDAY.replace(day=2, hour=9), True),
        ("@yearly", SUNDAY, False),
        ("@yearly", SUNDAY.replace(month=1), True),
        ("@never", SUNDAY, False),
        ("@startup", SUNDAY, False),
        ("nonsense", SUNDAY, False),
        ("99 * * * *", SUNDAY, False),
    ],
)
def test_due(schedule, moment, expected):
    assert schedules.due(schedule, moment) is expected


def test_startup():
    assert schedules.at_startup("@daily, @startup")
    assert not schedules.at_startup("@daily")


@pytest.mark.parametrize("schedule", ["", "@daily", "0 0 * * *", "*/5 1-3 ? jan-mar mon,wed"])
def test_what_can_be_read(schedule):
    schedules.check(schedule)


@pytest.mark.parametrize(
    "schedule", ["x", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "* * * *", "-1 * * * *"]
)
def test_what_cannot(schedule):
    with pytest.raises(ValueError, match="Invalid schedule"):
        schedules.check(schedule)
