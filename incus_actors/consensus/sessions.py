"""How long answered proposals are remembered (CONSENSUS 3.11).

Owns the choice of what the leader lets everybody forget; the forgetting itself is an EXPIRE entry, so that all
replicas drop the same rows. Must never choose so much at once that applying it takes long.
"""

from __future__ import annotations

from incus_actors.consensus.proposal_ids import made_at_ms
from incus_actors.consensus.types import Index
from incus_actors.state.reader import Reader

LIFE_MS = 24 * 3600 * 1000
KEEP_MS = 30_000  #: an answer is kept for so long whatever its id says: longer than anybody repeats a proposal
LIMIT = 200_000
PORTION = 20_000

_OLDEST = "SELECT proposal_id, idx FROM _sessions WHERE idx <= ? ORDER BY proposal_id LIMIT 1"
_NTH = "SELECT proposal_id FROM _sessions WHERE idx <= ? ORDER BY proposal_id LIMIT 1 OFFSET ?"


def expiry_cutoff(
    database: Reader,
    *,
    now_ms: int,
    applied: Index,
    settled: Index,
    life_ms: int = LIFE_MS,
    limit: int = LIMIT,
    portion: int = PORTION,
) -> int | None:
    """Return up to when answers should be forgotten now, None if nothing is due: what is older than `life_ms`, or
    the oldest beyond `limit`, and at most about `portion` of them. Only answers up to `settled` count."""
    oldest = database.one(_OLDEST, (settled,))
    if oldest is None:
        return None
    cutoff_ms = now_ms - life_ms
    if applied - oldest["idx"] > limit:  # there can't be more answers than entries: only then is counting worth it
        surplus = database.scalar("SELECT COUNT(*) FROM _sessions") - limit
        if surplus > 0:
            last = database.scalar(_NTH, (settled, min(surplus, portion) - 1))
            cutoff_ms = cutoff_ms if last is None else max(cutoff_ms, made_at_ms(last))
    if made_at_ms(oldest["proposal_id"]) > cutoff_ms:
        return None
    last = database.scalar(_NTH, (settled, portion - 1))
    return cutoff_ms if last is None else min(cutoff_ms, made_at_ms(last))
