"""Names of instances."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_actors.domain.names import check_instance_name, hostname_problem, petname
from incus_actors.errors import BadRequestError


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "Name must be 1-63 characters long"),
        ("a" * 64, "Name must be 1-63 characters long"),
        ("a_b", "Name can only contain alphanumeric and hyphen characters"),
        ("a.b", "Name can only contain alphanumeric and hyphen characters"),
        ("ä", "Name can only contain alphanumeric and hyphen characters"),
        ("a\n", "Name can only contain alphanumeric and hyphen characters"),
        ("123", "Name cannot be a number"),
        ("-a", 'Name must not start with "-" character'),
        ("a-", 'Name must not end with "-" character'),
        ("1abc", None),
        ("a" * 63, None),
    ],
)
def test_hostnames_as_a_real_incus_judges_them(name, problem):
    assert hostname_problem(name) == problem


def test_slashes_are_for_snapshots():
    with pytest.raises(BadRequestError, match='The character "/" is reserved for snapshots'):
        check_instance_name("a/b")


@given(st.integers())
def test_made_up_names_are_names_and_never_taken(seed):
    first = petname(random.Random(seed))
    second = petname(random.Random(seed), taken={first})
    assert hostname_problem(first) is hostname_problem(second) is None
    assert second != first


def test_a_made_up_name_is_found_even_if_every_pair_of_words_is_taken():
    class AllWithoutNumber:
        def __contains__(self, name):
            return name.count("-") == 1

    assert petname(random.Random(1), AllWithoutNumber()).count("-") == 2
