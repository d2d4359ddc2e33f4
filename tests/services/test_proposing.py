"""Outcomes become errors once, and only a lost race is tried again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from incus_actors.errors import ConflictError, MemberError
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.services.proposing import (
    ATTEMPTS,
    DuplicateError,
    TransactionConflictError,
    propose,
    until_unchanged,
)


def answering(outcome: Outcome) -> SimpleNamespace:
    async def give(transaction: Transaction, *, timeout_s: float) -> Outcome:
        return outcome

    return SimpleNamespace(propose=give)


async def test_outcomes():
    applied = Outcome("applied", 7)
    assert await propose(answering(applied), Transaction(())) is applied
    with pytest.raises(TransactionConflictError) as conflict:
        await propose(answering(Outcome("conflict", label="exists")), Transaction(()))
    assert conflict.value.label == "exists"
    with pytest.raises(DuplicateError) as duplicate:
        await propose(answering(Outcome("error", error="UNIQUE constraint failed: projects.name")), Transaction(()))
    assert duplicate.value.column == "projects.name"
    with pytest.raises(MemberError, match=r"^no such table: x$"):
        await propose(answering(Outcome("error", error="no such table: x")), Transaction(()))


async def test_a_lost_race_is_run_again_and_not_for_ever():
    runs = 0

    async def losing(times: int) -> str:
        nonlocal runs
        runs += 1
        if runs <= times:
            raise TransactionConflictError("changed")
        return "done"

    assert await until_unchanged(lambda: losing(3)) == "done"
    runs = 0
    with pytest.raises(ConflictError, match="try again"):
        await until_unchanged(lambda: losing(ATTEMPTS))


async def test_other_conflicts_are_not_run_again():
    async def refused() -> None:
        raise TransactionConflictError("in_use")

    with pytest.raises(TransactionConflictError):
        await until_unchanged(refused)
