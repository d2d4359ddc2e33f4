"""Coming back under a new id: the side of the member that has forgotten what it promised (CONSENSUS 3.5).

Owns `$INCUS_DIR/members.json` (whom to ask when the database can't tell), the request, and the exchange of the damaged
database for an empty one, which happens before anything of the daemon runs. Must never let a member serve under the old
id, and never delete the only copy of what it had.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from incus_actors.clock import is_recent
from incus_actors.consensus import bootstrap
from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.recovery import RecoveryError, member_rows, overview
from incus_actors.errors import ApiError, MemberError
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptAnswer, ReplaceRequest
from incus_actors.security import certificates
from incus_actors.services.join_journal import JoinJournal
from incus_actors.services.peer_client import PeerClient
from incus_actors.services.replace import REPLACE_PATH, REPLACE_TIMEOUT_S
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

MEMBERS_FILE = "members.json"
DAMAGED = "database.damaged-"
KEPT = 3
STAY_DOWN_S = 600.0
FORBIDDEN = 403
RETRY_S = 1.0
SAY_EVERY_S = 30.0


class RejoinError(MemberError):
    """This server can't come back by itself; the text says what to do."""


class Acquaintances(msgspec.Struct, frozen=True):
    """Our name, and the API addresses of all members by name."""

    name: str
    members: dict[str, str]


def remember(directory: Path, identity: Identity, database: Reader) -> None:
    """Write down whom to ask, if that has changed. A small file; raises OSError."""
    if not identity.clustered:
        return
    known = Acquaintances(identity.name, {facts.name: facts.address for facts in queries.members(database)})
    path = directory / MEMBERS_FILE
    content = msgspec.json.encode(known)
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def acquaintances(directory: Path) -> Acquaintances:
    """Return whom to ask. Raises RejoinError if that is not known."""
    try:
        return msgspec.json.decode((directory / MEMBERS_FILE).read_bytes(), type=Acquaintances)
    except (FileNotFoundError, msgspec.DecodeError):
        pass
    found = _from_database(directory / "database")
    if found is None:
        raise RejoinError(
            f"This server doesn't know whom to ask: {directory / MEMBERS_FILE} is missing. Remove the member with "
            '"incus cluster remove <name> --force" elsewhere, empty this directory and join with a new token'
        )
    return found


def _from_database(database: Path) -> Acquaintances | None:
    """What the damaged database still tells."""
    try:
        found = overview(database)
    except RecoveryError:
        return None
    rows = member_rows(found.state_path)
    if found.member_id not in rows:
        return None
    return Acquaintances(rows[found.member_id][0], dict(rows.values()))


def needed(directory: Path) -> str:
    """Return why this server may not serve under the id that it had; nothing if it may."""
    database = directory / "database"
    marker = database / fmt.AMNESIA_NAME
    if marker.exists():
        return marker.read_text().strip() or "unknown"
    clustered = certificates.load_pair(directory, certificates.CLUSTER) is not None
    if clustered and JoinJournal(directory).phase() == "none" and not bootstrap.exists(database):
        return f"{database} is gone"
    return ""


@dataclass(frozen=True, slots=True)
class Versions:
    """What this software says of itself."""

    version: str
    schema: int
    api_extensions: int


async def rejoin(
    directory: Path,
    reason: str,
    *,
    transport: str,
    versions: Versions,
    peers: PeerClient,
    tell: Callable[[str], None],
    retry_s: float = RETRY_S,
) -> None:
    """Ask until a member gives us a new id, then put an empty database in the place of the damaged one.

    `tell` hears what is waited for. The journal stays "rejoining" until `settled`. Raises RejoinError.
    """
    pair = certificates.load_pair(directory, certificates.CLUSTER)
    if pair is None:
        raise RejoinError(
            f"This server has forgotten writes that it had acknowledged ({reason}), and nobody else has them. "
            f"Restore a copy of {directory / 'database'}, or go on with what is left: "
            '"incus-actorsd cluster recover-from-quorum-loss --accept-data-loss"'
        )
    _not_again_and_again(directory)
    known = acquaintances(directory)
    others = {name: address for name, address in known.members.items() if name != known.name}
    if not others:
        raise RejoinError(
            f"This server, the only member of its cluster, has forgotten acknowledged writes ({reason}). Go on with "
            'what is left: "incus-actorsd cluster recover-from-quorum-loss --accept-data-loss"'
        )
    if not transport:
        raise RejoinError(f"{directory / 'transport.json'} is missing: where this member listens is not known")
    log.error("this server can't be trusted under its old id (%s): it joins its cluster again", reason)
    request = ReplaceRequest(
        name=known.name,
        transport=transport,
        version=versions.version,
        schema=versions.schema,
        api_extensions=versions.api_extensions,
    )
    answer = await _ask(others, request, pair.certificate_pem, peers, tell, retry_s)
    certificates.write_pair(directory, certificates.CLUSTER, answer.cluster_certificate, answer.cluster_certificate_key)
    await asyncio.to_thread(_exchange, directory, answer)
    log.warning("this server goes on as member %d", answer.member_id)


