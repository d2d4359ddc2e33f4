"""What one seed means: sizes, timings, which faults are on, and when the nemesis strikes.

Owns the pure data that a world is run from, and its drawing from a seed; made by the runner, changed only by the
shrinker, which leaves events out. Must depend on nothing but the seed and the length: a plan is the replay.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from incus_actors.consensus.types import Limits, Timing

DEFAULT_CHAOS_MS = 9_000
UPGRADES = 0.25  #: how many seeds have mixed releases
REAL_STATE_EVERY = 25  #: one seed of so many runs the real applier on SQLite


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """How messages travel. Probabilities are per message unless they say otherwise."""

    delay_us: int  #: the least, on every path
    jitter_us: int  #: mean of an exponential on top
    loss: float
    duplicate: float
    late: float  #: arrives only after up to 3 s, when nobody expects it
    ordered: bool  #: one path keeps the order, as a TCP connection does
    buffered: float  #: probability, per message on a cut path, that it arrives when the path is whole again
    notice_lost: float  #: probability that a broken link is not noticed
    notice_us: int  #: mean time until it is


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How long disks take; faults come from the nemesis."""

    sync_us: int
    sync_jitter_us: int
    tail: float  #: probability that a sync takes fifty times as long
    apply_us: int
    lost_on_crash: float  #: probability that a write under way at a crash is lost
    snapshot_fails: float


