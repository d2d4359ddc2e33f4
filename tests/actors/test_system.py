"""Delivery, asking, death watch, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from actor_kit import DEADLINE_S, Diary, Probe, paths, running, until

from incus_actors.actors.actor import Actor, ActorStartError, ChildSpec, Later
from incus_actors.actors.messages import Terminated
from incus_actors.actors.ref import ActorDeadError, ActorRef, AskTimeoutError, DeadlockError, MailboxFullError
from incus_actors.actors.system import ActorSystem
from incus_actors.errors import NotFoundError, NotImplementedHereError


async def ask(ref: ActorRef, message: object, deadline_s: float = DEADLINE_S) -> object:
    return await ref.ask(message, deadline_s=deadline_s)


def begin(coro: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
    """Let it run beside the test, without a line in the log for its failure."""
    return asyncio.get_running_loop().create_task(coro)


async def test_ask_and_tell_in_order() -> None:
    class Sum(Actor):
        def __init__(self) -> None:
            self.seen: list[object] = []

        async def receive(self, message: object) -> object:
            await asyncio.sleep(0)
            self.seen.append(message)
            return self.seen

    async with running(ChildSpec("sum", Sum)) as system:
        ref = system.ref("sum")
        for i in range(5):
            ref.tell(i)
        assert await ask(ref, 5) == [0, 1, 2, 3, 4, 5]


async def test_one_message_at_a_time() -> None:
    class Busy(Actor):
        inside = 0

        async def receive(self, message: object) -> object:
            self.inside += 1
            assert self.inside == 1
            await asyncio.sleep(0)
            self.inside -= 1
            return message

    async with running(ChildSpec("busy", Busy)) as system:
        ref = system.ref("busy")
        assert await asyncio.gather(*(ask(ref, i) for i in range(20))) == list(range(20))


async def test_an_api_error_is_an_answer_and_no_crash() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        with pytest.raises(NotFoundError, match="Instance not found"):
            await ask(system.ref("a"), "missing")
        system.ref("a").tell("missing")
        assert await ask(system.ref("a"), ("echo", 1)) == 1
        assert diary.take() == ["+a"]


async def test_a_crash_fails_the_ask_and_what_waits_behind_it() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        ref = system.ref("a")
        first, second = (begin(ask(ref, m)) for m in ("crash", ("echo", 1)))
        with pytest.raises(ActorDeadError):
            await first
        with pytest.raises(ActorDeadError):
            await second
        assert system.dead_letters.counts["crashed"] == 1
        assert await ask(ref, ("echo", 2)) == 2
        assert diary.take() == ["+a", "-a crashed: told to", "+a"]


async def test_ask_deadline_and_expired_letters() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        ref = system.ref("a")
        waiting = begin(ask(ref, "wait", 0.2))
        await until(lambda: system.tree()[1].busy_s > 0)
        with pytest.raises(AskTimeoutError):
            await ask(ref, ("child", diary.spec("never")), 0.01)  # waits behind: must not run later
        with pytest.raises(AskTimeoutError):
            await waiting
        cell = system.find("a")
        assert cell is not None
        assert isinstance(cell.actor, Probe)
        cell.actor.gate.set()
        assert await ask(ref, ("echo", 1)) == 1
        assert "a/never" not in paths(system)


async def test_nobody_there() -> None:
    async with running() as system:
        with pytest.raises(ActorDeadError):
            await ask(system.ref("ghost"), 1)
        system.ref("ghost").tell(1)
        assert system.dead_letters.counts["no_actor"] == 2
        assert system.dead_letters.recent[-1].target == "ghost"


async def test_full_mailbox() -> None:
    diary = Diary()
    async with running(diary.spec("a", shutdown_s=0.01)) as system:
        ref = system.ref("a")
        ref.tell("wait")
        await until(lambda: system.tree()[1].busy_s > 0)
        for _ in range(Probe.mailbox_limit):
            ref.tell(("echo", 0))
        ref.tell(("echo", 0))
        with pytest.raises(MailboxFullError):
            await ask(ref, 1)
        info = system.tree()[1]
        assert (info.mailbox, info.high_water, info.mailbox_limit) == (8, 8, 8)
        assert system.dead_letters.counts["mailbox_full"] == 2


async def test_unhandled_is_refused_and_no_crash() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        with pytest.raises(NotImplementedHereError):
            await ask(system.ref("a"), object())
        assert system.dead_letters.counts["unhandled"] == 1
        assert diary.lines == ["+a"]


async def test_later_answers_while_the_mailbox_goes_on() -> None:
    class Slow(Actor):
        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def receive(self, message: object) -> object:
            if message == "go":
                self.go.set()
                return "gone"
            return Later(self.work(message))

        async def work(self, message: object) -> object:
            await self.go.wait()
            if message == "missing":
                raise NotFoundError("Image not found")
            if message == "crash":
                raise ValueError("late")
            return message

    async with running(ChildSpec("slow", Slow)) as system:
        ref = system.ref("slow")
        answer, error = begin(ask(ref, 7)), begin(ask(ref, "missing"))
        assert await ask(ref, "go") == "gone"
        assert await answer == 7
        with pytest.raises(NotFoundError, match="Image not found"):
            await error
        assert system.tree()[1].restarts == 0
        with pytest.raises(ActorDeadError):
            await ask(ref, "crash")
        await until(lambda: system.tree()[1].restarts == 1)


async def test_asking_in_a_circle_is_an_error_at_once() -> None:
    diary = Diary()
    async with running(diary.spec("a"), diary.spec("b"), diary.spec("c")) as system:
        a, b, c = (system.ref(name) for name in "abc")
        with pytest.raises(DeadlockError, match="c asks a"):
            await ask(a, ("ask", b, ("ask", c, ("ask", a, ("echo", 1)))))
        with pytest.raises(DeadlockError):
            await ask(a, ("ask", a, ("echo", 1)))
        assert await ask(a, ("ask", b, ("ask", c, ("echo", 1)))) == 1


async def test_watch() -> None:
    diary = Diary()
    async with running(diary.spec("a"), diary.spec("b", restart="transient")) as system:
        a, b = system.ref("a"), system.ref("b")
        await ask(a, ("watch", b))
        b.tell("crash")
        await until(lambda: diary.lines.count("+b") == 2)
        assert await ask(a, "notices") == [Terminated("b", 1, "crashed: told to")]
        await ask(a, ("watch", b))
        await ask(b, "stop")
        await until(lambda: "b" not in paths(system))
        assert await ask(a, "notices") == [Terminated("b", 1, "crashed: told to"), Terminated("b", 1, "normal")]
        await ask(a, ("watch", b))
        assert (await ask(a, "notices"))[-1] == Terminated("b", 1, "noproc")  # type: ignore[index]


async def test_unwatch_and_watches_of_an_earlier_life() -> None:
    diary = Diary()
    async with running(diary.spec("a"), diary.spec("b"), diary.spec("c")) as system:
        a, b, c = system.ref("a"), system.ref("b"), system.ref("c")
        await ask(a, ("watch", b))
        await ask(a, ("unwatch", b))
        await ask(a, ("watch", c))
        b.tell("crash")
        await until(lambda: diary.lines.count("+b") == 2)
        assert await ask(a, "notices") == []
        a.tell("crash")
        await until(lambda: diary.lines.count("+a") == 2)
        c.tell("crash")
        await until(lambda: diary.lines.count("+c") == 2)
        assert await ask(a, "notices") == []


async def test_children_stop_before_their_parent_and_in_reverse() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        for name in ("x", "y"):
            await ask(system.ref("a"), ("child", diary.spec(name)))
        await ask(system.ref("a/y"), ("child", diary.spec("z")))
        assert paths(system) == ["/", "a", "a/x", "a/y", "a/y/z"]
        diary.take()
    assert diary.lines == ["-z shutdown", "-y shutdown", "-x shutdown", "-a shutdown"]


async def test_stop_child() -> None:
    diary = Diary()
    async with running(diary.spec("a")) as system:
        await ask(system.ref("a"), ("child", diary.spec("x")))
        await ask(system.ref("a"), ("stop child", "x"))
        assert paths(system) == ["/", "a"]
        await ask(system.ref("a"), ("stop child", "x"))
        await ask(system.ref("a"), ("child", diary.spec("x")))
        assert diary.lines == ["+a", "+x", "-x shutdown", "+x"]


@pytest.mark.parametrize("order", ["wait", "deaf"])
async def test_no_actor_survives_stop(order: str) -> None:
    diary = Diary()
    async with running(diary.spec("a", shutdown_s=0.02)) as system:
        reply = begin(ask(system.ref("a"), order))
        waiting = begin(ask(system.ref("a"), ("echo", 1)))
        await until(lambda: system.tree()[1].busy_s > 0)
    for future in (reply, waiting):
        with pytest.raises(ActorDeadError):
            await future
    assert diary.lines == ["+a", "-a shutdown"]


async def test_stop_while_starting() -> None:
    class Stuck(Actor):
        async def started(self) -> None:
            await asyncio.sleep(3600)

    diary = Diary()
    async with running(diary.spec("a")) as system:
        spec = ChildSpec("stuck", Stuck, shutdown_s=0.01)
        starting = begin(system.start_child(spec))
        await until(lambda: "stuck" in paths(system))
    with pytest.raises(ActorStartError):
        await starting


async def test_a_start_that_fails_leaves_nothing() -> None:
    class Bad(Actor):
        async def started(self) -> None:
            raise OSError("port in use")

    diary = Diary()
    system = ActorSystem(member_id=lambda: 1)
    with pytest.raises(ActorStartError, match="port in use"):
        await system.start([diary.spec("a"), ChildSpec("bad", Bad)])
    assert diary.lines == ["+a", "-a shutdown"]
    assert system.tree() == []
    async with running(diary.spec("b")) as other:
        with pytest.raises(ActorStartError):
            await other.start_child(ChildSpec("bad", Bad))
        with pytest.raises(ActorStartError):
            await other.start_child(ChildSpec("slow", lambda: Sleeper(), start_s=0.01))
        with pytest.raises(ValueError, match="taken"):
            await other.start_child(diary.spec("b"))
        assert paths(other) == ["/", "b"]


class Sleeper(Actor):
    async def started(self) -> None:
        await asyncio.sleep(3600)


async def test_timers_coalesce_and_end_with_the_actor() -> None:
    class Ticking(Actor):
        ticks = 0

        async def started(self) -> None:
            self.cancel = self.context.tell_every(0.001, "tick")
            self.context.tell_after(0.001, "once")

        async def receive(self, message: object) -> object:
            if message == "tick":
                self.ticks += 1
            elif message == "block":
                await asyncio.sleep(0.02)
            elif message == "cancel":
                self.cancel()
            return self.ticks

    async with running(ChildSpec("t", Ticking)) as system:
        ref = system.ref("t")
        await until(lambda: system.tree()[1].handled > 3)
        before = await ask(ref, "block")
        assert await ask(ref, "look") <= before + 1  # type: ignore[operator]
        ticks = await ask(ref, "cancel")
        await asyncio.sleep(0.01)
        assert await ask(ref, "look") <= ticks + 1  # type: ignore[operator]


async def test_linked_work_crashes_and_ends_with_its_actor() -> None:
    cancelled = asyncio.Event()

    class Linked(Actor):
        async def receive(self, message: object) -> object:
            self.context.run(self.work(message), name="work")
            return None

        async def work(self, message: object) -> None:
            if message == "crash":
                raise ValueError("beside")
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()

    async with running(ChildSpec("l", Linked)) as system:
        await ask(system.ref("l"), "sleep")
        await asyncio.sleep(0)
        await ask(system.ref("l"), "crash")
        await until(lambda: system.tree()[1].restarts == 1)
        assert cancelled.is_set()
        await ask(system.ref("l"), "sleep")  # never gets to run: its coroutine must be closed without a warning


async def test_sender_member_is_the_own_one_for_local_messages() -> None:
    diary = Diary()
    async with running(diary.spec("a"), member=7) as system:
        assert await ask(system.ref("a"), "who") == 7
        assert await ask(system.ref("a", 7), "who") == 7


async def test_refs_are_values() -> None:
    async with running() as system:
        assert system.ref("/a/b") == system.ref("a/b", 1) != system.ref("a/b", 2)
        assert len({system.ref("a"), system.ref("a", 1), system.ref("a", 2)}) == 2
        assert repr(system.ref("a", 2)) == "<ActorRef a@2>"
