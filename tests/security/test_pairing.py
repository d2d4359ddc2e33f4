"""A code proves to each side that the same person saw both, and that nobody is in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_actors.security import pairing
from incus_actors.security.pairing import Transcript

SEEN = Transcript("a" * 64, "b" * 64, "c" * 64, "session")


def test_codes_are_short_readable_and_of_this_session_alone() -> None:
    code = pairing.make_code(b"secret", SEEN)
    assert pairing.normal_code(code) == code
    assert len(code) == 9
    assert pairing.make_code(b"secret", SEEN) == code
    others = {
        pairing.make_code(b"other", SEEN),
        *(
            pairing.make_code(b"secret", replace(SEEN, **{name: "d" * 64}))
            for name in ("asker", "waiting", "nonce", "session")
        ),
    }
    assert len(others | {code}) == 6


@pytest.mark.parametrize(("typed", "meant"), [("7k3m-q9xd", "7K3M-Q9XD"), (" 7K3MQ9XD ", "7K3M-Q9XD"), ("oI3l q9xd", "0131-Q9XD"), ("7K3M-Q9X", None), ("7K3M-Q9XDD", None), ("7K3M-Q9X!", None), ("", None), ("ÄK3M-Q9XD", None)])  # fmt: skip
def test_typed_codes_are_understood_kindly(typed: str, meant: str | None) -> None:
    assert pairing.normal_code(typed) == meant


def test_both_prove_it_and_a_man_in_the_middle_can_not() -> None:
    code = pairing.make_code(b"secret", SEEN)
    key = pairing.derive(code, SEEN)
    assert pairing.same(pairing.asker_proof(key), pairing.asker_proof(pairing.derive(code, SEEN)))
    assert pairing.asker_proof(key) != pairing.waiting_proof(key)
    for changed in (replace(SEEN, waiting="e" * 64), replace(SEEN, asker="e" * 64), replace(SEEN, nonce="e" * 64)):
        assert not pairing.same(pairing.asker_proof(key), pairing.asker_proof(pairing.derive(code, changed)))
    assert not pairing.same("", pairing.asker_proof(key))
