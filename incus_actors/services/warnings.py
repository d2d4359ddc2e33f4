"""Warnings: raise, show, acknowledge, delete (CONTRACT 15).

Owns the kinds of warnings that this release raises; called by rest/warning_routes.py, LeaderActor and start-up
checks. Must never hold up what it warns about: callers propose through `raised` in the background.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from incus_actors.actors.offline_watch import OFFLINE_MEMBER
from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_warnings as transactions
from incus_actors.domain.members import rfc3339
from incus_actors.domain.transactions_warnings import Occurrence
from incus_actors.errors import BadRequestError, ForbiddenError, NotFoundError
from incus_actors.model.resources import Warning as ShownWarning
from incus_actors.model.transaction import Transaction
from incus_actors.services.proposing import TransactionConflictError, propose
from incus_actors.state.queries import warnings as queries
from incus_actors.state.reader import Reader


@dataclass(frozen=True, slots=True)
class _Kind:
    code: int
    text: str
    severity: str


class WarningKind(Enum):
    """What is warned about: stored number, text and severity as Incus shows them."""

    TIME_SKEW = _Kind(13, "Time skew detected between leader and local", "low")
    APPARMOR_DISABLED = _Kind(14, "AppArmor support has been disabled", "low")
    NETWORK_UNAVAILABLE = _Kind(19, "Network unavailable", "high")
    OFFLINE_MEMBER = _Kind(OFFLINE_MEMBER, "Offline cluster member", "low")
    AUTOSTART_FAILED = _Kind(21, "Failed to autostart instance", "low")
    TYPE_NOT_OPERATIONAL = _Kind(22, "Instance type not operational", "low")
    POOL_UNAVAILABLE = _Kind(23, "Storage pool unavailable", "high")


_BY_CODE = {kind.value.code: kind.value for kind in WarningKind}


class WarningService:
    """`clock_ns` is the wall clock."""

    def __init__(self, *, consensus: Consensus, database: Reader, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._consensus = consensus
        self._database = database
        self._clock_ns = clock_ns

    def list(self, project: str | None = None) -> list[ShownWarning]:
        """Return all warnings, or those of one project."""
        return [_shown(row) for row in queries.warnings(self._database, project)]

    def get(self, uuid_: str) -> ShownWarning:
        """Return one warning. Raises NotFoundError."""
        row = queries.warning(self._database, uuid_)
        if row is None:
            raise NotFoundError("Warning not found")
        return _shown(row)

    async def set_status(self, uuid_: str, status: str) -> None:
        """Acknowledge a warning or make it new again. Raises NotFoundError, BadRequestError, ForbiddenError."""
        self.get(uuid_)
        number = queries.STATUS_NUMBERS.get(status)
        if number is None:
            raise BadRequestError(f'Invalid warning type "{status}"')
        if number == transactions.RESOLVED:
            raise ForbiddenError('Status may only be set to "acknowledge" or "new"')
        await self._change(transactions.set_status(uuid_, number, self._now()))

    async def delete(self, uuid_: str) -> None:
        """Delete. Raises NotFoundError."""
        await self._change(transactions.delete_warning(uuid_))

    async def raised(
        self, kind: WarningKind, message: str, *, member_id: int | None = None, project_id: int | None = None
    ) -> None:
        """Warn once more of `kind`. Raises UnavailableError without a quorum."""
        occurrence = Occurrence(kind.value.code, message, member_id, project_id)
        await propose(self._consensus, transactions.raise_warning(occurrence, str(uuid.uuid4()), self._now()))

    async def resolved(self, kind: WarningKind, *, member_id: int | None = None) -> None:
        """What `kind` warned of is over."""
        await propose(self._consensus, transactions.resolve_warnings(kind.value.code, member_id, self._now()))

    async def tell(self, kind: WarningKind, message: str, *, member_id: int) -> None:
        """Warn of `kind` about a member, or ("") resolve what was warned of. Raises UnavailableError."""
        if message:
            await self.raised(kind, message, member_id=member_id)
        elif queries.unresolved(self._database, kind.value.code, member_id):
            await self.resolved(kind, member_id=member_id)

    async def _change(self, transaction: Transaction) -> None:
        try:
            await propose(self._consensus, transaction)
        except TransactionConflictError:
            raise NotFoundError("Warning not found") from None

    def _now(self) -> str:
        return rfc3339(self._clock_ns())


def _shown(row: queries.WarningRow) -> ShownWarning:
    kind = _BY_CODE.get(row.type_code)
    return ShownWarning(
        status=queries.STATUSES.get(row.status, "new"),
        uuid=row.uuid,
        location=row.location,
        project=row.project,
        type=kind.text if kind else f"Unknown warning {row.type_code}",
        count=row.count,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        last_message=row.last_message,
        severity=kind.severity if kind else "low",
        entity_url="",
    )
