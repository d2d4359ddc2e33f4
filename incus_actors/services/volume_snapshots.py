"""Snapshots of custom volumes: create, list, show, change, rename, delete, and when they expire (CONTRACT 13).

Owns their rules with Incus' texts; called by rest/volume_snapshot_routes.py and by the schedule. Must never remove a
snapshot that has not expired, nor one that is being restored.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from incus_actors.actors.storage_messages import CreateSnapshot, DeleteSnapshot, RenameSnapshot
from incus_actors.actors.volume_repair import mark
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.transactions_volumes import NewSnapshot
from incus_actors.errors import BadRequestError, ConflictError, NotFoundError
from incus_actors.model.config_values import parse_expiry_s
from incus_actors.model.volumes import Snapshot, SnapshotPut, SnapshotsPost
from incus_actors.services import project_guard
from incus_actors.services.proposing import DuplicateError, Expect, TransactionConflictError, propose
from incus_actors.services.volume_tools import NOT_FOUND, NOT_ON_MEMBER, VolumeAddress, VolumeTools
from incus_actors.state.queries.volumes import SnapshotRow, VolumeRow

ZERO_TIME = "0001-01-01T00:00:00Z"
PATTERN_DEFAULT = "snap%d"
NAME_BYTES_MAX = 128
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_DATE = re.compile(r"\{\{\s*creation_date\s*(?:\|\s*date:\s*['\"]([^'\"]*)['\"]\s*)?\}\}")
#: Words of Go's time layouts, the longest first.
_GO_LAYOUT = (("2006", "%Y"), ("01", "%m"), ("02", "%d"), ("15", "%H"), ("04", "%M"), ("05", "%S"))


class VolumeSnapshotService:
    """`tools` finds volumes and asks the StorageActor."""

    def __init__(self, tools: VolumeTools) -> None:
        self._tools = tools

    # --- reading --------------------------------------------------------------------------------------------

    def all_of(self, address: VolumeAddress) -> list[Snapshot]:
        """Return the snapshots of a volume, the oldest first; their names begin with the volume's, as Incus has it."""
        row = self._tools.find(address)
        return [_shown(found, f"{row.name}/{found.name}", "") for found in self._tools.snapshots(row)]

    def names(self, address: VolumeAddress) -> list[str]:
        """Return the names of the snapshots of a volume, the oldest first."""
        return [found.name for found in self._tools.snapshots(self._tools.find(address))]

    def get(self, address: VolumeAddress, name: str) -> Snapshot:
        """Return one snapshot. Raises NotFoundError."""
        row = self._tools.find(address)
        found = self._tools.snapshot(row, name)
        shown = _shown(found, found.name, row.content)
        shown.expires_at = shown.expires_at or ZERO_TIME  # in lists it is null
        return shown

    # --- creating -------------------------------------------------------------------------------------------

    def check_new(self, address: VolumeAddress, post: SnapshotsPost) -> None:
        """Fill in a name; raise what is wrong before the operation begins."""
        if address.type != "custom":
            self._tools.check_type(address.type)
            raise BadRequestError(f'Invalid storage volume type "{address.type}"')
        row = self._tools.find_here(address)
        project_guard.check_may(self._tools.host.database(), address.project, "snapshot")
        if row.content == "iso":
            raise BadRequestError('Volume of content type "iso" does not support snapshots')
        taken = {found.name for found in self._tools.snapshots(row)}
        if not post.name:
            post.name = next_name(row.config.get("snapshots.pattern", ""), taken, self._now())
        check_snapshot_name(post.name)
        if post.name in taken:
            raise ConflictError(f'Snapshot "{post.name}" already in use')
        if post.expires_at is not None:
            post.expires_at = normal_time(post.expires_at)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._tools.host.clock_ns() / 1e9, UTC)

    async def create(self, address: VolumeAddress, post: SnapshotsPost, caller: Any = None) -> None:
        """Keep a volume of this member as it is now. Raises ConflictError, DriverError."""
        tools = self._tools
        row = tools.find_here(address)
        expires_at = post.expires_at
        if expires_at is None:
            expires_at = expiry(row.config.get("snapshots.expiry", ""), self._now())
        new = NewSnapshot(
            name=post.name,
            description=post.description,
            created_at=tools.host.now(),
            expires_at="" if expires_at == ZERO_TIME else expires_at,
            config=row.config,
        )
        phase = mark(tools.host, transactions.CREATING)
        try:
            outcome = await propose(
                tools.host.consensus(),
                transactions.create_snapshot(row.id, tools.host.member_id(), new, phase=phase),
            )
        except DuplicateError:
            raise ConflictError(f'Snapshot "{post.name}" already in use') from None
        except TransactionConflictError:
            raise NotFoundError(NOT_FOUND) from None
        snapshot_id = int(outcome.rows[0][0][0] or 0)
        try:
            await tools.ask(CreateSnapshot(tools.spec(row), post.name))
            await tools.propose(transactions.set_snapshot_phase(snapshot_id, phase, ""))
        except BaseException:
            await tools.ask(DeleteSnapshot(tools.spec(row), post.name))
            await tools.propose(transactions.delete_snapshot(snapshot_id))
            raise
        suffix = f"/snapshots/{post.name}"
        tools.lifecycle("storage-volume-snapshot-created", row, caller, suffix=suffix, type=row.type)

    # --- changing and deleting ------------------------------------------------------------------------------

    async def update(
        self,
        address: VolumeAddress,
        name: str,
        put: SnapshotPut,
        *,
        patch: bool = False,
        expect: Expect | None = None,
        caller: Any = None,
    ) -> None:
        """Change description and expiry. Raises NotFoundError, BadRequestError, PreconditionFailedError."""
        row = self._tools.find_here(address)
        found = self._tools.snapshot(row, name)
        if expect is not None:
            expect(editable(found))
        description = found.description if patch and put.description is None else put.description or ""
        expires_at = "" if put.expires_at is None else normal_time(put.expires_at)
        if put.expires_at is None and patch:
            expires_at = found.expires_at
        await self._tools.propose(
            transactions.update_snapshot(found.id, description, "" if expires_at == ZERO_TIME else expires_at)
        )
        self._tools.lifecycle("storage-volume-snapshot-updated", row, caller, suffix=f"/snapshots/{name}")

    def check_rename(self, new: str) -> None:
        """Raise BadRequestError before the operation begins."""
        if not new:
            raise BadRequestError("No name provided")
        if "/" in new:
            raise BadRequestError("Storage volume names may not contain slashes")

    async def rename(self, address: VolumeAddress, name: str, new: str, caller: Any = None) -> None:
        """Give a snapshot another name. Raises NotFoundError, ConflictError, BadRequestError."""
        tools = self._tools
        check_snapshot_name(new)
        row = tools.find_here(address)
        try:
            found = self._tools.snapshot(row, name)
        except NotFoundError:
            raise NotFoundError(
                f'Storage volume "{row.name}/{name}" in project "{row.project}" of type "{row.type}" does not exist on'
                f' pool "{row.pool}": {NOT_ON_MEMBER}'
            ) from None
        if any(other.name == new for other in self._tools.snapshots(row)):
            raise ConflictError(f'Snapshot "{new}" already in use')
        phase = mark(tools.host, transactions.RENAMING, new)
        await tools.propose(transactions.set_snapshot_phase(found.id, "", phase))
        renamed = False
        try:
            await tools.ask(RenameSnapshot(tools.spec(row), name, new))
            renamed = True
            await tools.propose(transactions.rename_snapshot(found.id, new))
            renamed = False
        finally:
            if renamed:
                await tools.ask(RenameSnapshot(tools.spec(row), new, name))
            await tools.propose(transactions.set_snapshot_phase(found.id, phase, ""))
        tools.lifecycle("storage-volume-snapshot-renamed", row, caller, suffix=f"/snapshots/{new}", old_name=name)

    def check_delete(self, address: VolumeAddress, name: str) -> None:
        """Raise NotFoundError before the operation begins."""
        self._tools.snapshot(self._tools.find_here(address), name)

    async def delete(self, address: VolumeAddress, name: str, caller: Any = None) -> None:
        """Remove a snapshot. Raises NotFoundError, DriverError."""
        tools = self._tools
        row = tools.find_here(address)
        await self.delete_row(row, self._tools.snapshot(row, name))
        tools.lifecycle("storage-volume-snapshot-deleted", row, caller, suffix=f"/snapshots/{name}")

    async def delete_row(self, row: VolumeRow, found: SnapshotRow) -> None:
        """Remove files and rows of a snapshot of this member. Raises ApiError."""
        tools = self._tools
        if not found.phase.startswith(transactions.DELETING):
            phase = mark(tools.host, transactions.DELETING)
            await tools.propose(transactions.set_snapshot_phase(found.id, found.phase, phase))
        await tools.ask(DeleteSnapshot(tools.spec(row), found.name))
        await tools.propose(transactions.delete_snapshot(found.id))


