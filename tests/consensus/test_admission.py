"""What kind of entry a transaction becomes, and what a low disk still takes."""

from __future__ import annotations

import pytest

from incus_actors.consensus.admission import FREEING_BYTES, Admission
from incus_actors.consensus.types import EntryKind, Limits
from incus_actors.domain import transactions_images, transactions_instances, transactions_volumes, transactions_warnings
from incus_actors.model.transaction import Statement, Transaction


def kind(transaction: Transaction) -> EntryKind:
    return Admission(Limits()).encode(transaction, None)[0]


def test_ways_out_of_a_full_disk_are_marked() -> None:
    for transaction in (
        transactions_instances.set_phase(1, 1, "", "deleting"),
        transactions_instances.set_keys(1, 1, {"volatile.last_state.power": "STOPPED", "volatile.eth0.name": None}),
        transactions_instances.delete(1, 1, "c1", 1),
        transactions_volumes.set_phase(1, 1, "", "deleting@1f2e"),
        transactions_volumes.delete(1, 1),
        transactions_volumes.set_snapshot_phase(1, "", "deleting@1f2e"),
        transactions_volumes.delete_snapshot(1),
        transactions_volumes.delete_backup(1, "b"),
        transactions_images.delete(1),
        transactions_warnings.delete_warning("uuid"),
    ):
        assert kind(transaction) is EntryKind.DELETE, transaction


@pytest.mark.parametrize("sql", ["UPDATE t SET a = 1", "INSERT INTO t VALUES (1)", "SELECT 1"])
def test_what_does_anything_else_is_not(sql: str) -> None:
    assert kind(Transaction((Statement("DELETE FROM t"), Statement("SELECT 1")))) is EntryKind.DELETE
    assert kind(Transaction((Statement(sql),))) is EntryKind.SQL
    beside = "UPDATE t SET a = 1" if sql == "SELECT 1" else sql
    assert kind(Transaction((Statement("DELETE FROM t"), Statement(beside)))) is EntryKind.SQL
    assert kind(transactions_instances.set_phase(1, 1, "", "moving")) is EntryKind.SQL
    assert kind(transactions_volumes.set_phase(1, 1, "", "renaming@1f2e:b")) is EntryKind.SQL


def test_what_makes_room_must_not_take_much_itself() -> None:
    large = Transaction((Statement("DELETE FROM t WHERE a = ?", (b"x" * FREEING_BYTES,)),))
    assert kind(large) is EntryKind.SQL
    assert kind(Transaction((Statement("DROP TABLE t"),), schema=True, frees=True)) is EntryKind.SCHEMA
