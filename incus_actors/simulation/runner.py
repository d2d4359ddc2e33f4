"""Runs many seeds over processes, counts them, shrinks what fails and checks that nothing but the seed decides.

Owns results and reports; called by the command `incus-actors simulate` and by CI's test. Must never swallow a
failure: whatever a run raises is a finding.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

from incus_actors.consensus.core import Core
from incus_actors.simulation import healing
from incus_actors.simulation.linearizability import TooHardError
from incus_actors.simulation.plan import DEFAULT_CHAOS_MS, Plan, draw_plan
from incus_actors.simulation.properties import ViolationError
from incus_actors.simulation.world import CoreFactory, World

CHUNK = 20
TWICE_EVERY = 100  #: one seed of so many is run twice
HASH_SEEDS = ("1", "271828")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a seed has found. `name`: the property (CONSENSUS 4.2), or the class of what was raised."""

    name: str
    text: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    seed: int
    failure: Failure | None
    undecided: bool  #: the history was too hard to judge
    steps: int
    operations: int
    answered: int
    virtual_us: int
    elections: int
    strikes: int
    messages: int
    fingerprint: str = ""


@dataclass(slots=True)
class Report:
    """Many runs."""

    first: int
    seeds: int = 0
    seconds: float = 0.0
    steps: int = 0
    operations: int = 0
    answered: int = 0
    virtual_s: float = 0.0
    elections: int = 0
    strikes: int = 0
    messages: int = 0
    undecided: list[int] = field(default_factory=list)
    failures: list[Result] = field(default_factory=list)
    twice: int = 0

    def add(self, result: Result) -> None:
        """Count one run."""
        self.seeds += 1
        self.steps += result.steps
        self.operations += result.operations
        self.answered += result.answered
        self.virtual_s += result.virtual_us / 1e6
        self.elections += result.elections
        self.strikes += result.strikes
        self.messages += result.messages
        if result.undecided:
            self.undecided.append(result.seed)
        if result.failure is not None:
            self.failures.append(result)


def make_world(plan: Plan, *, make_core: CoreFactory = Core, trace: bool = False, verbose: bool = False) -> World:
    """Return the world of a plan, ready to run."""
    return World(plan, make_core=make_core, trace=trace or verbose, verbose=verbose)


def run_plan(plan: Plan, *, make_core: CoreFactory = Core, fingerprint: bool = False) -> Result:
    """Run one plan to its end, or to the first thing that is wrong."""
    world = World(plan, make_core=make_core, fingerprint=fingerprint)
    failure, undecided = play(world)
    return Result(
        plan.seed,
        failure,
        undecided,
        world.steps,
        len(world.history.operations),
        world.answered,
        world.now_us,
        world.elections,
        world.nemesis.strikes,
        world.network.sent,
        "" if world.fingerprint is None else world.fingerprint.hexdigest(),
    )


def play(world: World) -> tuple[Failure | None, bool]:
    """Run a world; return what it found and whether its history was too hard to judge."""
    try:
        healing.run(world)
    except TooHardError:
        return None, True
    except ViolationError as error:
        return Failure(error.name, str(error), world.now_us), False
    except Exception as error:
        return Failure(type(error).__name__, f"{type(error).__name__}: {error}", world.now_us), False
    finally:
        world.close()
    return None, False


def run_seed(seed: int, chaos_ms: int = DEFAULT_CHAOS_MS, *, fingerprint: bool = False) -> Result:
    """Run one seed with the real core."""
    return run_plan(draw_plan(seed, chaos_ms=chaos_ms), fingerprint=fingerprint)


def _run_chunk(seeds: list[int], chaos_ms: int) -> list[Result]:
    return [run_seed(seed, chaos_ms) for seed in seeds]


def run_seeds(
    first: int,
    count: int,
    *,
    jobs: int = 0,
    chaos_ms: int = DEFAULT_CHAOS_MS,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Run `count` seeds from `first` on over `jobs` processes (0: one per core). Some of them run twice."""
    started = time.monotonic()
    report = Report(first)
    jobs = jobs or len(os.sched_getaffinity(0))
    chunks = [list(range(at, min(at + CHUNK, first + count))) for at in range(first, first + count, CHUNK)]
    for results in _spread(chunks, chaos_ms, jobs):
        for result in results:
            report.add(result)
        report.seconds = time.monotonic() - started
        progress(report)
    again = list(range(first, first + count, TWICE_EVERY))
    for seed, text in differing_fingerprints(again, chaos_ms):
        report.failures.append(Result(seed, Failure("P-DETERMINISM", text, 0), False, 0, 0, 0, 0, 0, 0, 0))
    report.twice = len(again)
    report.failures.sort(key=lambda result: result.seed)
    report.seconds = time.monotonic() - started
    return report


def _spread(chunks: list[list[int]], chaos_ms: int, jobs: int) -> Iterator[list[Result]]:
    if jobs == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield _run_chunk(chunk, chaos_ms)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_run_chunk, chunk, chaos_ms) for chunk in chunks]):
            yield done.result()


# -- determinism ------------------------------------------------------------------------------------------------------


def differing_fingerprints(seeds: Iterable[int], chaos_ms: int) -> Iterator[tuple[int, str]]:
    """Run seeds in two other processes whose hashes of strings differ; yield those that did not run the same."""
    wanted = list(seeds)
    runs = [_fingerprints_elsewhere(wanted, chaos_ms, hash_seed) for hash_seed in HASH_SEEDS]
    for seed in wanted:
        found = {run.get(seed, "nothing") for run in runs}
        if len(found) > 1:
            yield seed, f"P-DETERMINISM: two runs differ: {sorted(found)}"


def _fingerprints_elsewhere(seeds: list[int], chaos_ms: int, hash_seed: str) -> dict[int, str]:
    command = [sys.executable, "-m", "incus_actors.simulation.runner", str(chaos_ms), *map(str, seeds)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {int(line.split()[0]): line.split()[1] for line in done.stdout.splitlines()}


# -- shrinking --------------------------------------------------------------------------------------------------------


def shrink(plan: Plan, *, make_core: CoreFactory = Core, most_runs: int = 300) -> tuple[Plan, Failure]:
    """Return the plan with as few strikes as still break the same property, and how it then breaks.

    Leaves out halves, then quarters, and so on (delta debugging). Raises ValueError if the plan does not fail.
    """
    failure = run_plan(plan, make_core=make_core).failure
    if failure is None:
        raise ValueError(f"seed {plan.seed} does not fail")
    runs, size = 1, max(1, len(plan.events) // 2)
    plan = plan.only(tuple(event for event in plan.events if event.at_ms * 1_000 <= failure.at_us))
    while runs < most_runs and plan.events:
        smaller = False
        for start in range(0, len(plan.events), size):
            candidate = plan.only(plan.events[:start] + plan.events[start + size :])
            runs += 1
            found = run_plan(candidate, make_core=make_core).failure
            if found is not None and found.name == failure.name:
                plan, failure, smaller = candidate, found, True
                break
            if runs >= most_runs:
                break
        if not smaller:
            if size == 1:
                break
            size = max(1, size // 2)
        else:
            size = max(1, min(size, len(plan.events) // 2))
    return plan, failure


def _main(arguments: list[str]) -> None:
    """Print the fingerprints of some seeds; for `differing_fingerprints`."""
    chaos_ms = int(arguments[0])
    for seed in map(int, arguments[1:]):
        sys.stdout.write(f"{seed} {run_seed(seed, chaos_ms, fingerprint=True).fingerprint}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
