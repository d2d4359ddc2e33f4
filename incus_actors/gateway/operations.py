"""Operations: long work that a client may watch, wait for, cancel or attach websockets to (CONTRACT 3).

Owns the registry of this member's operations and their life cycle Pending → Running → final, and publishes every
change. Created by REST handlers; the work itself is a coroutine of a service. It must never lose an end: every
operation ends visibly, whatever its coroutine does.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from incus_actors.errors import ApiError, BadRequestError, NotFoundError
from incus_actors.gateway.events import EventHub, timestamp
from incus_actors.tasks import spawn

if TYPE_CHECKING:
    from incus_actors.gateway.access import Caller
    from incus_actors.gateway.websockets import SocketSet

_log = logging.getLogger(__name__)

OperationKind = Literal["task", "websocket", "token"]
PENDING, RUNNING, CANCELLING, SUCCESS, FAILURE, CANCELLED = 105, 103, 104, 200, 400, 401
STATUS_NAMES = {
    PENDING: "Pending",
    RUNNING: "Running",
    CANCELLING: "Cancelling",
    SUCCESS: "Success",
    FAILURE: "Failure",
    CANCELLED: "Cancelled",
}
KEPT_S = 5.5  #: final operations stay readable this long (clients look once more after the event: at least 5 s)
PROGRESS_INTERVAL_S = 0.1  #: progress makes at most one event in this time; the last one is never lost

Run = Callable[["Operation"], Awaitable[None]]
Cancel = Callable[["Operation"], Awaitable[None]]


class TokenSource(Protocol):
    """Join and trust tokens look like operations but are rows of the database (the services of part F give this)."""

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return every live token as an operation object of class "token"."""

    def get_token(self, operation_id: str) -> dict[str, Any] | None:
        """Return one token as an operation object."""

    async def revoke_token(self, operation_id: str) -> bool:
        """Delete it for ever; False if there is none."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which operations a list shows: those of `projects` (None: of all), and unless `strict` those of no project."""

    projects: frozenset[str] | None = None
    strict: bool = False

    def includes(self, project: str | None) -> bool:
        """Return whether an operation of `project` belongs to it."""
        if self.projects is None:
            return True
        return not self.strict if project is None else project in self.projects


EVERYTHING = Scope()


def new_operation_id(member_id: int) -> str:
    """Return a random version 4 UUID whose last group begins with the member's id (docs/architecture.md)."""
    raw = uuid.uuid4().hex
    return str(uuid.UUID(f"{raw[:20]}{member_id & 0xFFFF:04x}{raw[24:]}"))


def member_of(operation_id: str) -> int | None:
    """Return the id of the member that runs `operation_id`, None if that is no UUID."""
    try:
        return int(uuid.UUID(operation_id).hex[20:24], 16)
    except ValueError:
        return None


