"""What happens at the death of a child: strategies, policies, intensity, escalation."""

from __future__ import annotations

import asyncio

import pytest
from actor_kit import DEADLINE_S, Diary, paths, running, specs_of, states, until

from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.actors.supervision import RestartIntensityError
from incus_actors.actors.supervisor import supervisor
from incus_actors.actors.system import ActorSystem


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["-b crashed: told to", "+b"]),
        ("rest_for_one", ["-b crashed: told to", "-c shutdown", "+b", "+c"]),
        ("one_for_all", ["-b crashed: told to", "-c shutdown", "-a shutdown", "+a", "+b", "+c"]),
    ],
)
async def test_strategies(strategy: str, expected: list[str]) -> None:
    diary = Diary()
    spec = supervisor("sup", specs_of(diary, "abc"), strategy=strategy)  # type: ignore[arg-type]
    async with running(spec) as system:
        assert diary.take() == ["+a", "+b", "+c"]
        system.ref("sup/b").tell("crash")
        await until(lambda: len(diary.lines) == len(expected))
        assert diary.take() == expected
        await until(lambda: set(states(system).values()) == {"running"})
        for name in "abc":
            assert await system.ref(f"sup/{name}").ask(("echo", name), deadline_s=DEADLINE_S) == name


@pytest.mark.parametrize(
    ("restart", "order", "lives_on"),
    [
        ("permanent", "crash", True),
        ("permanent", "stop", True),
        ("transient", "crash", True),
        ("transient", "stop", False),
        ("temporary", "crash", False),
        ("temporary", "stop", False),
    ],
)
async def test_policies(restart: str, order: str, lives_on: bool) -> None:
    diary = Diary()
    async with running(diary.spec("a", restart=restart)) as system:
        system.ref("a").tell(order)
        await until(lambda: diary.lines.count("+a") == 2 if lives_on else "a" not in paths(system))
        assert len([line for line in diary.lines if line.startswith("-a")]) == 1


async def test_a_temporary_sibling_goes_for_good_with_one_for_all() -> None:
    diary = Diary()
    children = [diary.spec("a"), diary.spec("t", restart="temporary"), diary.spec("b")]
    async with running(supervisor("sup", children, strategy="one_for_all")) as system:
        system.ref("sup/a").tell("crash")
        await until(lambda: diary.lines.count("+b") == 2)
        assert paths(system) == ["/", "sup", "sup/a", "sup/b"]


async def test_too_many_restarts_crash_the_supervisor_and_its_own_restarts_it() -> None:
    diary = Diary()
    async with running(supervisor("sup", specs_of(diary, "ab", max_restarts=2, within_s=60))) as system:
        for life in range(3):
            await until(lambda life=life: diary.lines.count("+a") == life + 1)  # type: ignore[misc]
            await system.ref("sup/a").ask(("echo", 1), deadline_s=DEADLINE_S)
            system.ref("sup/a").tell("crash")
        await until(lambda: diary.lines.count("+b") == 2)
        assert diary.lines[-4:] == ["-a crashed: told to", "-b shutdown", "+a", "+b"]
        info = {line.path: line for line in system.tree()}
        assert info["sup"].restarts == 1
        assert info["sup/a"].restarts == 0, "a new supervisor counts anew"


async def test_escalation_to_the_root_stops_everything_and_tells_the_daemon() -> None:
    diary = Diary()
    causes: list[Exception] = []
    system = ActorSystem(member_id=lambda: 1)
    system.on_escalation = causes.append
    await system.start([diary.spec("a", max_restarts=0), diary.spec("b", shutdown_s=0.05)])
    system.ref("b").tell("wait")
    system.ref("a").tell("crash")
    await until(lambda: bool(causes))
    assert isinstance(causes[0], RestartIntensityError)
    assert isinstance(causes[0].__cause__, ValueError)
    await system.stop()
    assert sorted(diary.lines) == ["+a", "+b", "-a crashed: told to", "-b shutdown"]


async def test_a_restart_that_fails_counts_and_is_tried_again() -> None:
    lives = 0

    class Flaky(Actor):
        async def started(self) -> None:
            nonlocal lives
            lives += 1
            if lives in (2, 3):
                raise OSError("not yet")

        async def receive(self, message: object) -> object:
            if message == "crash":
                raise ValueError("told to")
            return lives

    async with running(ChildSpec("flaky", Flaky)) as system:
        system.ref("flaky").tell("crash")
        await until(lambda: lives == 4)
        assert await system.ref("flaky").ask("?", deadline_s=DEADLINE_S) == 4
        assert system.tree()[1].restarts == 3


async def test_a_busy_parent_still_supervises() -> None:
    diary = Diary()
    async with running(diary.spec("parent", shutdown_s=0.01)) as system:
        await system.ref("parent").ask(("child", diary.spec("kid")), deadline_s=DEADLINE_S)
        system.ref("parent").tell("wait")
        system.ref("parent/kid").tell("crash")
        await until(lambda: diary.lines.count("+kid") == 2)
        assert await system.ref("parent/kid").ask(("echo", 1), deadline_s=DEADLINE_S) == 1


async def test_messages_told_during_a_restart_reach_the_new_life() -> None:
    diary = Diary()
    async with running(diary.spec("a", backoff_s=0.02)) as system:
        system.ref("a").tell("crash")
        await until(lambda: states(system)["a"] == "crashed")
        assert await system.ref("a").ask(("echo", "patient"), deadline_s=DEADLINE_S) == "patient"
        assert diary.lines.count("+a") == 2


async def test_stop_during_a_restart_storm_leaves_nothing() -> None:
    diary = Diary()
    children = specs_of(diary, "abc", max_restarts=1000, backoff_s=0.001)
    async with running(supervisor("sup", children, strategy="one_for_all")) as system:
        for _ in range(20):
            for name in "abc":
                system.ref(f"sup/{name}").tell("crash")
            await asyncio.sleep(0.001)
    assert len([s for s in diary.lines if s[0] == "+"]) == len([s for s in diary.lines if s[0] == "-"])


async def test_killing_a_parent_by_its_linked_work_takes_the_children_along() -> None:
    diary = Diary()
    blown = asyncio.Event()

    class Parent(Actor):
        async def started(self) -> None:
            await self.context.spawn_child(diary.spec("kid"))
            if not blown.is_set():
                self.context.run(self.blow(), name="fuse")

        async def blow(self) -> None:
            await blown.wait()
            raise RuntimeError("bang")

        async def receive(self, message: object) -> object:
            await asyncio.sleep(3600)

    async with running(ChildSpec("parent", Parent, shutdown_s=0.01)) as system:
        system.ref("parent").tell("work")
        await until(lambda: system.tree()[1].busy_s > 0)
        blown.set()
        await until(lambda: diary.lines == ["+kid", "-kid shutdown", "+kid"])
