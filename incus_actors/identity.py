"""Who this member is: id, name, address, whether it is part of a cluster.

Owns one cached view of this member's `nodes` row, refreshed when transactions with topic "members" are applied;
gateways and services read it on every request. It must never do anything but read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol

from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Value

STANDALONE_NAME = "none"
STANDALONE_ADDRESS = "0.0.0.0"  # noqa: S104 - what Incus writes for "not clustered", nothing listens on it


class _Reader(Protocol):
    def one(self, sql: str, params: Sequence[Value] = ()) -> sqlite3.Row | None: ...


class Identity:
    """`database` and `member_id` are asked each time, because joining a cluster replaces both."""

    def __init__(self, *, database: Callable[[], _Reader], member_id: Callable[[], int], hostname: str) -> None:
        self._database = database
        self._member_id = member_id
        self._hostname = hostname
        self.member_id = 1  #: our id; 1 while standalone
        self.name = STANDALONE_NAME  #: "none" while standalone, as in operations' `location`
        self.address = STANDALONE_ADDRESS  #: host:port of the cluster address, "0.0.0.0" while standalone
        self.state = 0  #: domain.members.MemberState
        self.known = False  #: whether our row is in the database

    @property
    def clustered(self) -> bool:
        """Whether this server is a full member of a cluster."""
        return self.address != STANDALONE_ADDRESS and self.known

    @property
    def server_name(self) -> str:
        """The member's name, or the host's while standalone (environment.server_name)."""
        return self.name if self.clustered else self._hostname

    @property
    def location(self) -> str:
        """What the LOCATION of our own things is: the member's name, or "none"."""
        return self.name

    def refresh(self) -> None:
        """Read our row again. Without a row (a join in progress) we are a standalone server for everyone else."""
        try:
            self.member_id = self._member_id()
            row = self._database().one("SELECT name, address, state FROM nodes WHERE id = ?", (self.member_id,))
        except (sqlite3.OperationalError, UnavailableError):
            row = None  # a joiner's database has no tables before its first entries, or is just being exchanged
        self.known = row is not None and row["state"] != 1  # pending: not yet a member
        if row is None or not self.known:
            self.name, self.address, self.state = STANDALONE_NAME, STANDALONE_ADDRESS, 0
        else:
            self.name, self.address, self.state = str(row["name"]), str(row["address"]), int(row["state"])
