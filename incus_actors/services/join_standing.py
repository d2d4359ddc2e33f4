"""Is this server still joining, or has the cluster given up on it? Both sides of that question.

Owns the question of a server whose join was never confirmed: removed from the configuration it gets no answer through the
log any more, and must hear from a member, by HTTPS, that there is nothing to wait for. services/join.py asks. Must never
say "given up" from a state that may be old: a member that is told so gives up its new database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from incus_actors.consensus.api import Consensus
from incus_actors.errors import ApiError
from incus_actors.model.cluster import StandingAnswer, WithdrawRequest
from incus_actors.services.peer_client import PeerClient
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

STANDING_PATH: Final = "/internal/cluster/standing"
ASK_S: Final = 5.0


async def standing(consensus: Consensus, database: Reader, member_id: int, fingerprint: str) -> StandingAnswer:
    """Return whether the server with this certificate is, or is becoming, member `member_id`; linearizable.

    Who has no server certificate in the trust store hears "no", whatever it asks. Raises UnavailableError.
    """
    await consensus.read_barrier()
    known = database.scalar(
        "SELECT COUNT(*) FROM nodes n JOIN certificates c ON c.name = n.name AND c.type = 2"
        " WHERE n.id = ? AND c.fingerprint = ?",
        (member_id, fingerprint),
    )
    return StandingAnswer(known=bool(known))


async def given_up(peers: PeerClient, members: Iterable[str], certificate_pem: str, member_id: int) -> bool:
    """Return True if a member says that the cluster knows us no more; False if one does, or nobody answers.

    `members`: their HTTPS addresses; `certificate_pem`: the certificate of the cluster.
    """
    for address in members:
        try:
            metadata = await peers.post(
                address,
                STANDING_PATH,
                msgspec.to_builtins(WithdrawRequest(member_id=member_id)),
                certificate_pem=certificate_pem,
                timeout_s=ASK_S,
            )
            return not msgspec.convert(metadata, StandingAnswer).known
        except (ApiError, msgspec.ValidationError) as error:
            log.info("asking %s whether this server is still joining: %s", address, error)
    return False
