"""Actors to test the runtime with, and a system that proves that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from incus_actors import tasks
from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.actors.messages import Terminated
from incus_actors.actors.ref import ActorRef
from incus_actors.actors.system import ActorSystem
from incus_actors.errors import NotFoundError

DEADLINE_S = 20.0


@asynccontextmanager
async def running(*specs: ChildSpec, member: int = 1) -> AsyncIterator[ActorSystem]:
    """A started system; at the end it must stop without a task left."""
    before = set(asyncio.all_tasks())
    system = ActorSystem(member_id=lambda: member)
    await system.start(specs)
    try:
        yield system
    finally:
        await system.stop()
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set(), left
    assert [name for name in tasks.running() if name.startswith("actor ")] == []


async def until(condition: object, what: str = "") -> None:
    """Wait for a callable to become true."""
    assert callable(condition)
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


@dataclass
class Diary:
    """What the actors of a test did, in order."""

    lines: list[str] = field(default_factory=list)

    def spec(self, name: str, **options: object) -> ChildSpec:
        return ChildSpec(name, lambda: Probe(name, self), **options)  # type: ignore[arg-type]

    def take(self) -> list[str]:
        lines, self.lines[:] = list(self.lines), []
        return lines


class Probe(Actor):
    """Does what it is told."""

    mailbox_limit = 8

    def __init__(self, name: str, diary: Diary) -> None:
        self.name = name
        self.diary = diary
        self.notices: list[Terminated] = []
        self.gate = asyncio.Event()

    async def started(self) -> None:
        self.diary.lines.append(f"+{self.name}")

    async def stopped(self, reason: str) -> None:
        self.diary.lines.append(f"-{self.name} {reason}")

    async def receive(self, message: object) -> object:
        match message:
            case "crash":
                raise ValueError("told to")
            case "missing":
                raise NotFoundError("Instance not found")
            case "stop":
                self.context.stop()
            case "wait":
                await self.gate.wait()
            case "deaf":
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        if self.gate.is_set():
                            raise
                        self.gate.set()
            case "who":
                return self.context.sender_member
            case "notices":
                return list(self.notices)
            case ("watch", ActorRef() as ref):
                self.context.watch(ref)
            case ("unwatch", ActorRef() as ref):
                self.context.unwatch(ref)
            case ("ask", ActorRef() as ref, inner):
                return await ref.ask(inner, deadline_s=DEADLINE_S)
            case ("child", ChildSpec() as spec):
                return await self.context.spawn_child(spec)
            case ("stop child", str(name)):
                await self.context.stop_child(name)
            case Terminated():
                self.notices.append(message)
            case ("echo", value):
                return value
            case _:
                return self.unhandled(message)
        return None


def paths(system: ActorSystem) -> list[str]:
    return [info.path for info in system.tree()]


def states(system: ActorSystem) -> dict[str, str]:
    return {info.path: info.state for info in system.tree()}


def specs_of(diary: Diary, names: Sequence[str], **options: object) -> list[ChildSpec]:
    return [diary.spec(name, **options) for name in names]
