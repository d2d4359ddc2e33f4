"""Strict serializability of transactions that append to lists and read them: a search for cycles, as Elle does.

Owns the checker for transactions over several keys. Every appended number is unique, so a read shows the whole
history of its list; from the reads follow the order of versions and who depended on whom. A cycle among these
dependencies and real time is an anomaly. Used after a run; knows nothing about Raft.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from incus_actors.simulation.linearizability import FOREVER


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a transaction: `read` of a list (`seen` is what it had), or `append` of a number."""

    kind: str
    key: str
    number: int = 0
    seen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A transaction. `end_us` FOREVER: not known whether it happened; its reads are empty then. `failed`: it was
    refused, nobody may ever see what it appended."""

    name: str
    start_us: int
    end_us: int
    steps: tuple[Step, ...]
    failed: bool = False


def anomalies(history: Iterable[Exchange]) -> list[str]:
    """Return what contradicts strict serializability; an empty list means that nothing does."""
    everything = sorted(history, key=lambda exchange: exchange.start_us)
    writers = {
        (step.key, step.number): i
        for i, exchange in enumerate(everything)
        for step in exchange.steps
        if step.kind == "append"
    }
    found = [*_inside(everything), *_reads(everything, writers)]
    orders, clashes = _orders(everything)
    found += clashes
    if found:
        return found
    happened = _happened(everything, orders, writers)
    edges = _dependencies(everything, orders, writers, happened)
    _real_time(everything, happened, edges)
    return [
        "cycle: " + ", ".join(everything[i].name for i in sorted(group)) for group in _cycles(len(everything), edges)
    ]


def _inside(everything: Sequence[Exchange]) -> list[str]:
    """A transaction must see its own appends, and the same list twice if it reads it twice."""
    found = []
    for exchange in everything:
        if exchange.end_us >= FOREVER or exchange.failed:
            continue
        known: dict[str, tuple[int, ...]] = {}
        added: dict[str, tuple[int, ...]] = {}
        for step in exchange.steps:
            mine = added.get(step.key, ())
            if step.kind == "append":
                added[step.key] = (*mine, step.number)
                if step.key in known:
                    known[step.key] = (*known[step.key], step.number)
                continue
            if step.key in known and known[step.key] != step.seen:
                found.append(f"internal: {exchange.name} reads {step.key} as {step.seen}, not {known[step.key]}")
            if mine and step.seen[-len(mine) :] != mine:
                found.append(f"internal: {exchange.name} does not see its own {mine} in {step.seen}")
            known[step.key] = step.seen
    return found


def _reads(everything: Sequence[Exchange], writers: dict[tuple[str, int], int]) -> list[str]:
    """Nobody sees a number twice, one that nobody appended, or one of a transaction that was refused."""
    found = []
    for exchange in everything:
        for step in exchange.steps:
            if len(set(step.seen)) != len(step.seen):
                found.append(f"duplicate: {exchange.name} reads {step.key} as {step.seen}")
            for number in step.seen:
                writer = writers.get((step.key, number))
                if writer is None:
                    found.append(f"invented: {exchange.name} reads {number} in {step.key}")
                elif everything[writer].failed:
                    found.append(f"aborted: {exchange.name} reads {number} in {step.key} of {everything[writer].name}")
    return found


def _orders(everything: Sequence[Exchange]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the longest version seen of each list; every other one must be its beginning."""
    longest: dict[str, tuple[int, ...]] = {}
    for exchange in everything:
        for step in exchange.steps:
            if len(step.seen) > len(longest.get(step.key, ())):
                longest[step.key] = step.seen
    clashes = [
        f"incompatible: {exchange.name} reads {step.key} as {step.seen}, others as {longest[step.key]}"
        for exchange in everything
        for step in exchange.steps
        if step.kind == "read" and step.seen and longest[step.key][: len(step.seen)] != step.seen
    ]
    return longest, clashes


