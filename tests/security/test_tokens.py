"""Tokens are the same bytes as those captured from a real Incus."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from incus_actors.security import tokens

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "contract" / "captures"

CAPTURED = (
    "eyJzZXJ2ZXJfbmFtZSI6Im5vZGUyIiwiZmluZ2VycHJpbnQiOiI3MWM1NzMxYWVhNDUxNTcyYTIxNzQyNWU1MWZlYjJiNjMxNTgzMjk4MGUyMGEz"
    "OWU5OTE3MjQwODUzNGUzZmIyIiwiYWRkcmVzc2VzIjpbIjEwLjY3LjAuMTo4NDQzIl0sInNlY3JldCI6ImJmOTZkNTM3MzlkODczZGJiZWQxNTA2"
    "NDE4YTE5NDY3YzJlOWNlNDYwOTA5ZDc0MTA3OGE3OThjMTk4MzY2NDkiLCJleHBpcmVzX2F0IjoiMjAyNi0xMS0yMVQwNDowODowNS4zNTM0Nzcy"
    "OTVaIn0="
)


def test_captured_join_token_survives_decode_and_encode():
    token = tokens.decode_join(CAPTURED)
    assert token.server_name == "node2"
    assert token.addresses == ("10.67.0.1:8443",)
    assert token.expires_at == "2026-11-21T04:08:05.353477295Z"
    assert token.encode() == CAPTURED


@pytest.mark.may_skip
@pytest.mark.skipif(not CAPTURES.is_dir(), reason="captures are not part of a clone")
def test_every_captured_token_survives_decode_and_encode():
    seen = 0
    for path in sorted(CAPTURES.glob("*.json")):
        if not path.name.startswith(("cluster-add", "config-trust-add")):
            continue
        capture = json.loads(path.read_text())
        line = capture["stdout"].strip().split("\n")[-1]
        if capture["rc"] == 0 and line.startswith("ey"):
            assert tokens.decode(line).encode() == line, path.name
            seen += 1
    assert seen >= 8


def test_go_escapes_are_written():
    token = tokens.JoinToken("a<b>&c", "f", ("h:1",), "s", tokens.NEVER)
    assert b'"a\\u003cb\\u003e\\u0026c"' in base64.b64decode(token.encode())
    assert tokens.decode_join(token.encode()) == token


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "not base64!",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b"{}").decode(),
        base64.b64encode(b'{"server_name":"x"}').decode(),
        base64.b64encode(b'{"server_name":"x","fingerprint":"f","addresses":[],"secret":"s"}').decode(),
        base64.b64encode(b'{"server_name":"x","fingerprint":"f","addresses":[1],"secret":"s"}').decode(),
        base64.b64encode(b'{"server_name":"x","fingerprint":"f","addresses":["a"],"secret":""}').decode(),
        base64.b64encode(b'{"server_name":{"a":1},"fingerprint":"f","addresses":["a"],"secret":"s"}').decode(),
        "A" * 100_000,
    ],
)
def test_garbled_tokens_are_refused(text):
    with pytest.raises(tokens.TokenError):
        tokens.decode(text)


def test_a_trust_token_is_not_a_join_token():
    trust = tokens.TrustToken("alice", "f", ("h:1",), "s").encode()
    assert isinstance(tokens.decode(trust), tokens.TrustToken)
    with pytest.raises(tokens.TokenError):
        tokens.decode_join(trust)


def test_secrets():
    one = tokens.make_secret()
    assert len(one) == 64
    assert tokens.equal(one, one)
    assert not tokens.equal(one, tokens.make_secret())
    assert one not in repr(tokens.JoinToken("n", "f", ("a",), one, tokens.NEVER))
