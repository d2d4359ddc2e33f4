"""The server's configuration: global keys, this member's keys, and telling the daemon when they change.

Owns the semantics of PUT and PATCH /1.0 (CONTRACT 7.1); called by rest/server_routes.py, read by everybody through
`value`. Must never store a listen address that can't be bound here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from incus_actors.consensus.api import Consensus
from incus_actors.domain.transactions_config import change_server_config, with_member_address
from incus_actors.errors import ApiError, BadRequestError, MemberError, NotImplementedHereError, OutcomeUnknownError
from incus_actors.identity import Identity
from incus_actors.model import config_keys
from incus_actors.model.transaction import Transaction
from incus_actors.services import listen_check, trust_password
from incus_actors.services.proposing import Expect, TransactionConflictError, propose, until_unchanged
from incus_actors.state.queries import config as queries
from incus_actors.state.reader import Reader
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

#: Addresses of services that we don't have: they are only kept, but must mean something.
_NEVER_BOUND = ("core.bgp_address", "core.debug_address", "core.dns_address", "core.storage_buckets_address")

#: Gets the names of the changed keys and the whole configuration of this member.
ConfigHook = Callable[[frozenset[str], Mapping[str, str]], Awaitable[None]]


class AddressMover(Protocol):
    """Moves this member to another cluster address (services/cluster_address.py)."""

    def check(self, address: str) -> str:
        """Return it with its port. Raises ApiError."""

    async def prepare(self, address: str) -> None:
        """Before the transaction. Raises MemberError."""

    async def undo(self) -> None:
        """After a transaction that failed."""

    async def announce(self) -> None:
        """After the transaction."""


CheckBind = Callable[[str, str, Mapping[str, str]], Awaitable[None]]


#: Keys that Incus has and that must not be taken as if they did something here.
_WITHOUT_EFFECT: Final = {
    "storage.backups_volume": "Keeping backups on a storage volume is not supported yet",
    "storage.images_volume": "Keeping images on a storage volume is not supported yet",
}


class ServerConfigService:
    """Call `start` once the database can be read; hooks run from then on, one change after the other."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        identity: Identity,
        check_bind: CheckBind = listen_check.check_bind,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._check_bind = check_bind
        self._hooks: list[ConfigHook] = []
        self._seen: dict[str, str] = {}
        self._telling = asyncio.Lock()
        self._unsubscribe: Callable[[], None] | None = None
        self.mover: AddressMover | None = None  #: without one a member can't move

    # -- reading ------------------------------------------------------------------------------------------------------

    def effective(self, member_id: int = 0) -> dict[str, str]:
        """Return what `GET /1.0` shows: global keys and those of a member (0: this one), without defaults and secrets."""
        return trust_password.masked(queries.server_config(self._database, member_id or self._identity.member_id))

    def value(self, key: str) -> str:
        """Return the value in effect on this member: what is set, or the default, or ""."""
        return config_keys.server_value(self.effective(), key)

    def configured(self, key: str) -> str:
        """Return what is set, without defaults."""
        return self.effective().get(key, "")

    # -- being told ---------------------------------------------------------------------------------------------------

    def on_change(self, hook: ConfigHook) -> Callable[[], None]:
        """Call `hook` after every change, wherever it was made; return the unsubscriber. Its errors are logged."""
        self._hooks.append(hook)
        return lambda: self._hooks.remove(hook)

    def start(self) -> None:
        """Take the present configuration as known and follow it from now on."""
        self._seen = self.effective()
        self._unsubscribe = self._consensus.subscribe_applied(self._applied)

    def stop(self) -> None:
        """Follow no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "config" in topics:
            spawn(self._tell(), name="config-hooks")

    async def _tell(self) -> None:
        async with self._telling:
            now = self.effective()
            changed = frozenset(key for key in now.keys() | self._seen.keys() if now.get(key) != self._seen.get(key))
            self._seen = now
            if not changed:
                return
            for hook in tuple(self._hooks):
                try:
                    await hook(changed, now)
                except Exception:
                    _log.exception("acting on the changed configuration (%s) failed", ", ".join(sorted(changed)))

    # -- writing ------------------------------------------------------------------------------------------------------

    async def replace(
        self, values: Mapping[str, str] | None, *, expect: Expect | None = None, member_id: int = 0
    ) -> frozenset[str]:
        """PUT: keys that are absent go back to their defaults, except `user.*`. Return the names that changed.

        `member_id`: for whom we stand in (0: nobody); that one's own keys must stay as they are. Raises BadRequestError
        (unknown key or bad value), MemberError (500: an address that can't be bound, a cluster address that would
        change), PreconditionFailedError.
        """
        keep = config_keys.is_user_key
        return await self._change(values or {}, keep_absent=keep, expect=expect, whole=True, stands_for=member_id)

    async def patch(
        self, values: Mapping[str, str] | None, *, expect: Expect | None = None, member_id: int = 0
    ) -> frozenset[str]:
        """PATCH: keys that are absent stay. Return the names that changed. Raises as `replace`."""
        whole = expect is not None
        return await self._change(
            values or {}, keep_absent=lambda _: True, expect=expect, whole=whole, stands_for=member_id
        )

    async def _change(
        self,
        values: Mapping[str, str],
        *,
        keep_absent: Callable[[str], bool],
        expect: Expect | None,
        whole: bool,
        stands_for: int,
    ) -> frozenset[str]:
        try:
            given = config_keys.canonical_server_values(values)
        except config_keys.ConfigError as error:
            raise BadRequestError(str(error)) from None
        for key in _WITHOUT_EFFECT:
            if given.get(key):
                raise NotImplementedHereError(f'Failed validation of "{key}": {_WITHOUT_EFFECT[key]}')
        given = await trust_password.stored(given, queries.global_config(self._database).get(trust_password.KEY, ""))

        async def attempt() -> frozenset[str]:
            member_id = stands_for or self._identity.member_id
            shared = queries.global_config(self._database)
            local = queries.member_config(self._database, member_id)
            if expect is not None:
                expect(trust_password.masked(dict(sorted({**shared, **local}.items()))))
            wanted = {key: value for key, value in {**shared, **local}.items() if keep_absent(key)}
            wanted = config_keys.merged(wanted, given.items())
            new_shared = {key: value for key, value in wanted.items() if not config_keys.is_local(key)}
            new_local = {key: value for key, value in wanted.items() if config_keys.is_local(key)}
            if stands_for and new_local != local:
                raise MemberError("The member is cut off: its own keys can't be changed through another one now")
            moved_to = await self._check_addresses(local, new_local)
            old = {**shared, **local}
            changed = frozenset(key for key in old.keys() | wanted.keys() if old.get(key) != wanted.get(key))
            if changed:
                transaction = change_server_config(member_id, (shared, new_shared), (local, new_local), whole=whole)
                if moved_to:
                    await self._move(with_member_address(transaction, member_id, moved_to), moved_to)
                else:
                    await propose(self._consensus, transaction)
            return changed

        changed = await until_unchanged(attempt)
        if changed:
            await self._tell()
        return changed

    async def _move(self, transaction: Transaction, address: str) -> None:
        """Propose a change that takes this member to another cluster address."""
        assert self.mover is not None
        await self.mover.prepare(address)
        try:
            await propose(self._consensus, transaction)
        except TransactionConflictError as conflict:
            await self.mover.undo()
            if conflict.label == "address":
                raise BadRequestError(f"Another member has the address {address} already") from None
            raise
        except OutcomeUnknownError:
            raise  # whichever way it goes, we listen at both places until the next start
        except ApiError:
            await self.mover.undo()
            raise
        await self.mover.announce()

    async def _check_addresses(self, old: Mapping[str, str], new: Mapping[str, str]) -> str:
        """Return where this member's cluster address goes, "" if it stays. Raises ApiError."""
        key = "cluster.https_address"
        moved_to = ""
        if self._identity.clustered and old.get(key, "") != new.get(key, ""):
            if self.mover is None:
                raise MemberError("Changing cluster.https_address is currently not supported")
            moved_to = self.mover.check(new.get(key, ""))
        for key in ("core.https_address", "cluster.https_address", "core.metrics_address"):
            address = new.get(key, "")
            if address and address != old.get(key, ""):
                await self._check_bind(key, address, old)
        for key in _NEVER_BOUND:
            address = new.get(key, "")
            if address and address != old.get(key, ""):
                await listen_check.check_resolves(key, address)
        return "" if moved_to == self._identity.address else moved_to
