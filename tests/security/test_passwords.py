"""Passwords are stored so that they can be checked, not read."""

from __future__ import annotations

import pytest

from incus_actors.security.passwords import MAX_BYTES, hash_password, is_password


def test_only_the_password_fits_and_hashes_differ() -> None:
    stored = hash_password("sécret")
    assert "cret" not in stored
    assert stored != hash_password("sécret")
    assert is_password("sécret", stored)
    assert not is_password("secret", stored)
    assert not is_password("", stored)


@pytest.mark.parametrize("password", ["", "x" * (MAX_BYTES + 1)])
def test_no_or_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        hash_password(password)
    assert not is_password(password, "scrypt$15$8$3$AA==$AA==")


@pytest.mark.parametrize("stored", ["", "plain", "scrypt$x$8$3$AA==$AA==", "scrypt$15$8$3$A$A", "scrypt$40$8$1$AA==$AA==", "md5$1$1$1$AA==$AA==", "scrypt$15$8$3$AA==$"])  # fmt: skip
def test_nothing_fits_what_is_no_hash(stored: str) -> None:
    assert not is_password("x", stored)
