"""The door of the log on the member where a proposal is made: what may not be replicated is refused here, and counted.

Owns the checks that need no leader (determinism lint, encoding, size, form of the id) and their counters; used by
runtime.py on the main loop. What passes can still be refused by the core. Must never let anything through half-checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from incus_actors.consensus.types import EntryKind, Limits
from incus_actors.errors import BadRequestError
from incus_actors.model.transaction import Transaction
from incus_actors.state.codec import BodyError, encode_transaction
from incus_actors.state.lint import LintError, check_transaction, only_deletes

PROPOSAL_ID_BYTES = 16
FREEING_BYTES = 16 << 10  #: what is to make room must not take much itself


@dataclass
class Admission:
    """Checks transactions. `refused` counts by the names of ConsensusStatus.counters."""

    limits: Limits
    refused: dict[str, int] = field(default_factory=dict)

    def encode(self, transaction: Transaction, proposal_id: bytes | None) -> tuple[EntryKind, bytes]:
        """Return kind and body of the entry.

        Raises BadRequestError (LintError for what is not deterministic) for what may not be replicated.
        """
        try:
            check_transaction(transaction)
        except LintError:
            self._count("nondeterministic")
            raise
        try:
            body = encode_transaction(transaction)
        except BodyError as exc:
            self._count("malformed")
            raise BadRequestError(str(exc)) from exc
        if len(body) > self.limits.body_bytes:
            self._count("too_large")
            raise BadRequestError(f"Transaction of {len(body)} bytes is too large: at most {self.limits.body_bytes}")
        if proposal_id is not None and len(proposal_id) != PROPOSAL_ID_BYTES:
            self._count("invalid")
            raise BadRequestError("A proposal id has 16 bytes")
        return _kind(transaction, body), body

    def _count(self, status: str) -> None:
        name = f"proposals_refused,status={status}"
        self.refused[name] = self.refused.get(name, 0) + 1

    def counters(self, others: dict[str, int]) -> dict[str, int]:
        """Return the counters of the consensus thread together with ours."""
        return {name: others.get(name, 0) + self.refused.get(name, 0) for name in {**others, **self.refused}}


def _kind(transaction: Transaction, body: bytes) -> EntryKind:
    if transaction.schema:
        return EntryKind.SCHEMA
    frees = transaction.frees or only_deletes(transaction)
    return EntryKind.DELETE if frees and len(body) <= FREEING_BYTES else EntryKind.SQL