@dataclass(frozen=True, slots=True)
class NemesisEvent:
    """One strike. `roll` chooses targets and details when it happens, so that leaving another event out changes
    as little as possible."""

    at_ms: int
    kind: str
    roll: int
    ms: int  #: how long it lasts

    def __str__(self) -> str:
        return f"{self.at_ms} ms {self.kind} for {self.ms} ms (roll {self.roll})"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a run."""

    seed: int
    chaos_ms: int
    voters: int
    standbys: int
    spares: int
    clients: int
    think_ms: int  #: mean pause of a client between operations
    keys: int
    network: NetworkPlan
    disk: DiskPlan
    timing: Timing
    limits: Limits
    drift_ppm: int  #: clocks run up to this much fast or slow
    policy: bool  #: whether the leader's role policy runs
    calm: bool  #: no faults but small stalls: nothing may happen to the leader (P-NOSPUR)
    careless: bool  #: may damage a majority: then only safety is asked for (P-HONEST)
    real_state: bool  #: run the real applier on SQLite
    steady_ms: int  #: how long the leader must stay after healing
    upgrades: bool  #: machines begin with an older release, and are upgraded one by one
    events: tuple[NemesisEvent, ...]

    def only(self, events: tuple[NemesisEvent, ...]) -> Plan:
        """Return the same plan with other strikes."""
        return replace(self, events=events)


#: kind -> (weight, least ms, most ms)
KINDS: dict[str, tuple[int, int, int]] = {
    "kill": (10, 5, 1500),
    "power": (6, 5, 1500),
    "power_all": (2, 5, 800),
    "shutdown": (4, 20, 800),
    "freeze": (8, 40, 3000),
    "stall": (4, 40, 400),
    "isolate": (8, 100, 3000),
    "split": (6, 100, 3000),
    "one_way": (6, 100, 3000),
    "bridge": (4, 100, 2500),
    "ring": (3, 100, 2000),
    "cut_link": (5, 50, 2000),
    "flaky": (5, 200, 3000),
    "clog": (5, 50, 1500),
    "reset": (5, 5, 150),
    "disk_slow": (5, 100, 2000),
    "disk_hang": (4, 100, 4000),
    "disk_fail": (3, 20, 800),
    "disk_full": (4, 200, 3000),
    "low_space": (3, 200, 3000),
    "damage": (3, 20, 500),
    "diverge": (1, 20, 500),
    "clock_jump": (3, 1, 5000),
    "transfer": (6, 1, 1),
    "add": (4, 1, 1),
    "remove": (3, 1, 1),
    "roles": (4, 1, 1),
    "replace": (3, 1, 1),
}
_ALWAYS_MAY = ("kill", "power", "isolate", "split", "freeze")
_CALM = ("stall",)


def draw_plan(seed: int, *, chaos_ms: int = DEFAULT_CHAOS_MS, real_state: bool | None = None) -> Plan:
    """Return the plan of a seed: a swarm of faults, each on or off (CONSENSUS 4.1)."""
    rng = random.Random(f"plan {seed}")
    calm = rng.random() < 0.04
    careless = not calm and rng.random() < 0.03
    voters = rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5))
    plan = Plan(
        seed=seed,
        chaos_ms=chaos_ms,
        voters=3 if calm else voters,
        standbys=rng.choice((0, 0, 0, 1, 1, 2)),
        spares=rng.choice((0, 0, 0, 0, 1)),
        clients=rng.randint(2, 5),
        think_ms=rng.choice((10, 40, 80, 150)),
        keys=rng.randint(1, 4),
        network=_network(rng, calm),
        disk=_disk(rng, calm),
        timing=Timing(),
        limits=_limits(rng),
        drift_ppm=0 if calm else rng.choice((0, 0, 1_000, 50_000)),
        policy=rng.random() < 0.4,
        calm=calm,
        careless=careless,
        real_state=seed % REAL_STATE_EVERY == 7 if real_state is None else real_state,
        steady_ms=3_000 if rng.random() < 0.1 else 1_000,
        upgrades=False,
        events=_events(rng, chaos_ms, calm),
    )
    # Drawn last, so that older seeds keep all else that they had.
    plan = replace(plan, limits=replace(plan.limits, inflight_bytes=rng.choice((1 << 20, 1 << 20, 400))))
    return plan if calm or rng.random() >= UPGRADES else _with_upgrades(rng, plan)


def _with_upgrades(rng: random.Random, plan: Plan) -> Plan:
    """Let machines be upgraded, and taken back at times, among all that happens anyway."""
    strikes = [
        NemesisEvent(rng.randint(600, plan.chaos_ms), "upgrade", rng.getrandbits(32), _duration(rng, 5, 1500))
        for _ in range(rng.randint(1, 3 * (plan.voters + plan.standbys + plan.spares)))
    ]
    events = sorted((*plan.events, *strikes), key=lambda event: event.at_ms)
    return replace(plan, upgrades=True, events=tuple(events))


def _network(rng: random.Random, calm: bool) -> NetworkPlan:
    chaos = 0.0 if calm else 1.0
    return NetworkPlan(
        delay_us=rng.choice((100, 200, 500, 2_000)),
        jitter_us=rng.choice((50, 200, 1_000, 5_000)),
        loss=chaos * rng.choice((0.0, 0.0, 0.001, 0.01, 0.05)),
        duplicate=chaos * rng.choice((0.0, 0.0, 0.01, 0.05)),
        late=chaos * rng.choice((0.0, 0.0, 0.002, 0.01)),
        ordered=rng.random() < 0.5,
        buffered=rng.choice((0.0, 0.3, 1.0)),
        notice_lost=chaos * rng.choice((0.0, 0.0, 0.1, 1.0)),
        notice_us=rng.choice((3_000, 5_000, 30_000)),
    )


def _disk(rng: random.Random, calm: bool) -> DiskPlan:
    return DiskPlan(
        sync_us=rng.choice((200, 400, 1_000, 5_000)),
        sync_jitter_us=rng.choice((50, 300, 2_000)),
        tail=0.0 if calm else rng.choice((0.0, 0.0, 0.01)),
        apply_us=rng.choice((30, 200, 2_000)),
        lost_on_crash=rng.choice((0.0, 0.5, 1.0)),
        snapshot_fails=rng.choice((0.0, 0.0, 0.05)),
    )


def _limits(rng: random.Random) -> Limits:
    if rng.random() < 0.3:
        return Limits()
    return Limits(
        append_entries=rng.choice((1, 3, 16, 256)),
        inflight_appends=rng.choice((1, 2, 8)),
        retained_entries=rng.choice((2, 8, 30)),
        snapshot_chunk_bytes=1_000,
        snapshot_inflight=rng.choice((1, 4)),
        pending_proposals=rng.choice((4, 1024)),
        pending_reads=rng.choice((4, 4096)),
    )


def _events(rng: random.Random, chaos_ms: int, calm: bool) -> tuple[NemesisEvent, ...]:
    if calm:
        kinds = list(_CALM)
    else:
        chosen = rng.randint(1, 9)
        kinds = sorted(rng.sample(sorted(KINDS), chosen))
        if rng.random() < 0.7:
            kinds.append(rng.choice(_ALWAYS_MAY))
    weights = [KINDS[kind][0] for kind in kinds]
    pause_ms = rng.choice((250, 500, 1_000, 2_000))
    at_ms, events = 600 + rng.randint(0, 600), list[NemesisEvent]()
    while at_ms < chaos_ms:
        kind = rng.choices(kinds, weights)[0]
        _, least, most = KINDS[kind]
        events.append(NemesisEvent(at_ms, kind, rng.getrandbits(32), _duration(rng, least, most)))
        at_ms += 1 + int(rng.expovariate(1 / pause_ms))
    return tuple(events)


def _duration(rng: random.Random, least: int, most: int) -> int:
    """Short ones as often as long ones: bugs live at every scale."""
    return int(least * (most / least) ** rng.random())
