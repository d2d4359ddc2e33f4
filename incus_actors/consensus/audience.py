"""Who wants to be told what consensus does.

Owns the subscribers on the main loop and the last role and configuration told, so that a newcomer hears the present
at once; used by runtime.py. Must never let one subscriber's failure keep another from hearing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec

from incus_actors.consensus.api import RoleChange
from incus_actors.consensus.types import Configuration, Index

log = logging.getLogger(__name__)

ALL_TOPICS = frozenset(
    {
        "*",
        "certificates",
        "config",
        "images",
        "instances",
        "members",
        "networks",
        "profiles",
        "projects",
        "schema",
        "storage",
        "tokens",
        "warnings",
    }
)  #: told after a snapshot was installed: anything may have changed

P = ParamSpec("P")


class Audience:
    """Subscribers of roles, of applied topics and of configurations; each in the order of subscription."""

    def __init__(self) -> None:
        self.role: RoleChange | None = None
        self.configuration: Configuration | None = None
        self._on_role: list[Callable[[RoleChange], None]] = []
        self._on_applied: list[Callable[[Index, frozenset[str]], None]] = []
        self._on_configuration: list[Callable[[Configuration], None]] = []

    def subscribe_role(self, callback: Callable[[RoleChange], None]) -> Callable[[], None]:
        """Call with the present and with every change; returns the unsubscriber."""
        if self.role is not None:
            callback(self.role)
        return _subscribe(self._on_role, callback)

    def subscribe_applied(self, callback: Callable[[Index, frozenset[str]], None]) -> Callable[[], None]:
        """Call with every batch of topics; returns the unsubscriber."""
        return _subscribe(self._on_applied, callback)

    def subscribe_configuration(self, callback: Callable[[Configuration], None]) -> Callable[[], None]:
        """Call with the present and with every change; returns the unsubscriber."""
        if self.configuration is not None:
            callback(self.configuration)
        return _subscribe(self._on_configuration, callback)

    def tell_role(self, change: RoleChange) -> None:
        """Tell a role change."""
        self.role = change
        _call(self._on_role, change)

    def tell_applied(self, index: Index, topics: frozenset[str]) -> None:
        """Tell what was touched up to `index`."""
        _call(self._on_applied, index, topics)

    def tell_configuration(self, configuration: Configuration) -> None:
        """Tell a configuration, if it is a new one."""
        if configuration != self.configuration:
            self.configuration = configuration
            _call(self._on_configuration, configuration)

    def forget(self) -> None:
        """The database was exchanged: what was told is not true any more."""
        self.role = self.configuration = None


def _subscribe(callbacks: list[Callable[P, None]], callback: Callable[P, None]) -> Callable[[], None]:
    callbacks.append(callback)

    def unsubscribe() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return unsubscribe


def _call(callbacks: list[Callable[P, None]], *values: P.args, **named: P.kwargs) -> None:
    for callback in tuple(callbacks):
        try:
            callback(*values, **named)
        except Exception:
            log.exception("a subscriber of consensus failed")
