"""What a parent does at the death of a child (Erlang/OTP supervisor semantics).

Owns the decisions for one cell; used by `cell.py` only. Runs beside the parent's mailbox, so a parent that is busy
still restarts its children. Must never restart what somebody stopped on purpose.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from incus_actors.actors.actor import ActorStartError
from incus_actors.tasks import spawn

if TYPE_CHECKING:
    from incus_actors.actors.cell import Cell

log = logging.getLogger(__name__)


class RestartIntensityError(Exception):
    """A child died too often within its window; the parent gives up and crashes."""


class Supervision:
    """Deaths waiting for a decision, handled one after the other."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._deaths: deque[tuple[Cell, Exception | None]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, child: Cell, cause: Exception | None) -> None:
        """A child's life ended by itself: crashed with `cause`, or normally (None)."""
        self._deaths.append((child, cause))
        if self._task is None or self._task.done():
            self._task = spawn(self._run(), name=f"supervision by {self._cell.path or '/'}")

    def cancel(self) -> None:
        """Decide no more: the parent itself is ending."""
        self._deaths.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _run(self) -> None:
        while self._deaths:
            child, cause = self._deaths.popleft()
            if child.state == "crashed" and self._cell.children.get(child.spec.name) is child:
                await self._decide(child, cause)

    async def _decide(self, child: Cell, cause: Exception | None) -> None:
        policy = child.spec.restart
        if policy == "temporary" or (policy == "transient" and cause is None):
            self._cell.forget(child)
            return
        failed: Cell | None = child
        while failed is not None:
            delay_s = self._count(failed)
            if delay_s is None:
                error = RestartIntensityError(
                    f"{failed.path} died more than {failed.spec.max_restarts} times in {failed.spec.within_s} s: {cause}"
                )
                error.__cause__ = cause
                log.error("%s", error)
                self._cell.fail(error)
                return
            affected = self._affected(failed)
            log.warning("restarting %s after: %s", ", ".join(c.path for c in affected), cause or "normal end")
            await asyncio.sleep(delay_s)
            failed, cause = await self._restart(affected)

    def _count(self, child: Cell) -> float | None:
        """Note one restart; returns how long to wait before it, or None when there were too many."""
        now = asyncio.get_running_loop().time()
        times = child.restart_times
        times.append(now)
        while times and times[0] <= now - child.spec.within_s:
            times.popleft()
        if len(times) > child.spec.max_restarts:
            return None
        return child.spec.backoff_s * 2.0 ** (len(times) - 1)

    def _affected(self, failed: Cell) -> list[Cell]:
        children = list(self._cell.children.values())
        strategy = "one_for_one" if self._cell.actor is None else self._cell.actor.strategy
        if strategy == "one_for_all":
            return children
        if strategy == "rest_for_one":
            return children[children.index(failed) :]
        return [failed]

    async def _restart(self, cells: list[Cell]) -> tuple[Cell | None, Exception | None]:
        """Stop in reverse, start in order. Returns the one that did not start, and why."""
        for cell in reversed(cells):
            await cell.stop("shutdown")
        for cell in cells:
            if self._cell.children.get(cell.spec.name) is not cell:
                continue  # somebody removed it meanwhile
            if cell.spec.restart == "temporary":
                self._cell.forget(cell)
                continue
            cell.restarts += 1
            try:
                await cell.start()
            except ActorStartError as error:
                log.warning("restart failed: %s", error)
                return cell, error
        return None, None