def _not_again_and_again(directory: Path) -> None:
    recent = [path for path in _damaged(directory) if is_recent(_stamp_s(path), STAY_DOWN_S)]
    if len(recent) >= KEPT:
        raise RejoinError(
            f"This server lost its database {len(recent)} times within {STAY_DOWN_S / 60:.0f} minutes. Check its "
            f"disk; remove {directory}/{DAMAGED}* to try again now"
        )


async def _ask(
    others: dict[str, str],
    request: ReplaceRequest,
    certificate_pem: str,
    peers: PeerClient,
    tell: Callable[[str], None],
    retry_s: float,
) -> AcceptAnswer:
    said_at = -SAY_EVERY_S
    while True:
        refusals: list[str] = []
        strangers = 0  #: members that don't know us
        for name, address in sorted(others.items()):
            try:
                metadata = await peers.post(
                    address,
                    REPLACE_PATH,
                    msgspec.to_builtins(request),
                    certificate_pem=certificate_pem,
                    timeout_s=REPLACE_TIMEOUT_S,
                )
                return msgspec.convert(metadata, AcceptAnswer)
            except (ApiError, msgspec.ValidationError) as error:
                refusals.append(f"{name}: {error}")
                strangers += isinstance(error, ApiError) and error.status == FORBIDDEN
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            text = f"waiting for a member that can give this server a new id ({'; '.join(refusals)})"
            if strangers:
                text += (
                    ". If this server was removed from the cluster: move its state directory aside, start it, and let it "
                    "join with a new token"
                )
            else:
                text += "; with no quorum left, recover one member: incus-actorsd cluster --help"
            log.warning("%s", text)
            tell(text)
        await asyncio.sleep(retry_s)


def _exchange(directory: Path, answer: AcceptAnswer) -> None:
    database = directory / "database"
    JoinJournal(directory).write("rejoining", answer.member_id)
    database.mkdir(mode=0o700, exist_ok=True)
    aside = bootstrap.replace_database(
        database,
        cluster_id=uuid.UUID(answer.cluster_id).bytes,
        epoch=answer.epoch,
        member_id=answer.member_id,
        configuration=decode_configuration(answer.configuration.encode()),
    )
    aside.rename(directory / aside.name.replace("database.old-", DAMAGED))
    for old in _damaged(directory)[:-KEPT]:
        shutil.rmtree(old)


def _damaged(directory: Path) -> list[Path]:
    """What was moved aside, oldest first."""
    return sorted(directory.glob(f"{DAMAGED}*"), key=_stamp_s)


def _stamp_s(path: Path) -> float:
    digits = path.name.removeprefix(DAMAGED)
    return int(digits) / 1000 if digits.isdecimal() else 0.0


async def until_known(
    directory: Path, member_id: int, database: Reader, tell: Callable[[str], None], *, every_s: float = 0.05
) -> None:
    """After the exchange: wait until the log has brought our own row, then forget the journal."""
    began = said_at = time.monotonic()
    while queries.known_member(database, member_id) is None:
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            text = f"waiting for the database of the cluster for {said_at - began:.0f} s"
            log.warning("%s", text)
            tell(text)
        await asyncio.sleep(every_s)
    await asyncio.to_thread(JoinJournal(directory).finish)
