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
        ("compaction._slowest", "if leadership.in_dispute or node.differs else", "if False else"),
    ),
    mutant(
        "only_the_leader_keeps_the_evidence",
        "CONSENSUS 3.11; our review: a rolling restart in the middle of a dispute",
        "the damaged one leads, has no entries left for the third, and wins by its snapshot",
        "divergence_survives_a_change_of_leader",
        (
            "compaction._slowest",
            "return node.log.mark.index if node.differs else node.log.last",
            "return node.log.last",
        ),
    ),
    mutant(
        "disputed_heir",
        "CONSENSUS 3.11",
        "leadership is handed to the member whose state is in question",
        "divergence_disputed_is_no_heir",
        ("leader.Leadership.heir", "sound = member not in self.diverged", "sound = True"),
    ),
    mutant(
        "late_hello_raises_the_level",
        "CONSENSUS 3.13, 3.2: a stale incarnation",
        "what a dead process said counts for the one that lives",
        "upgrade_late_hello_raises_nothing",
        ("reception._known_incarnation", "return not taken_back", "return True"),
        ("reception._known_incarnation", "node.features_of.pop(source, None)", "pass"),
    ),
)
