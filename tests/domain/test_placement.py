"""Where a new instance goes."""

from __future__ import annotations

import pytest

from incus_actors.domain.members import MemberState
from incus_actors.domain.placement import RESERVED_S, Candidate, Reservations, candidates, choose, eligible_guard

X86 = frozenset({"x86_64", "i686"})


def member(member_id: int, instances: int = 0, **changes):
    fields = {"online": True, "architectures": X86}
    return Candidate(member_id, f"m{member_id}", instances, **{**fields, **changes})


def test_fewest_instances_then_lowest_id():
    members = [member(3, 1), member(2, 1), member(1, 2)]
    assert [c.member_id for c in candidates(members)] == [2, 3, 1]


@pytest.mark.parametrize(
    "unfit",
    [
        {"online": False},
        {"state": MemberState.PENDING},
        {"state": MemberState.EVACUATED},
        {"architectures": frozenset({"aarch64"})},
        {"scheduler": "manual"},
        {"scheduler": "group"},
    ],
)
def test_unfit_members_are_left_out(unfit):
    members = [member(1, 0, **unfit), member(2, 9)]
    chosen = choose(members, architecture="x86_64")
    assert chosen is not None
    assert chosen.member_id == 2


def test_groups():
    members = [
        member(1),
        member(2, 5, groups=frozenset({"g1"}), scheduler="group"),
        member(3, 7, groups=frozenset({"g1"})),
    ]
    assert [c.member_id for c in candidates(members, group="g1")] == [2, 3]
    assert choose(members, group="nope") is None
    assert choose([]) is None


def test_guard_holds_only_for_a_full_member():
    guard = eligible_guard(2)
    assert guard.expected == ((0,),)
    assert guard.label == "placement"


def test_what_has_been_placed_counts_until_it_has_a_row_or_failed():
    rows: set[tuple[str, str]] = set()
    book = Reservations()

    def choose_for(name, counts, now_s=0.0):
        return book.choose(("default", name), [1, 2], counts, has_row=rows.__contains__, now_s=now_s)

    assert choose_for("a", {}) == [1, 2]
    assert choose_for("b", {}) == [2, 1]
    rows.add(("default", "a"))
    assert choose_for("c", {1: 1}) == [1, 2]  # a: a row of 1; b: reserved at 2
    assert choose_for("d", {1: 1}) == [2, 1]
    assert choose_for("e", {1: 1}, RESERVED_S + 1) == [2, 1]  # b, c and d never came


def test_an_instance_that_came_and_went_is_not_waited_for():
    rows = set()
    book = Reservations()

    def choose_for(name):
        return book.choose(("default", name), [1, 2], {}, has_row=rows.__contains__, now_s=0.0)

    assert choose_for("a") == [1, 2]
    rows.add(("default", "a"))
    book.settle(has_row=rows.__contains__, now_s=1.0)
    rows.clear()
    assert choose_for("b") == [1, 2]
