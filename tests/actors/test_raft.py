"""The life cycle that RaftActor gives to the consensus runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from actor_kit import DEADLINE_S, Diary, running, until

from incus_actors.actors.raft import ConsensusFatalError, GetRaftStatus, RestartConsensus, raft_spec
from incus_actors.actors.system import ActorSystem
from incus_actors.errors import ConflictError


class Runtime:
    """Records what is asked of a runtime."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on_fatal: Callable[[str], None] | None = None

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self, *, handover: bool = True) -> None:
        self.calls.append(f"stop handover={handover}")

    async def restart(self, change: Callable[[], object] | None = None) -> object:
        self.calls.append("restart")
        return None if change is None else change()

    def status(self) -> str:
        return "status"


async def test_start_status_stop() -> None:
    runtime = Runtime()
    async with running(raft_spec(runtime)) as system:  # type: ignore[arg-type]
        assert await system.ref("raft").ask(GetRaftStatus(), deadline_s=DEADLINE_S) == "status"
    assert runtime.calls == ["start", "stop handover=True"]
    assert runtime.on_fatal is None


async def test_fatal_ends_the_daemon_cleanly_and_is_never_restarted() -> None:
    runtime, diary = Runtime(), Diary()
    causes: list[Exception] = []
    system = ActorSystem(member_id=lambda: 1)
    system.on_escalation = causes.append
    await system.start([raft_spec(runtime), diary.spec("other")])  # type: ignore[arg-type]
    assert runtime.on_fatal is not None
    runtime.on_fatal("the log is corrupt")
    await until(lambda: causes)
    assert isinstance(causes[0].__cause__, ConsensusFatalError)
    assert "the log is corrupt" in str(causes[0].__cause__)
    assert runtime.calls == ["start", "stop handover=False"]
    assert diary.lines == ["+other", "-other shutdown"]
    await system.stop()


async def test_restart_with_a_change_of_files() -> None:
    runtime = Runtime()
    async with running(raft_spec(runtime)) as system:  # type: ignore[arg-type]
        change = RestartConsensus(lambda: runtime.calls.append("change"))
        await system.ref("raft").ask(change, deadline_s=DEADLINE_S)
        assert runtime.calls == ["start", "restart", "change"]

        def refuse() -> None:
            raise ConflictError("not now")

        with pytest.raises(ConflictError, match="not now"):
            await system.ref("raft").ask(RestartConsensus(refuse), deadline_s=DEADLINE_S)
        assert runtime.calls[3:] == ["restart"]
        assert await system.ref("raft").ask(GetRaftStatus(), deadline_s=DEADLINE_S) == "status"
