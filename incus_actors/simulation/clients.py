"""Clients of the virtual cluster: what they ask, of whom, how they retry, and the history of what they were told.

Owns the operations and their outcomes; a retry keeps its proposal id, so that it must run once (P-EO). Used by the
world; judged by linearizability.py and list_append.py. Must never call an operation failed that may have happened.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import EntryKind
from incus_actors.simulation.linearizability import FOREVER, Call
from incus_actors.simulation.list_append import Exchange, Step
from incus_actors.simulation.machine import Action, Command, Value

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

ATTEMPTS = 5
DEADLINES_MS = (300, 1_000, 1_000, 2_500)
MOST_OPEN = 8  #: unknown results per register; then it is left alone and another one is used


@dataclass(slots=True)
class Operation:
    """One wish of a client, through all its attempts."""

    client: int
    kind: str  #: read, write, cas, append, expire
    keys: tuple[str, ...]
    start_us: int
    command: Command | None
    proposal_id: bytes = b""
    deadline_us: int = 0
    body: bytes = b""
    end_us: int = FOREVER
    status: str = "open"  #: open, ok, failed
    outcome: tuple[Value, ...] = ()
    took_place: bool = False
    maybe: bool = False  #: some attempt may have reached a log
    attempts: int = 0
    waiting: int = 0
    answered: Any = None
    logged: bool = False  #: an entry of it was applied, even if only to say that it came too late

    def __str__(self) -> str:
        ends = "..." if self.end_us == FOREVER else f"{self.end_us / 1000:.3f}"
        what = "" if self.command is None else f" {[(a.kind, a.key, a.value) for a in self.command.actions]}"
        guards = f" if {self.command.guards}" if self.command and self.command.guards else ""
        text = f"client {self.client} {self.kind} {self.keys}{what}{guards} {self.start_us / 1000:.3f}-{ends}"
        return f"{text} {self.status} {self.outcome}"


@dataclass(slots=True)
class History:
    """Everything that clients have asked and been told."""

    operations: list[Operation] = field(default_factory=list)
    open_writes: dict[str, int] = field(default_factory=dict)

    def calls(self) -> list[Call]:
        """Return the operations on registers, for linearizability.py."""
        found = []
        for operation in self.operations:
            if operation.status == "failed" or operation.kind not in ("read", "write", "cas"):
                continue
            ended = operation.status == "ok"
            end_us = operation.end_us if ended else FOREVER
            for i, key in enumerate(operation.keys):
                if not key.startswith("r"):
                    continue
                if operation.kind == "read":
                    if ended:
                        found.append(Call(key, "read", operation.start_us, end_us, None, operation.outcome[i]))
                elif operation.command is not None:
                    new = operation.command.actions[0].value
                    if operation.kind == "write":
                        found.append(Call(key, "write", operation.start_us, end_us, new))
                    else:
                        value = (operation.command.guards[0][1], new)
                        found.append(Call(key, "cas", operation.start_us, end_us, value, operation.took_place))
        return found

    def exchanges(self) -> list[Exchange]:
        """Return the transactions over lists, for list_append.py."""
        found = []
        for number, operation in enumerate(self.operations):
            if operation.kind not in ("append", "read"):
                continue
            ended = operation.status == "ok"
            if operation.kind == "read" and not ended:
                continue
            steps = _read_steps(operation) if operation.kind == "read" else _append_steps(operation)
            if steps:
                end_us = operation.end_us if ended else FOREVER
                name = f"operation {number}"
                found.append(Exchange(name, operation.start_us, end_us, steps, operation.status == "failed"))
        return found


def _read_steps(operation: Operation) -> tuple[Step, ...]:
    return tuple(
        Step("read", key, seen=_numbers(value))
        for key, value in zip(operation.keys, operation.outcome, strict=True)
        if key.startswith("l")
    )


def _append_steps(operation: Operation) -> tuple[Step, ...]:
    steps: list[Step] = []
    command = operation.command
    for i, action in enumerate(command.actions if command else ()):
        if action.kind == "append" and isinstance(action.value, int):
            steps.append(Step("append", action.key, action.value))
        if operation.status == "ok":
            steps.append(Step("read", action.key, seen=_numbers(operation.outcome[i])))
    return tuple(steps)


def _numbers(value: Value) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else ()


class Client:
    """Asks one thing after another, until the world says that it is enough."""

    def __init__(self, world: World, number: int, rng: random.Random) -> None:
        self.world = world
        self.number = number
        self.rng = rng
        self.count = 0
        self.favourite = 0
        self.fixed = rng.random() < 0.5
        self.known: dict[str, str | None] = {}

    # -- what to ask ----------------------------------------------------------------------------------------------

    def next(self) -> None:
        """Ask the next thing."""
        world, rng = self.world, self.rng
        if not world.asking:
            return
        choice = rng.random()
        if choice < 0.35:
            self._begin(self._read())
        elif choice < 0.60:
            self._begin(self._write())
        elif choice < 0.70:
            self._begin(self._cas())
        elif choice < 0.995:
            self._begin(self._append())
        else:
            self._begin(self._operation("expire", (), None))

    def later(self) -> None:
        """Ask the next thing after a pause."""
        pause_us = 1 + int(self.rng.expovariate(1.0) * self.world.plan.think_ms * 1_000)
        self.world.after(pause_us, self.next)

    def _operation(self, kind: str, keys: tuple[str, ...], command: Command | None) -> Operation:
        self.count += 1
        operation = Operation(self.number, kind, keys, self.world.now_us, command)
        operation.deadline_us = self.world.now_us + self.rng.choice(DEADLINES_MS) * 1_000
        self.world.history.operations.append(operation)
        return operation

    def _register(self) -> str:
        opened = self.world.history.open_writes
        slot = self.rng.randrange(self.world.plan.keys)
        while opened.get(f"r{slot}", 0) >= MOST_OPEN:
            slot += self.world.plan.keys
        return f"r{slot}"

    def _list(self) -> str:
        return f"l{self.rng.randrange(self.world.plan.keys)}"

    def _value(self) -> str:
        return f"{self.number}.{self.count}"

    def _read(self) -> Operation:
        keys = {self._register(), self._list(), self._list()}
        return self._operation("read", tuple(sorted(keys)), None)

    def read_everything(self) -> None:
        """Read all keys there are; after healing."""
        keys = sorted({key for operation in self.world.history.operations for key in operation.keys})
        self._begin(self._operation("read", tuple(keys), None))

    def write_something(self, host: Host) -> Operation:
        """Write one register, asking `host` first; after healing."""
        operation = self._write()
        self._begin(operation, host)
        return operation

    def _write(self) -> Operation:
        key = self._register()
        return self._operation("write", (key,), Command((Action("set", key, self._value()),)))

    def _cas(self) -> Operation:
        key = self._register()
        expected = self.known.get(key)
        return self._operation("cas", (key,), Command((Action("set", key, self._value()),), ((key, expected),)))

    def _append(self) -> Operation:
        actions = []
        for _ in range(self.rng.randint(1, 3)):
            key = self._list()
            if self.rng.random() < 0.7:
                self.world.numbers += 1
                actions.append(Action("append", key, self.world.numbers))
            else:
                actions.append(Action("get", key))
        keys = tuple(sorted({action.key for action in actions}))
        return self._operation("append", keys, Command(tuple(actions)))

    # -- whom to ask ----------------------------------------------------------------------------------------------

    def _begin(self, operation: Operation, first: Host | None = None) -> None:
        operation.attempts = 0
        if operation.kind != "read":
            host = first or self.world.any_host()
            wall = (host.wall_ms() & 0xFFFFFFFFFFFF).to_bytes(6, "big")
            operation.proposal_id = wall + self.number.to_bytes(4, "big") + self.count.to_bytes(6, "big")
            machine = host.disk.machine
            if operation.command is None:
                operation.body = machine.encode_expire(host.wall_ms() - 3_000)
            else:
                operation.body = machine.encode(operation.command)
                self.world.monitor.versions.commands[operation.proposal_id] = operation.command
        self._try(operation, first)
        if operation.kind != "read" and self.rng.random() < 0.02:
            self._try(operation)  # twice at once, perhaps at two members

    def _try(self, operation: Operation, first: Host | None = None) -> None:
        world, rng = self.world, self.rng
        if operation.status != "open" or operation.answered is not None:
            return
        operation.attempts += 1
        if not self.fixed or not self.favourite or rng.random() < 0.3:
            self.favourite = world.any_host().id
        host = first or world.hosts[self.favourite]
        left_ms = (operation.deadline_us - world.now_us) // 1_000
        if left_ms <= 0:
            self._give_up(operation)
            return
        operation.waiting += 1
        deadline_ms = host.local_ms() + left_ms
        if operation.kind == "read":
            if host.core is not None:
                world.monitor.stale_read(host, operation.keys)
            world.requests += 1
            key: bytes | int = world.requests
            event: ev.Event = ev.ReadIndex(world.requests, deadline_ms)
        else:
            key = operation.proposal_id
            kind = EntryKind.EXPIRE if operation.kind == "expire" else EntryKind.SQL
            event = ev.Propose(key, kind, operation.body, host.wall_ms(), deadline_ms)

        def answer(status: str, outcome: Any, index: int) -> None:
            operation.waiting -= 1
            self._answered(operation, host, status, outcome, index)

        if not host.request(key, event, answer):
            operation.waiting -= 1
            self.favourite = 0
            world.after(rng.randint(1_000, 30_000), self._try, operation)

    # -- what comes back ------------------------------------------------------------------------------------------

    def _answered(self, operation: Operation, host: Host, status: str, outcome: Any, index: int) -> None:
        world = self.world
        if operation.kind == "read":
            if status == "applied":
                self._finish(operation, host.disk.machine.read(operation.keys), took_place=True)
            else:
                self._retry_or_give_up(operation)
            return
        if status == "applied":
            operation.logged = True
            world.monitor.acknowledged(host, operation.proposal_id, outcome, index)
            if operation.answered is not None:
                world.monitor.same_answer(operation.answered, outcome)
            if operation.status != "open":
                return
            if outcome[0] == "too_old":
                operation.maybe = True  # the answer that it once got is forgotten
                self._give_up(operation)
                return
            operation.answered = outcome
            values = outcome[1] if outcome[0] == "applied" else ()
            self._finish(operation, values, took_place=outcome[0] == "applied")
        elif operation.status == "open" and operation.answered is None:
            if status in ("lost", "unknown"):
                operation.maybe = True
            self._retry_or_give_up(operation)

    def _finish(self, operation: Operation, values: tuple[Value, ...], *, took_place: bool) -> None:
        if operation.status != "open":
            return
        operation.status, operation.end_us = "ok", self.world.now_us
        operation.outcome, operation.took_place = values, took_place
        for key, value in zip(operation.keys, values, strict=False):
            if key.startswith("r") and not isinstance(value, tuple):
                self.known[key] = value
        self.world.answered += 1
        self.later()

    def _retry_or_give_up(self, operation: Operation) -> None:
        if operation.status != "open" or operation.waiting:
            return
        if operation.attempts >= ATTEMPTS or self.rng.random() < 0.2 or operation.kind == "expire":
            self._give_up(operation)
            return
        self.favourite = 0
        self.world.after(self.rng.randint(500, 50_000), self._try, operation)

    def _give_up(self, operation: Operation) -> None:
        """The client goes away with its question open, or knows that it has failed."""
        if operation.status != "open" or operation.waiting:
            return
        if operation.kind == "read" or not operation.maybe:
            operation.status = "failed"
        else:
            operation.status = "unknown"
            opened = self.world.history.open_writes
            for key in operation.keys:
                opened[key] = opened.get(key, 0) + 1
        self.later()
