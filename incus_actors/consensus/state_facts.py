"""What a proposer must know of the state: which ids it still remembers, and which schema it has.

Owns both, read when they can have changed; used by runtime.py on the main loop. Must never be newer than the state here: an
entry says what its maker saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from incus_actors.model.features import ENTRIES_NAME_THEIR_SCHEMA
from incus_actors.model.transaction import Transaction
from incus_actors.state.reader import Reader
from incus_actors.state.schema import current_version


@dataclass
class StateFacts:
    """`horizon_ms`: proposals made up to then are forgotten. `schema`: the version of the tables."""

    database: Reader
    horizon_ms: int = 0
    schema: int = 0

    def read(self) -> None:
        """Look at the state again."""
        self.horizon_ms = int(self.database.scalar("SELECT MAX(horizon_ms) FROM _raft") or 0)
        self.schema = current_version(self.database)

    def stamped(self, transaction: Transaction, level: int) -> Transaction:
        """Return the transaction with the schema that it was made for (what its maker says, or what there is here), once
        every member reads that in an entry."""
        if transaction.schema:
            return transaction
        wanted = transaction.min_schema or self.schema
        return replace(transaction, min_schema=wanted if level >= ENTRIES_NAME_THEIR_SCHEMA else 0)
