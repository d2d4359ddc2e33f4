"""Sessions of a waiting server: limits, expiry, attempts, single use."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from incus_actors.errors import BadRequestError, ClientError, ForbiddenError
from incus_actors.security import pairing
from incus_actors.services.discovery import ATTEMPTS, CODE_S, PAIRED_S, Session, Waiting

MINE, THEIRS = "b" * 64, "a" * 64


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waiting(clock: Clock) -> Waiting:
    return Waiting("vm", MINE, clock_s=clock)


def ask(waiting: Waiting, host: str = "10.0.0.1", fingerprint: str = THEIRS) -> Session:
    return waiting.ask(asker="one", address=f"{host}:5", fingerprint=fingerprint, nonce=secrets.token_hex(32))


def proof(session: Session, code: str | None = None) -> str:
    return pairing.asker_proof(pairing.derive(code or session.code, session.transcript))


async def test_who_knows_the_code_is_let_in_once(waiting: Waiting) -> None:
    session = ask(waiting)
    with pytest.raises(ForbiddenError):
        waiting.paired(session.id, THEIRS)
    given = proof(session)
    answer = await waiting.confirm(session.id, THEIRS, given)
    assert answer == pairing.waiting_proof(pairing.derive(session.code, session.transcript))
    assert waiting.paired(session.id, THEIRS) is session
    assert waiting.shown()[0]["code"] == ""
    with pytest.raises(ForbiddenError, match="used already"):
        await waiting.confirm(session.id, THEIRS, given)
    with pytest.raises(ForbiddenError):
        waiting.paired(session.id, "c" * 64)


async def test_a_code_of_another_session_is_refused(waiting: Waiting) -> None:
    """Replays: the same asker asks again, and sends what worked before."""
    old = ask(waiting)
    new = ask(waiting)
    with pytest.raises(ForbiddenError, match="no such request"):
        await waiting.confirm(old.id, THEIRS, proof(old))
    with pytest.raises(ForbiddenError, match="Wrong code"):
        await waiting.confirm(new.id, THEIRS, proof(old))
    with pytest.raises(ForbiddenError, match="Wrong code"):
        await waiting.confirm(new.id, THEIRS, proof(new, old.code))


async def test_a_stolen_session_is_of_no_use(waiting: Waiting) -> None:
    session = ask(waiting)
    with pytest.raises(ForbiddenError, match="no such request"):
        await waiting.confirm(session.id, "c" * 64, proof(session))


async def test_three_wrong_codes_end_it_even_side_by_side(waiting: Waiting) -> None:
    session = ask(waiting)
    wrong = proof(session, "0000-0000")
    tries = [waiting.confirm(session.id, THEIRS, wrong) for _ in range(10)]
    found = [str(error) for error in await asyncio.gather(*tries, return_exceptions=True)]
    assert sum(text.startswith("Wrong code") for text in found) == ATTEMPTS
    with pytest.raises(ForbiddenError, match="used already"):
        await waiting.confirm(session.id, THEIRS, proof(session))
    assert waiting.shown()[0]["state"] == "refused"


async def test_codes_and_pairings_expire(waiting: Waiting, clock: Clock) -> None:
    session = ask(waiting)
    clock.now = CODE_S + 1
    with pytest.raises(ForbiddenError, match="expired"):
        await waiting.confirm(session.id, THEIRS, proof(session))
    session = ask(waiting)
    await waiting.confirm(session.id, THEIRS, proof(session))
    clock.now += PAIRED_S + 1
    with pytest.raises(ForbiddenError):
        waiting.paired(session.id, THEIRS)
    assert not waiting.shown()


def test_a_crowd_is_refused_and_names_are_made_printable(waiting: Waiting) -> None:
    for number in range(8):
        ask(waiting, f"10.0.0.{number}")
    with pytest.raises(ClientError, match="Too many") as caught:
        ask(waiting, "10.0.0.99")
    assert caught.value.status == 429
    ask(waiting, "10.0.0.3")
    assert len(waiting.shown()) == 8, "one host has one session"
    session = waiting.ask(asker="a\n\x1b[2Jb" + "x" * 200, address="10.0.0.3:1", fingerprint=THEIRS, nonce="0" * 64)
    assert session.asker.startswith("a??[2Jbxx")
    assert len(session.asker) == 63


@pytest.mark.parametrize("nonce", ["", "zz" * 32, "0" * 63, "0" * 65, "0" * 1000])
def test_nonsense_is_refused(waiting: Waiting, nonce: str) -> None:
    with pytest.raises(BadRequestError):
        waiting.ask(asker="a", address="10.0.0.1:1", fingerprint=THEIRS, nonce=nonce)
