"""When the log may become shorter (CONSENSUS 3.10, R-TRUNC).

Owns the decision only; called after entries have been applied. The state must be durable up to the point that is
dropped: the driver checkpoints it first and answers with Compacted.
"""

from __future__ import annotations

from incus_actors.consensus.effects import Compact
from incus_actors.consensus.node import Node
from incus_actors.consensus.progress import Progress
from incus_actors.consensus.types import Index

ONLINE_MS = 10_000
PATIENCE_MS = 60_000  #: a driver that has not answered by then has failed, and is asked again


def consider(node: Node) -> None:
    """Ask the driver to compact when the log is long or heavy, one request at a time."""
    log, limits = node.log, node.limits
    if node.now < node.compacting_until_ms or node.receiver.installing:
        return
    applied = min(node.applied, log.durable)
    long = applied - log.mark.index >= 2 * limits.retained_entries
    heavy = log.bytes > limits.log_bytes
    if not (long or heavy):
        return
    index = applied - limits.retained_entries if not heavy else applied - _light_tail(node, applied)
    if log.bytes <= limits.log_bytes_catching_up and log.last - log.mark.index < 16 * limits.retained_entries:
        index = min(index, _slowest(node))
    if index - log.mark.index < (1 if heavy else max(1, limits.retained_entries // 8)):
        return
    node.compacting_until_ms = node.now + PATIENCE_MS
    node.emit(Compact(index))


def _light_tail(node: Node, applied: Index) -> int:
    """Return how many of the newest applied entries to keep so that they weigh at most half of the bound."""
    log, budget, kept = node.log, node.limits.log_bytes // 2, 0
    while kept < node.limits.retained_entries and applied - kept >= log.first:
        budget -= len(log.entry(applied - kept).body)
        if budget < 0:
            break
        kept += 1
    return kept


def _slowest(node: Node) -> Index:
    """Return how far everyone has come for whom the log waits, up to its bounds: whom we heard lately, and every voter
    while states differ and no majority is there to judge: sent entries it is a witness, sent our state it is a copy. A
    follower that differs keeps its log too, for it may be the next to lead."""
    leadership = node.leadership
    if leadership is None:
        return node.log.mark.index if node.differs else node.log.last
    voters = node.log.configuration.voters() if leadership.in_dispute or node.differs else frozenset()
    waited_for = [
        _needs_after(node, progress)
        for progress in leadership.progress.values()
        if (progress.contact_ms >= node.now - ONLINE_MS or progress.id in voters) and not progress.excluded
    ]
    return min(waited_for, default=node.log.last)


def _needs_after(node: Node, progress: Progress) -> Index:
    """Return the index after which this member needs entries from the log."""
    if progress.snapshot is None:
        return progress.match
    return node.log.mark.index if progress.snapshot.offer is None else progress.snapshot.offer.index