class Operation:
    """One operation of this member. Handlers read `id` and `render()`; the work calls `update` and `progress`."""

    def __init__(
        self,
        registry: Operations,
        *,
        kind: OperationKind,
        description: str,
        project: str | None,
        resources: dict[str, list[str]] | None,
        metadata: dict[str, Any] | None,
        on_cancel: Cancel | None,
        may_cancel: bool,
        caller: Caller | None,
    ) -> None:
        self.id = new_operation_id(registry.member_id())
        self.kind = kind
        self.description = description
        self.project = project
        self.resources = resources or {}
        self.metadata = metadata
        self.may_cancel = may_cancel
        self.caller = caller
        self.sockets: SocketSet | None = None
        self.status_code = PENDING
        self.err = ""
        self.created_ns = self.updated_ns = registry.clock_ns()
        self._registry = registry
        self._location = registry.location()  # a bootstrap changes the name while it runs: keep the one it began with
        self._on_cancel = on_cancel
        self._task: asyncio.Task[None] | None = None
        self._cancel_reason = ""
        self._ended = asyncio.Event()
        self._progress_due: asyncio.TimerHandle | None = None
        self._progress_at = 0.0

    # -- for everybody ------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """The name of `status_code`."""
        return STATUS_NAMES[self.status_code]

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.status_code >= SUCCESS

    def render(self) -> dict[str, Any]:
        """Return the REST object (CONTRACT 3.1)."""
        return {
            "id": self.id,
            "class": self.kind,
            "description": self.description,
            "created_at": timestamp(self.created_ns),
            "updated_at": timestamp(self.updated_ns),
            "status": self.status,
            "status_code": self.status_code,
            "resources": self.resources,
            "metadata": self.metadata,
            "may_cancel": self.may_cancel,
            "err": self.err,
            "location": self._location,
        }

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Return True once it has ended, False when `timeout_s` is over first (None: no limit)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    # -- for the work -------------------------------------------------------------------------------------------

    def update(self, metadata_delta: Mapping[str, Any]) -> None:
        """Merge into the metadata and publish at once. No effect after the end."""
        if self.final:
            return
        self.metadata = {**(self.metadata or {}), **metadata_delta}
        self._changed()

    def progress(self, stage: str, percent: int | None, speed_bytes: int | None, text: str) -> None:
        """Set `<stage>_progress` to `text` and `progress` to strings (CONTRACT 3.4).

        May be called as often as one likes: at most one event in 100 ms is sent.
        """
        if self.final:
            return
        details = {"stage": stage}
        if percent is not None:
            details["percent"] = str(percent)
        if speed_bytes is not None:
            details["speed"] = str(speed_bytes)
        self.metadata = {**(self.metadata or {}), f"{stage}_progress": text, "progress": details}
        if self._progress_due is not None:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._progress_at + PROGRESS_INTERVAL_S - loop.time()
        if wait_s <= 0:
            self._publish_progress()
        else:
            self._progress_due = loop.call_later(wait_s, self._publish_progress)

    def _publish_progress(self) -> None:
        self._progress_due = None
        self._progress_at = asyncio.get_running_loop().time()
        if not self.final:
            self._changed()

    # -- life cycle (the registry calls these) --------------------------------------------------------------------

    def start(self, run: Run | None) -> None:
        """Go to Running; with `run`, do it and end with it. Without, it stays Running until `finish` or a cancel."""
        self._registry.publish(self)
        self.status_code = RUNNING
        self._changed()
        if run is not None:
            self._task = spawn(self._work(run), name=f"operation {self.description} {self.id}")
            self._task.add_done_callback(lambda _task: self._guarantee_end())

    async def _work(self, run: Run) -> None:
        try:
            await run(self)
        except asyncio.CancelledError:
            self.finish(CANCELLED, self._cancel_reason or "Operation cancelled")
            raise
        except ApiError as error:
            self.finish(FAILURE, str(error))
        except Exception as error:
            _log.exception("operation %s (%s) failed", self.id, self.description)
            self.finish(FAILURE, str(error) or type(error).__name__)
        else:
            if self._cancel_reason:
                self.finish(CANCELLED, self._cancel_reason)
            else:
                self.finish(SUCCESS, "")

    def _guarantee_end(self) -> None:
        if not self.final:  # cancelled before its first step: _work never ran
            self.finish(CANCELLED, self._cancel_reason or "Operation cancelled")

    def finish(self, status_code: int, err: str) -> None:
        """End it; only the first call counts."""
        if self.final:
            return
        if self._progress_due is not None:
            self._progress_due.cancel()
        self.status_code, self.err, self.may_cancel = status_code, err, False
        self._changed()
        self._ended.set()
        if self.sockets is not None:
            self.sockets.close()
        self._registry.ended(self)

    async def cancel(self, reason: str = "Operation cancelled") -> None:
        """Cancel it and return when that has begun: `on_cancel` ran, or else the coroutine was cancelled."""
        if self.final:
            return
        self._cancel_reason = reason
        self.status_code = CANCELLING
        self._changed()
        if self._on_cancel is not None:
            try:
                await self._on_cancel(self)
            except BaseException:
                if not self.final:
                    self._cancel_reason, self.status_code = "", RUNNING
                    self._changed()
                raise
            if self._task is None:
                self.finish(CANCELLED, reason)
        elif self._task is not None:
            self._task.cancel()
        else:
            self.finish(CANCELLED, reason)

    async def abort(self, reason: str) -> None:
        """Cancel the coroutine even if it may not be cancelled (the daemon stops); returns when it has ended."""
        if self.final:
            return
        self._cancel_reason = reason
        if self._task is None:
            self.finish(CANCELLED, reason)
        else:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _changed(self) -> None:
        self.updated_ns = self._registry.clock_ns()
        self._registry.publish(self)