# --- names and times ----------------------------------------------------------------------------------------


def check_snapshot_name(name: str) -> None:
    """Raise BadRequestError for a name that a snapshot can't have."""
    if "/" in name:
        raise BadRequestError('Storage name cannot contain "/"')
    if any(character.isspace() for character in name):
        raise BadRequestError("Storage name cannot contain white space")
    if not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
        raise BadRequestError(f"Invalid snapshot name {name!r}")


def next_name(pattern: str, taken: Collection[str], now: datetime) -> str:
    """Return a name for a new snapshot: `%d` is the next free number, `{{ creation_date|date:'…' }}` the time.

    Raises BadRequestError for a pattern that can't be read.
    """

    def date(match: re.Match[str]) -> str:
        layout = match[1] if match[1] is not None else "2006-01-02T15:04:05Z"
        for word, code in _GO_LAYOUT:
            layout = layout.replace(word, code)
        return now.strftime(layout)

    check_pattern(pattern)
    text = _DATE.sub(date, pattern or PATTERN_DEFAULT)
    if "%d" not in text and text in taken:
        text += "-%d"
    if "%d" not in text:
        return text
    head, _, tail = text.partition("%d")
    numbers = [
        int(name[len(head) : len(name) - len(tail)])
        for name in taken
        if name.startswith(head) and name.endswith(tail) and name[len(head) : len(name) - len(tail)].isdigit()
    ]
    return f"{head}{max(numbers, default=-1) + 1}{tail}"


