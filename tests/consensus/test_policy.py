"""The role policy as a table of cases (CONSENSUS 3.9, DESIGN D6)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from incus_actors.consensus.policy import (
    MemberHealth,
    PlanPacer,
    leaves_a_majority,
    plan,
    swapped,
    vote_given_away,
    wanted_voters,
    without,
)
from incus_actors.consensus.types import Configuration, Member, Role

LETTERS = {"V": Role.VOTER, "S": Role.STANDBY, "P": Role.SPARE}


def configuration(roles: str, domains: str = "") -> Configuration:
    """ "VSP" is voter 1, standby 2, spare 3; `domains` gives one letter each."""
    return Configuration(
        tuple(
            Member(i, f"m{i}", LETTERS[letter], domains[i - 1] if domains else "default")
            for i, letter in enumerate(roles, start=1)
        )
    )


def health(states: str, lags: dict[int, int] | None = None) -> dict[int, MemberHealth]:
    """One letter each: "u" up and caught up, "b" up but behind, "s" silent for 10 s, "d" for a minute."""
    ages = {"u": 20, "b": 20, "s": 10_000, "d": 60_000}
    return {
        i: MemberHealth(ages[letter], (lags or {}).get(i, 0), letter == "u") for i, letter in enumerate(states, start=1)
    }


def after(roles: str, states: str, voters: int = 3, standbys: int = 2, domains: str = "", **more: object) -> str | None:
    found = plan(configuration(roles, domains), health(states), voters, standbys, leader=1, **more)  # type: ignore
    if found is None:
        return None
    return "".join({role: letter for letter, role in LETTERS.items()}[member.role] for member in found)


@pytest.mark.parametrize(
    ("roles", "states", "expected", "why"),
    [
        ("V", "u", None, "alone"),
        ("VP", "ub", "VS", "the second stands by"),
        ("VS", "uu", None, "two members: only the first votes"),
        ("VSP", "uub", "VSS", "the third stands by first"),
        ("VSS", "uub", None, "wait until it has caught up: never two voters"),
        ("VSS", "uuu", "VVV", "the third joins: three voters in one step"),
        ("VVV", "uuu", None, "settled"),
        ("VVVP", "uuub", "VVVS", "the fourth stands by"),
        ("VVVSP", "uuuub", "VVVSS", "and the fifth"),
        ("VVVSSP", "uuuuub", None, "the sixth is a spare"),
        ("VVVS", "uudu", "VVSV", "an offline voter is replaced in one step"),
        ("VVVS", "uusu", "VVSV", "soon, when a standby is ready"),
        ("VVVS", "uusb", None, "but not by one that is behind"),
        ("VVVP", "uusu", "VVVS", "a spare stands by first"),
        ("VVV", "uud", None, "never shrink: without a successor it stays a voter"),
        ("VVV", "udd", None, "nor when the quorum is lost"),
        ("VVVSS", "udduu", None, "a change that cannot commit is not proposed"),
        ("VVVSS", "uuudu", None, "an offline standby stays when there is nobody better"),
        ("VVVSSP", "uuuduu", "VVVPSS", "an offline standby changes places with a spare"),
        ("VVVSS", "uusdu", "VVSSV", "the standby that answers takes over"),
        ("VVVV", "uuuu", "VVVS", "an even number is one too many"),
        ("VVVVV", "uuuuu", "VVVVS", "max_voters was lowered: one at a time"),
        ("VVVVV", "uuduu", "VVSVV", "and the offline one first"),
        ("VVVSSS", "uuuuuu", "VVVSSP", "too many standbys"),
        ("VV", "uu", "VS", "after a removal two are left"),
        ("VV", "ud", None, "but the offline one cannot be demoted without its vote"),
        ("VVS", "uuu", "VVV", "a removal left a place"),
    ],
)
def test_table(roles: str, states: str, expected: str | None, why: str) -> None:
    assert after(roles, states) == expected, why


def test_more_voters_when_allowed_but_never_an_even_number() -> None:
    assert after("VVVSS", "uuuuu", voters=5) == "VVVVV"
    assert after("VVVSS", "uuuub", voters=5) is None
    assert [wanted_voters(members, 5) for members in range(1, 8)] == [1, 1, 3, 3, 5, 5, 5]
    assert [wanted_voters(members, 3) for members in range(1, 8)] == [1, 1, 3, 3, 3, 3, 3]


def test_failure_domains_spread_voters() -> None:
    assert after("VSSS", "uuuu", domains="aaab") == "VVSV"
    assert after("VVVSS", "uuduu", domains="abcac") == "VVSSV"
    assert after("VVVV", "uuuu", domains="abbc") == "VVSV"


def test_no_standbys_wanted_still_replaces_a_dead_voter() -> None:
    assert after("VVVP", "uudu", standbys=0) == "VVVS"
    assert after("VVVS", "uudu", standbys=0) == "VVSV"
    assert after("VVVS", "uuuu", standbys=0) == "VVVP"


def test_nothing_while_joint_and_unknown_members_are_offline() -> None:
    old = configuration("VVV")
    assert plan(Configuration(old.old, configuration("VVS").old), health("uuu"), 3, 2, leader=1) is None
    assert (
        plan(configuration("VVVS"), {1: MemberHealth(0, 0, True), 2: MemberHealth(0, 0, True)}, 3, 2, leader=1) is None
    )


def test_random_clusters_settle_and_never_lose_quorum_or_the_leaders_vote() -> None:
    rng = random.Random(5)
    for _ in range(500):
        count = rng.randint(1, 9)
        present = configuration("V" + "".join(rng.choice("VSP") for _ in range(count - 1)))
        states = "u" + "".join(rng.choice("uuuubsd") for _ in range(count - 1))
        known = health(states)
        for _ in range(40):
            following = plan(present, known, 3, 2, leader=1)
            if following is None:
                break
            voters = [m for m in following if m.role is Role.VOTER]
            online = [m for m in voters if m.id == 1 or states[m.id - 1] in "ub"]
            if voters != [m for m in present.old if m.role is Role.VOTER]:
                assert 2 * len(online) > len(voters)
            assert following[0].role is Role.VOTER
            present = Configuration(following)
        else:
            pytest.fail(f"does not settle: {states}")


def test_pacing() -> None:
    present, promoted, standby = (configuration(roles).old for roles in ("VVP", "VVV", "VVS"))
    pacer = PlanPacer()
    assert not pacer.may_go(present, promoted, 10_000, leading_since_ms=8_000)
    assert pacer.may_go(present, standby, 10_000, leading_since_ms=8_000), "it leaves the voters alone"
    assert pacer.may_go(present, promoted, 11_000, leading_since_ms=8_000)
    pacer.went(present, promoted, 11_000)
    assert not pacer.may_go(present, promoted, 12_999, leading_since_ms=8_000)
    assert pacer.may_go(present, promoted, 13_000, leading_since_ms=8_000)
    pacer.went(present, standby, 13_000)
    assert pacer.may_go(present, promoted, 13_001, leading_since_ms=8_000)


def letters(members: tuple[Member, ...]) -> str:
    """The roles by id, "-" for who is not there."""
    roles = {member.id: {role: letter for letter, role in LETTERS.items()}[member.role] for member in members}
    return "".join(roles.get(i, "-") for i in range(1, max(roles) + 1))


@pytest.mark.parametrize(
    ("roles", "states", "gone", "expected", "why"),
    [
        ("VVVS", "uuuu", {2}, "V-VV", "the standby votes in the same step"),
        ("VVVS", "uudu", {3}, "VV-V", "also for one that is offline"),
        ("VVVSS", "uuubu", {2}, "V-VSV", "one that is ready"),
        ("VVVSS", "uuusb", {2}, "V-VSS", "none is ready: it goes all the same"),
        ("VVVP", "uuuu", {2}, "V-VP", "a spare stands by first"),
        ("VVV", "uuu", {2}, "V-V", "a small cluster shrinks"),
        ("VVS", "uuu", {2}, "V-S", "of two members one votes"),
        ("VVVS", "uuuu", {4}, "VVV", "a standby goes"),
        ("VVVSS", "uuuuu", {4}, "VVV-S", "nobody is promoted for it"),
        ("VVVSS", "uuuuu", {2, 3}, "V--VV", "two at once"),
        ("VVVVS", "uuuuu", {2}, "V-VVS", "there was one voter too many"),
        ("VVVS", "uuuu", set(), "VVVS", "nobody goes"),
    ],
)
def test_who_leaves_is_replaced_in_the_same_step(
    roles: str, states: str, gone: set[int], expected: str, why: str
) -> None:
    found = without(configuration(roles).old, gone, health(states), 3)
    assert letters(found) == expected, why


@pytest.mark.parametrize(
    ("roles", "states", "gone", "fine"),
    [
        ("VVV", "uuu", 2, True),
        ("VVV", "uud", 2, False),  # 1 and 3 would be left, and 3 is away
        ("VVV", "uud", 3, True),
        ("VVVS", "uudu", 2, True),  # the standby votes instead
        ("VVVSS", "uuduu", 4, True),  # the voters stay as they are
        ("VVVVV", "uuudd", 2, False),
        ("VVVVV", "uuudd", 5, True),
    ],
)
def test_who_is_left_must_be_able_to_go_on(roles: str, states: str, gone: int, fine: bool) -> None:
    members = configuration(roles).old
    others = {member: known for member, known in health(states).items() if member != 1}  # as the leader, 1, sees it
    assert leaves_a_majority(members, without(members, {gone}, others, 5), others, 1) is fine


def test_the_failure_domain_of_the_one_that_leaves_is_free_again() -> None:
    found = without(configuration("VVVSS", "abcab").old, {2}, health("uuuuu"), 3)
    assert letters(found) == "V-VSV"
    assert letters(without(configuration("VVVVVSS").old, {2}, health("uuuuuuu"), 5)) == "V-VVVVS"


@pytest.mark.parametrize(
    ("roles", "states", "burnt", "expected", "why"),
    [
        ("VVV", "uud", 3, "VV-S", "no standby: the new id is the next voter"),
        ("VVVS", "uudu", 3, "VV-VS", "the standby votes, the new id takes its place"),
        ("VVVS", "uudb", 3, "VV-SS", "the standby is behind, both wait"),
        ("VVVS", "uuud", 4, "VVV-S", "a standby stands by again"),
        ("VVVSSP", "uuuuud", 6, "VVVSS-P", "a spare is a spare again"),
    ],
)
def test_a_burnt_id_is_swapped_in_one_step(roles: str, states: str, burnt: int, expected: str, why: str) -> None:
    newcomer = Member(len(roles) + 1, "new", Role.SPARE, "far")
    found = swapped(configuration(roles).old, burnt, newcomer, health(states), 3)
    assert letters(found) == expected, why
    assert found[-1].address == "new"
    assert found[-1].domain == "far"


@pytest.mark.parametrize(
    ("roles", "states", "expected", "why"),
    [
        ("VS", "uu", "SV", "of two members the other one goes on"),
        ("VS", "ub", None, "not one that is behind"),
        ("VS", "us", None, "nor one that may be away: then nobody could go on"),
        ("VP", "uu", None, "nor one that may still be joining"),
        ("VSS", "ubu", "SSV", "the one that is ready"),
        ("VVS", "uuu", None, "who has others beside it only hands leadership over"),
        ("V", "u", None, "alone"),
    ],
)
def test_the_only_vote_is_given_away_before_a_stop(roles: str, states: str, expected: str | None, why: str) -> None:
    found = vote_given_away(configuration(roles), health(states), 1)
    letters = {role: letter for letter, role in LETTERS.items()}
    assert (None if found is None else "".join(letters[member.role] for member in found)) == expected, why
    joint = replace(configuration(roles), new=configuration(roles).old)
    assert vote_given_away(joint, health(states), 1) is None