def _happened(
    everything: Sequence[Exchange], orders: dict[str, tuple[int, ...]], writers: dict[tuple[str, int], int]
) -> list[bool]:
    """Known to have happened: answered, or seen by somebody."""
    happened = [exchange.end_us < FOREVER and not exchange.failed for exchange in everything]
    for key, numbers in orders.items():
        for number in numbers:
            happened[writers[key, number]] = True
    return happened


Edges = dict[int, set[int]]


def _dependencies(
    everything: Sequence[Exchange],
    orders: dict[str, tuple[int, ...]],
    writers: dict[tuple[str, int], int],
    happened: Sequence[bool],
) -> Edges:
    """Who must come before whom: ww along the order of versions, wr to who saw them, rw to who came after."""
    edges: Edges = defaultdict(set)
    place = {(key, number): i for key, numbers in orders.items() for i, number in enumerate(numbers)}
    unseen: dict[str, list[int]] = defaultdict(list)
    for (key, number), writer in writers.items():
        if (key, number) not in place and happened[writer]:
            unseen[key].append(writer)
    for key, numbers in orders.items():
        chain = [writers[key, number] for number in numbers]
        for before, after in pairwise(chain):
            _edge(edges, before, after)
        for writer in unseen[key]:
            if chain:
                _edge(edges, chain[-1], writer)  # it was appended behind everything that was ever seen
    for i, exchange in enumerate(everything):
        if not happened[i]:
            continue
        own = {(step.key, step.number) for step in exchange.steps if step.kind == "append"}
        for step in exchange.steps:
            if step.kind != "read" or exchange.end_us >= FOREVER:
                continue
            seen = tuple(number for number in step.seen if (step.key, number) not in own)
            if seen:
                _edge(edges, writers[step.key, seen[-1]], i)
            following = orders.get(step.key, ())[len(step.seen) : len(step.seen) + 1]
            for number in following:
                _edge(edges, i, writers[step.key, number])
            if not following:
                for writer in unseen[step.key]:
                    _edge(edges, i, writer)
    return edges


def _edge(edges: Edges, before: int, after: int) -> None:
    if before != after:
        edges[before].add(after)


def _real_time(everything: Sequence[Exchange], happened: Sequence[bool], edges: Edges) -> None:
    """What ended before another began comes before it; only the edges that do not follow from others."""
    ended: list[int] = []  # the frontier: ended transactions that no later ended one follows
    pending = sorted(
        (i for i, yes in enumerate(happened) if yes and everything[i].end_us < FOREVER),
        key=lambda i: everything[i].end_us,
    )
    position = 0
    for i, exchange in enumerate(everything):
        if not happened[i]:
            continue
        while position < len(pending) and everything[pending[position]].end_us < exchange.start_us:
            new = pending[position]
            ended = [old for old in ended if everything[old].end_us >= everything[new].start_us]
            ended.append(new)
            position += 1
        for before in ended:
            _edge(edges, before, i)


def _cycles(count: int, edges: Edges) -> list[list[int]]:
    """Return the strongly connected components of more than one node (Tarjan, without recursion)."""
    index = [-1] * count
    low = [0] * count
    on_stack = [False] * count
    stack: list[int] = []
    found: list[list[int]] = []
    counter = 0
    for root in range(count):
        if index[root] >= 0:
            continue
        work = [(root, iter(sorted(edges.get(root, ()))))]
        index[root] = low[root] = counter
        counter += 1
        stack.append(root)
        on_stack[root] = True
        while work:
            node, successors = work[-1]
            advanced = False
            for successor in successors:
                if index[successor] < 0:
                    index[successor] = low[successor] = counter
                    counter += 1
                    stack.append(successor)
                    on_stack[successor] = True
                    work.append((successor, iter(sorted(edges.get(successor, ())))))
                    advanced = True
                    break
                if on_stack[successor]:
                    low[node] = min(low[node], index[successor])
            if advanced:
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                group: list[int] = []
                while True:
                    member = stack.pop()
                    on_stack[member] = False
                    group.append(member)
                    if member == node:
                        break
                if len(group) > 1:
                    found.append(group)
    return found