def check_pattern(pattern: str) -> None:
    """Raise BadRequestError, with the words of Incus' parser, for anything in braces that isn't the time."""
    rest = _DATE.sub(lambda match: " " * len(match[0]), pattern)  # columns stay what they are
    found = re.search(r"\{\{(?P<value>.*?)(?P<end>\}\}|$)|\{%\s*(?P<tag>\w*)", rest)
    if found is None:
        return
    column, near = len(pattern) + 1, "{%"
    if found["tag"]:
        column, near = found.start("tag") + 1, found["tag"]
        reason = f"Tag '{near}' not found (or beginning tag not provided)"
    elif found["value"] and not found["end"]:
        reason = "'}}' expected"
    elif found["value"] and (filtered := re.search(r"\|\s*(\w+)", found["value"])):
        column, near = found.start("value") + filtered.start(1) + 1, filtered[1]
        reason = f"Filter '{near}' does not exist."
    else:
        reason = "Expected either a number, string, keyword or identifier."
    column += len("{% autoescape off %}")  # which Incus puts in front
    raise BadRequestError(f"[Error (where: parser) in <string> | Line 1 Col {column} near '{near}'] {reason}")


def expiry(expression: str, now: datetime) -> str:
    """Return when something made now expires ("1d 2H"), "" for never. Raises ValueError."""
    seconds = parse_expiry_s(expression)
    return rfc3339(now + timedelta(seconds=seconds)) if seconds else ""


def rfc3339(moment: datetime) -> str:
    """Return a time as rows have it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def normal_time(text: str) -> str:
    """Return a time from a request in UTC; "" and the zero time as they are. Raises BadRequestError."""
    if text in ("", ZERO_TIME):
        return text
    found = _TIME.fullmatch(text)
    if found is None:
        raise BadRequestError(f'parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse "{text}"')
    try:
        moment = datetime.fromisoformat(f"{found[1]}{(found[2] or '.0')[:7]}{found[3].replace('Z', '+00:00')}")
    except ValueError as error:
        raise BadRequestError(f'parsing time "{text}": {error}') from None
    return rfc3339(moment)


def editable(snapshot: SnapshotRow | Snapshot) -> object:
    """Return what the ETag of a snapshot covers."""
    return [snapshot.name, snapshot.description, snapshot.expires_at or ZERO_TIME]


def _shown(row: SnapshotRow, name: str, content: str) -> Snapshot:
    return Snapshot(
        description=row.description,
        expires_at=row.expires_at or None,
        name=name,
        config=dict(row.config),
        content_type=content,
        created_at=row.created_at,
    )