class Operations:
    """The registry. `member_id()` and `location()` are asked anew each time: bootstrap and join change them."""

    def __init__(
        self,
        events: EventHub,
        *,
        member_id: Callable[[], int],
        location: Callable[[], str],
        tokens: TokenSource | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        kept_s: float = KEPT_S,
    ) -> None:
        self._events = events
        self.member_id = member_id
        self.location = location
        self.tokens = tokens
        self.clock_ns = clock_ns
        self._kept_s = kept_s
        #: Set by the composition root: other members' operations (gateway/event_relay.py).
        self.elsewhere: Callable[[Scope], Awaitable[list[dict[str, Any]]]] | None = None
        self._operations: dict[str, Operation] = {}

    def create(
        self,
        *,
        kind: OperationKind,
        description: str,
        project: str | None,
        resources: dict[str, list[str]] | None = None,
        metadata: dict[str, Any] | None = None,
        run: Run | None,
        on_cancel: Cancel | None = None,
        may_cancel: bool = False,
        caller: Caller | None = None,
        sockets: SocketSet | None = None,
    ) -> Operation:
        """Register and start an operation; it is Running when this returns.

        Whatever `run` raises becomes status Failure with `err=str(error)`; returning is Success. For kind
        "websocket" give `sockets`. `project` None: an operation of the server, visible in every project.
        """
        operation = Operation(
            self,
            kind=kind,
            description=description,
            project=project,
            resources=resources,
            metadata=metadata,
            on_cancel=on_cancel,
            may_cancel=may_cancel or on_cancel is not None,
            caller=caller,
        )
        operation.sockets = sockets
        self._operations[operation.id] = operation
        operation.start(run)
        return operation

    def get(self, operation_id: str) -> Operation | None:
        """Return a local operation that runs or ended less than 5 s ago."""
        return self._operations.get(operation_id)

    def rendered(self, operation_id: str) -> dict[str, Any] | None:
        """Return the REST object of a local operation or of a token."""
        operation = self.get(operation_id)
        if operation is not None:
            return operation.render()
        return self.tokens.get_token(operation_id) if self.tokens is not None else None

    def local(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Return this member's operations within `scope` as REST objects."""
        return [o.render() for o in self._operations.values() if scope.includes(o.project)]

    def token_objects(self) -> list[dict[str, Any]]:
        """Return the cluster's live tokens as REST objects (the same on every member)."""
        return self.tokens.list_tokens() if self.tokens is not None else []

    async def cancel(self, operation_id: str) -> None:
        """Cancel a local operation or revoke a token. Raises NotFoundError, BadRequestError if it may not be."""
        operation = self.get(operation_id)
        if operation is None:
            if self.tokens is not None and await self.tokens.revoke_token(operation_id):
                return
            raise NotFoundError("Operation not found")
        if operation.final or not operation.may_cancel:
            raise BadRequestError("This operation can't be cancelled")
        await operation.cancel()

    def running(self) -> list[Operation]:
        """Return what hasn't ended."""
        return [o for o in self._operations.values() if not o.final]

    async def stop(self, reason: str = "The daemon is shutting down", *, timeout_s: float = 5.0) -> None:
        """Abort what still runs, visibly; what doesn't end within `timeout_s` is ended for its watchers anyway."""
        running = self.running()
        if not running:
            return
        aborts = [spawn(o.abort(reason), name=f"abort {o.id}") for o in running]
        await asyncio.wait(aborts, timeout=timeout_s)
        for operation in running:
            operation.finish(CANCELLED, reason)

    def publish(self, operation: Operation) -> None:
        """Called by Operation on every change."""
        self._events.publish("operation", operation.render(), operation.project)

    def ended(self, operation: Operation) -> None:
        """Called by Operation once: forget it after the keeping time."""
        asyncio.get_running_loop().call_later(self._kept_s, self._operations.pop, operation.id, None)
