"""Schema and first rows: what a database needs before anything can be served from it.

Called at start and after a member became a standalone server again. Every step is a guarded transaction, so that
two members doing it at once, or one doing it twice, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time

from incus_actors.consensus.api import Consensus
from incus_actors.consensus.types import RaftRole
from incus_actors.domain.members import rfc3339
from incus_actors.errors import UnavailableError
from incus_actors.model import architectures
from incus_actors.model.api_extensions import API_EXTENSIONS
from incus_actors.state.database import Database
from incus_actors.state.schema import SCHEMA_VERSION, current_version, initial_rows

log = logging.getLogger(__name__)

LEADER_WAIT_S = 10.0


class StateTooNewError(UnavailableError):
    """The database was written by newer software."""


def own_architecture() -> int:
    """Return Incus' number of this machine's architecture."""
    return architectures.number_of(architectures.native())


async def wait_for_state(database: Database) -> None:
    """Return once there is anything to read: at once, but for a member that lost its state file with its power, or
    one killed in the middle of a join. The cluster's log brings it; without a leader this waits."""
    waited = 0
    while current_version(database) == 0:
        if waited % 100 == 0:
            log.warning("nothing of the database is here yet: waiting for the cluster")
        waited += 1
        await asyncio.sleep(0.1)


async def prepare_state(consensus: Consensus, database: Database) -> None:
    """Switch on what every member can apply, bring the schema to what that allows, and make the first rows, if this
    member leads; a follower waits for nobody.

    Raises StateTooNewError, UnavailableError.
    """
    deadline = time.monotonic() + LEADER_WAIT_S
    while consensus.status().role is not RaftRole.LEADER:
        if len(consensus.status().configuration.voters() - {consensus.member_id}):
            return  # somebody else may lead: its leader migrates
        if time.monotonic() > deadline:
            raise UnavailableError("This server does not lead its own database")
        await asyncio.sleep(0.005)
    await consensus.read_barrier()
    version = current_version(database)
    if version > SCHEMA_VERSION:
        raise StateTooNewError(f"The database has schema {version}, this software knows {SCHEMA_VERSION}")
    await consensus.upgrade()
    if version == 0:
        now = rfc3339(time.time_ns())
        rows = initial_rows(now, architecture=own_architecture(), api_extensions=len(API_EXTENSIONS))
        outcome = await consensus.propose(rows)
        if not outcome.applied and outcome.label != "not_empty":
            raise UnavailableError(f"The first rows could not be made: {outcome.error or outcome.label}")
