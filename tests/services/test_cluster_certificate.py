"""`cluster update-certificate`: every member shows the new one, whenever it hears of it; the key is in no log."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_kit import Server, servers, until

from incus_actors.errors import ApiError, BadRequestError, ConflictError, NotFoundError
from incus_actors.model.cluster import ClusterCertificatePut
from incus_actors.security import certificates
from incus_actors.services.cluster_certificate import FETCH_PATH, KEEP_PATH
from incus_actors.services.peer_client import PeerRefusedError, PeerUnreachableError


def new_pair() -> ClusterCertificatePut:
    certificate, key = certificates.make_certificate("cluster")
    return ClusterCertificatePut(cluster_certificate=certificate, cluster_certificate_key=key)


def shown(server: Server) -> str:
    pair = certificates.load_pair(server.directory, "cluster")
    return "" if pair is None else pair.fingerprint


async def three(made: list[Server]) -> None:
    one, *others = made
    await one.bootstrap()
    for number, other in enumerate(others, start=2):
        await other.join(one, f"node{number}")
    await until(lambda: all(one.cases.members.online(s.consensus.member_id) for s in others))


async def test_all_members_change_over_and_no_database_holds_the_key(tmp_path: Path) -> None:
    async with servers(tmp_path, 3) as made:
        await three(made)
        put = new_pair()
        wanted = certificates.fingerprint_pem(put.cluster_certificate)
        await made[1].cases.certificate.replace(put)
        assert shown(made[1]) == wanted
        await until(lambda: all(shown(s) == wanted for s in made))
        assert all(s.done[-1] == "reload_listeners" for s in made)
        assert not list(tmp_path.rglob("cluster.next-*"))
        secret = put.cluster_certificate_key.splitlines()[3].encode()
        for server in made:
            assert (server.directory / "cluster.key").stat().st_mode & 0o777 == 0o600
            files = [f for f in (server.directory / "database").rglob("*") if f.is_file()]
            assert files
            assert not [f for f in files if secret in f.read_bytes()]


async def test_a_member_that_was_away_gets_it_when_it_is_back(tmp_path: Path) -> None:
    async with servers(tmp_path, 3) as made:
        await three(made)
        old = shown(made[2])
        await made[2].stop()
        put = new_pair()
        await made[0].cases.certificate.replace(put)
        wanted = certificates.fingerprint_pem(put.cluster_certificate)
        assert shown(made[2]) == old
        await made[2].start()
        await until(lambda: shown(made[2]) == wanted)


async def test_one_that_joins_later_gets_the_new_one(tmp_path: Path) -> None:
    async with servers(tmp_path, 2) as (one, two):
        await one.bootstrap()
        put = new_pair()
        await one.cases.certificate.replace(put)
        await two.join(one, "node2")
        assert shown(two) == certificates.fingerprint_pem(put.cluster_certificate) == shown(one)


async def test_a_killed_change_over_ends_at_the_next_start(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as (one,):
        await one.bootstrap()
        put = new_pair()
        cert = one.cases.certificate
        wanted = cert._files.put(put.cluster_certificate, put.cluster_certificate_key)
        cert._look = lambda: None  # type: ignore[method-assign]
        cert._shown_here = lambda _f: _nothing()  # type: ignore[method-assign]
        await cert.replace(put)
        # Killed between the two files: the new key beside the old certificate.
        (one.directory / "cluster.key").write_text(put.cluster_certificate_key)
        await one.stop()
        await one.start()
        assert shown(one) == wanted
        pair = certificates.load_pair(one.directory, "cluster")
        assert pair is not None
        certificates.check_pair(pair.certificate_pem, pair.key_pem)


async def _nothing() -> None:
    pass


async def test_while_it_changes_both_certificates_are_accepted(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as (one,):
        await one.bootstrap()
        files = one.cases.certificate._files
        old = shown(one)
        put = new_pair()
        wanted = files.put(put.cluster_certificate, put.cluster_certificate_key)
        assert files.accepted() == [old, wanted]
        await one.cases.certificate.replace(put)
        assert files.accepted() == [wanted, old]
        files._monotonic_s = lambda: 1e12
        assert files.accepted() == [wanted]


async def test_refusals_change_nothing(tmp_path: Path) -> None:
    async with servers(tmp_path, 2) as (one, two):
        cases = one.cases.certificate
        with pytest.raises(BadRequestError, match="not clustered"):
            await cases.replace(new_pair())
        await one.bootstrap()
        await two.join(one, "node2")
        old = shown(one)
        put, other = new_pair(), new_pair()
        swapped = ClusterCertificatePut(
            cluster_certificate=put.cluster_certificate_key, cluster_certificate_key=put.cluster_certificate
        )
        with pytest.raises(BadRequestError, match="PEM inputs may have been switched") as failure:
            await cases.replace(swapped)
        assert failure.value.status == 500
        mixed = ClusterCertificatePut(
            cluster_certificate=put.cluster_certificate, cluster_certificate_key=other.cluster_certificate_key
        )
        for bad in (mixed, ClusterCertificatePut()):
            with pytest.raises(BadRequestError):
                await cases.replace(bad)
        one.cases.certificate._online = lambda _m: True
        one.peers.fail = lambda path: PeerRefusedError("no", status=501) if path == KEEP_PATH else None
        with pytest.raises(ApiError, match="Failed to update the certificate of member node2: no"):
            await cases.replace(put)
        with pytest.raises(NotFoundError):
            cases.give(old)
        assert shown(one) == shown(two) == old
        assert not list(tmp_path.rglob("cluster.next-*"))


async def test_a_member_that_did_not_get_it_fetches_it(tmp_path: Path) -> None:
    async with servers(tmp_path, 2) as (one, two):
        await one.bootstrap()
        await two.join(one, "node2")
        await until(lambda: one.cases.members.online(2))
        await until(lambda: two.cases.members.online(1))
        one.peers.fail = lambda path: PeerUnreachableError("no route") if path == KEEP_PATH else None
        refused = []
        two.peers.fail = lambda path: refused.append(path) or (PeerUnreachableError("no") if len(refused) < 3 else None)  # type: ignore[func-returns-value]
        put = new_pair()
        await one.cases.certificate.replace(put)
        await until(lambda: shown(two) == certificates.fingerprint_pem(put.cluster_certificate))
        assert refused == [FETCH_PATH] * 3


async def test_of_two_at_once_one_wins_everywhere(tmp_path: Path) -> None:
    import asyncio

    async with servers(tmp_path, 2) as (one, two):
        await one.bootstrap()
        await two.join(one, "node2")
        await until(lambda: one.cases.members.online(2) and two.cases.members.online(1))
        results = await asyncio.gather(
            one.cases.certificate.replace(new_pair()), two.cases.certificate.replace(new_pair()), return_exceptions=True
        )
        assert sum(isinstance(result, ConflictError) for result in results) == 1, results
        await until(lambda: shown(one) == shown(two))
        assert shown(one) == one.database.scalar("SELECT fingerprint FROM cluster_certificate")
