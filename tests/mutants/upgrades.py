"""What could go wrong with mixed releases, and with states that differ while nobody is there to judge."""

from __future__ import annotations

from .mutation import mutant

UPGRADES = (
    mutant(
        "feature_without_asking",
        "CONSENSUS 3.13",
        "new behaviour is switched on while a member can't apply it",
        "upgrade_waits_for_every_member",
        ("features.refusal", 'return "" if min(known_levels(node).values()) >= level else "unsupported"', 'return ""'),
    ),
    mutant(
        "feature_asks_voters_only",
        "CONSENSUS 3.13: every member, spares too",
        "a spare of an older release stops when the voters go on",
        "upgrade_waits_for_every_member",
        (
            "features.known_levels",
            "members = node.log.configuration.members()",
            "members = node.log.configuration.voters()",
        ),
    ),
    mutant(
        "feature_waits_for_a_lost_hello",
        "CONSENSUS 3.13: every message can be lost",
        "one lost greeting holds up an upgrade for ever",
        "upgrade_lost_hello_is_asked_for",
        ("features.ask_unknown", "node.send(member, greeting(node))", "pass"),
    ),
    mutant(
        "dispute_forgets_the_witness",
        "CONSENSUS 3.11, after etcd #13766",
        "the entries that the third would decide with are compacted away",
        "divergence_waits_for_the_third divergence_third_convicts_the_leader",
        ("compaction._slowest", "if leadership.in_dispute else", "if False else"),
    ),
)
