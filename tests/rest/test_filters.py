"""?filter=: answers and refusals of a real Incus 6.0.4, and what a hostile expression costs."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from incus_actors.errors import ApiError
from incus_actors.rest.filters import filter_objects

PROFILES: list[dict[str, Any]] = [
    {"name": "aa", "config": {"user.x": "1", "user.y": "Hello World"}, "used_by": [], "public": True},
    {"name": "ab", "config": {}, "used_by": [], "public": False},
    {"name": "default", "config": {}, "used_by": [], "public": False},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "aa ab default"),
        ("   ", "aa ab default"),
        ("name eq aa", "aa"),
        ("name eq AA", "aa"),
        ("name eq a", ""),
        ("name eq a.*", "aa ab"),
        ("name eq ^a", "aa ab"),
        ("not name eq aa", "ab default"),
        ("name ne aa", "ab default"),
        ("name eq aa or name eq ab", "aa ab"),
        ("name eq aa and name eq ab or name eq default", "default"),
        ("not name eq aa or name eq aa", "aa ab default"),
        ("name eq a[", ""),
        ("config.user.x eq 1", "aa"),
        ("config.user.x ne 1", "ab default"),
        ('config.user.y eq "Hello World"', "aa"),
        ('config.user.y eq "Hello World" and name eq aa', "aa"),
        ("config.user.y eq hello.*", "aa"),
        ("used_by eq []", "aa ab default"),
        ("public eq true", "aa"),
    ],
)
def test_what_real_incus_lets_through(text: str, expected: str) -> None:
    assert [p["name"] for p in filter_objects(PROFILES, text)] == expected.split()


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("name", 400, "Invalid filter: clause has no operator"),
        ("and", 400, "Invalid filter: clause has no operator"),
        ("name=aa", 400, "Invalid filter: clause has no operator"),
        ("name eq", 400, "Invalid filter: clause has no value"),
        ("name foo aa", 500, "Unsupported operation"),
        ("name EQ aa", 500, "Unsupported operation"),
        ("name eq aa and", 400, "Invalid filter: unterminated compound clause"),
        ("description eq 'x y'", 400, "Invalid filter: invalid clause composition"),
        ("name eq aa foo name eq ab", 400, "Invalid filter: invalid clause composition"),
        ('name eq "a b', 400, "Invalid filter: unterminated quote"),
        ("nosuch eq aa", 500, 'Invalid type "invalid" for field "nosuch"'),
        ("user.x eq aa", 500, 'Invalid type "invalid" for field "user.x"'),
        ("Name eq aa", 500, 'Invalid type "invalid" for field "Name"'),
    ],
)
def test_what_real_incus_refuses(text: str, status: int, error: str) -> None:
    with pytest.raises(ApiError) as caught:
        filter_objects(PROFILES, text)
    assert (caught.value.status, str(caught.value)) == (status, error)


def test_structs_are_filtered_too() -> None:
    class Item(msgspec.Struct):
        name: str

    assert filter_objects([Item("a"), Item("b")], "name eq b") == [Item("b")]


def test_a_hostile_expression_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ApiError, match="too costly"):
        filter_objects([{"name": "a" * 60 + "!"}], "name eq (a+)+$")
    assert time.monotonic() - started < 10  # else: years
