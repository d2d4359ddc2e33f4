"""The log in memory: generations, conflicts, configurations, chains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_actors.consensus.configuration import encode_configuration
from incus_actors.consensus.log import LogDamagedError, RaftLog, verify_chain
from incus_actors.consensus.types import GENESIS_CHAIN, Configuration, EntryKind, SnapshotMark

from .harness import members, pid

MARK = SnapshotMark(0, 0, GENESIS_CHAIN, Configuration(members(1)), 0)


def log_of(*terms: int) -> RaftLog:
    log = RaftLog(MARK, ())
    for number, term in enumerate(terms, start=1):
        log.append(log.make(term, EntryKind.SQL, 0, pid(number), b"x"))
    return log


def test_durable_follows_writes_and_generations() -> None:
    log = log_of(1, 1, 1)
    assert log.durable == 0
    log.write_started(1)
    log.truncate(2)
    log.append(log.make(2, EntryKind.SQL, 0, b"", b"new"))
    log.append(log.make(2, EntryKind.SQL, 0, b"", b"new"))
    log.write_started(2)
    assert log.write_finished(1)
    assert log.durable == 1, "the first write vouches only for what was not replaced"
    assert log.writing
    assert log.write_finished(2)
    assert log.durable == 3
    assert not log.writing


def test_truncating_what_is_durable_takes_durable_back() -> None:
    log = log_of(1, 1, 1)
    log.write_started(1)
    log.write_finished(1)
    log.truncate(2)
    assert (log.durable, log.last, log.last_term, log.generation) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(7, 9, (6, 5)), (6, 4, (4, 2)), (6, 1, (2, 1)), (3, 5, (3, 2)), (6, 0, (0, 0)), (0, 3, (0, 0))],
)
def test_last_not_after_term(index: int, term: int, expected: tuple[int, int]) -> None:
    assert log_of(1, 1, 2, 2, 5, 5).last_not_after_term(index, term) == expected


def test_configurations_are_a_stack_that_truncation_pops_and_compaction_folds() -> None:
    log = log_of(1, 1)
    first, second = Configuration(members(2)), Configuration(members(3))
    for configuration in (first, second):
        log.append(log.make(1, EntryKind.CONFIG, 0, b"", encode_configuration(configuration)))
    assert (log.configuration, log.configuration_index) == (second, 4)
    log.truncate(4)
    assert (log.configuration, log.configuration_index) == (first, 3)
    log.write_started(1)
    log.write_finished(1)
    log.compact(3)
    assert (log.mark.configuration, log.mark.configuration_index, log.mark.index) == (first, 3, 3)
    assert log.term_at(3) == 1
    assert log.term_at(2) is None


def test_compaction_never_passes_what_is_durable() -> None:
    log = log_of(1, 1, 1)
    log.compact(2)
    assert log.first == 1


def test_proposal_ids_are_known_while_their_entries_are() -> None:
    log = log_of(1, 1, 1)
    assert log.proposals == {pid(1): 1, pid(2): 2, pid(3): 3}
    log.truncate(3)
    log.write_started(1)
    log.write_finished(1)
    log.compact(1)
    assert log.proposals == {pid(2): 2}


def test_gaps_and_falling_terms_are_damage() -> None:
    entries = log_of(1, 2, 3).entries
    for bad in ([entries[0], entries[2]], [entries[1]], [entries[0], replace(entries[1], term=0)]):
        with pytest.raises(LogDamagedError):
            RaftLog(MARK, bad)


def test_a_changed_byte_breaks_the_chain() -> None:
    entries = log_of(1, 1, 2).entries
    assert verify_chain(MARK, entries) == 3
    for position in range(3):
        for change in ({"body": b"y"}, {"timestamp_ms": 77}, {"proposal_id": pid(9)}, {"chain": b"00000000"}):
            bad = list(entries)
            bad[position] = replace(bad[position], **change)  # type: ignore[arg-type]
            with pytest.raises(LogDamagedError):
                verify_chain(MARK, bad)


def test_the_log_weighs_what_its_entries_weigh() -> None:
    log = log_of(1, 1, 1)
    weight = log.bytes
    log.append(log.make(1, EntryKind.SQL, 0, b"", b"x" * 100))
    assert log.bytes > weight + 100
    log.truncate(4)
    assert log.bytes == weight
