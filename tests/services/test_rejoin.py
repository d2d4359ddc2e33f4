"""A member that lost what it promised: who gives it a new id, and what happens to the old database."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cluster_kit import Server, servers, until

from incus_actors.consensus import bootstrap
from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.recovery import overview
from incus_actors.errors import ApiError, BadRequestError, ForbiddenError, UnavailableError
from incus_actors.model.cluster import ReplaceRequest
from incus_actors.security import certificates
from incus_actors.services import join_journal, rejoin
from incus_actors.services.acceptance import Applicant
from incus_actors.services.peer_client import PeerUnreachableError

VERSIONS = rejoin.Versions("0.1", 3, 10)


@pytest.fixture
async def three(tmp_path):
    async with servers(tmp_path, 3, clustered=True) as made:
        await until(lambda: len(made[0].consensus.status().configuration.old) == 3)
        yield made


def request(server: Server, name: str, **changes: Any) -> ReplaceRequest:
    values = {"name": name, "transport": server.transport, "version": "0.1", "schema": 3, "api_extensions": 10}
    return ReplaceRequest(**{**values, **changes})


def applicant(server: Server, name: str | None) -> Applicant:
    pair = server.cases.bootstrap.server_certificate()
    return Applicant(pair.fingerprint, pair.certificate_pem, name)


@dataclass
class Posts:
    """services.peer_client.PeerClient that asks a server of this process."""

    server: Server
    name: str
    refusals: list[Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def post(self, address: str, path: str, body: Any, *, certificate_pem: str, timeout_s: float) -> Any:
        self.asked.append(address)
        if self.refusals:
            raise self.refusals.pop(0)
        answer = await self.server.cases.replace.replace(
            msgspec.convert(body, ReplaceRequest), applicant(self.server, self.name)
        )
        return msgspec.to_builtins(answer)


def damage(directory: Path) -> None:
    (directory / "database" / fmt.AMNESIA_NAME).write_text("the log ends too early\n")


async def test_a_member_gets_a_new_id_and_keeps_its_name(three, monkeypatch):
    first, _, third = three
    rejoin.remember(third.directory, third.identity, third.database)
    await third.stop()
    damage(third.directory)
    said: list[str] = []
    posts = Posts(first, "node3", refusals=[PeerUnreachableError("no route"), UnavailableError("no leader")])
    await rejoin.rejoin(
        third.directory,
        rejoin.needed(third.directory),
        transport=third.transport,
        versions=VERSIONS,
        peers=posts,  # type: ignore[arg-type]
        tell=said.append,
        retry_s=0.01,
    )
    assert posts.asked == ["10.0.0.1:8443", "10.0.0.2:8443", "10.0.0.1:8443"]
    assert "no route" in said[0]
    assert rejoin.needed(third.directory) == ""
    assert join_journal.recover(third.directory) == "rejoining"  # killed here: it goes on
    assert overview(third.directory / "database").member_id == 4
    damaged = next(third.directory.glob("database.damaged-*"))
    assert overview(damaged).member_id == 3
    assert (damaged / fmt.AMNESIA_NAME).exists()

    await third.start()
    assert not third.cases.leave.removed()  # although the log of before knows nothing of this id
    await rejoin.until_known(third.directory, 4, third.database, said.append)
    assert join_journal.JoinJournal(third.directory).phase() == "none"
    assert damaged.exists()
    await until(lambda: third.identity.name == "node3")
    status = first.consensus.status()
    assert sorted(status.configuration.members()) == [1, 2, 4]
    assert status.configuration.removed == (3,)


async def test_a_server_that_was_removed_is_told_so(three):
    _, _, third = three
    rejoin.remember(third.directory, third.identity, third.database)
    await third.stop()
    damage(third.directory)
    said: list[str] = []
    posts = Posts(
        third, "node3", refusals=[ForbiddenError(), PeerUnreachableError("no route"), *[ForbiddenError()] * 9]
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await rejoin.rejoin(
                third.directory,
                "test",
                transport=third.transport,
                versions=VERSIONS,
                peers=posts,  # type: ignore[arg-type]
                tell=said.append,
                retry_s=0.1,
            )
    assert "node1: not authorized; node2: no route). If this server was removed from the cluster: move" in said[0]


async def test_only_that_member_itself_is_believed(three):
    first, second, third = three
    service = first.cases.replace
    for name, trusted in (("node3", None), ("node3", "node2"), ("node9", "node9")):
        with pytest.raises(ForbiddenError):
            await service.replace(request(third, name), applicant(third, trusted))
    with pytest.raises(ForbiddenError, match="another transport key"):
        await service.replace(request(third, "node3", transport=second.transport), applicant(third, "node3"))
    with pytest.raises(BadRequestError, match="Invalid transport address"):
        await service.replace(request(third, "node3", transport="x"), applicant(third, "node3"))
    assert sorted(first.consensus.status().configuration.members()) == [1, 2, 3]


async def test_a_member_that_is_connected_is_not_replaced(three, monkeypatch):
    first, _, third = three
    monkeypatch.setattr("incus_actors.services.replace.REPLACE_TIMEOUT_S", 5.2)
    with pytest.raises(UnavailableError, match="still connected"):
        await first.cases.replace.replace(request(third, "node3"), applicant(third, "node3"))


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """A member of a cluster whose database is gone."""
    certificates.load_or_create(tmp_path, certificates.CLUSTER, "host")
    return tmp_path


async def ask(directory: Path, transport: str = "x") -> None:
    await rejoin.rejoin(
        directory,
        "test",
        transport=transport,
        versions=VERSIONS,
        peers=None,
        tell=print,  # type: ignore[arg-type]
    )


def test_when_it_is_needed(lost):
    assert "is gone" in rejoin.needed(lost)
    bootstrap.create_standalone(lost / "database", address="")
    assert rejoin.needed(lost) == ""
    damage(lost)
    assert rejoin.needed(lost) == "the log ends too early"


def test_a_fresh_server_needs_nothing(tmp_path):
    assert rejoin.needed(tmp_path) == ""


async def test_a_standalone_server_has_nobody_to_ask(tmp_path):
    with pytest.raises(rejoin.RejoinError, match="--accept-data-loss"):
        await ask(tmp_path)


async def test_without_a_name_nobody_can_be_asked(lost):
    with pytest.raises(rejoin.RejoinError, match=r"members\.json is missing"):
        await ask(lost)


async def test_the_only_member_has_nobody_to_ask(lost):
    (lost / "members.json").write_text('{"name": "n1", "members": {"n1": "10.0.0.1:8443"}}')
    with pytest.raises(rejoin.RejoinError, match="only member"):
        await ask(lost)


async def test_a_disk_that_loses_everything_again_and_again_is_left_alone(lost):
    for number in range(3):
        (lost / f"database.damaged-{int(time.time() * 1000) - number * 1000}").mkdir()
    with pytest.raises(ApiError, match="Check its disk"):
        await ask(lost)


async def test_the_damaged_database_tells_whom_to_ask_if_nothing_else_does(three):
    third = three[2]
    await third.stop()
    known = rejoin.acquaintances(third.directory)
    assert known.name == "node3"
    assert known.members == {f"node{n}": f"10.0.0.{n}:8443" for n in (1, 2, 3)}
    assert (third.directory / "database" / "log.db").exists()
