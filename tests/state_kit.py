"""A state file on disk with the schema and a first member, to try transactions and queries on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from incus_actors.model.transaction import Outcome, Statement, Transaction, Value
from incus_actors.state.apply import Applier
from incus_actors.state.codec import encode_transaction
from incus_actors.state.database import Database
from incus_actors.state.lint import check_transaction
from incus_actors.state.schema import initial_rows, pending_migrations

NOW = "2026-01-01T00:00:00Z"
_START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class _Record:
    index: int
    term: int
    kind: int
    timestamp_ms: int
    proposal_id: bytes
    body: bytes
    chain: bytes


class ScratchState:
    """`run` applies a transaction as a replica does (lint, guards, statements); `database` reads."""

    def __init__(self, directory: Path) -> None:
        path = directory / "state.db"
        self._applier = Applier(path)
        for migration in pending_migrations(0, NOW):
            assert self.run(migration).applied
        assert self.run(initial_rows(NOW, architecture=2, api_extensions=1)).applied
        self.database = Database(path)

    def run(self, transaction: Transaction) -> Outcome:
        """Apply one transaction; return its outcome."""
        check_transaction(transaction)
        index = self._applier.position.index + 1
        proposal_id = _START_MS.to_bytes(6, "big") + index.to_bytes(10, "big")
        body = encode_transaction(transaction)
        kind = 3 if transaction.schema else 2
        chain = index.to_bytes(8, "little")
        batch = self._applier.apply((_Record(index, 1, kind, _START_MS + index, proposal_id, body, chain),))
        outcome = batch.results[0][1]
        assert isinstance(outcome, Outcome)
        return outcome

    def sql(self, sql: str, *parameters: Value) -> None:
        """Apply one statement that must work."""
        outcome = self.run(Transaction((Statement(sql, parameters),)))
        assert outcome.applied, outcome

    def close(self) -> None:
        """Close the file."""
        self.database.close()
        self._applier.close()
