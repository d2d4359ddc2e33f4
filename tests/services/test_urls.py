"""URLs as a real Incus writes them."""

from __future__ import annotations

import pytest

from incus_actors.services.urls import url_of


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "/1.0/storage-pools/p/volumes/custom/v%201"),
        ({"project": "x"}, "/1.0/storage-pools/p/volumes/custom/v%201?project=x"),
        ({"target": "m1"}, "/1.0/storage-pools/p/volumes/custom/v%201?target=m1"),
        ({"project": "x&y", "target": "m1"}, "/1.0/storage-pools/p/volumes/custom/v%201?project=x%26y&target=m1"),
    ],
)
def test_url_of(given: dict[str, str], url: str) -> None:
    assert url_of("storage-pools", "p", "volumes", "custom", "v 1", **given) == url
