"""Stored numbers and API names of architectures."""

from __future__ import annotations

import pytest

from incus_actors.model import architectures


def test_numbers_are_those_of_incus():
    assert architectures.number_of("x86_64") == architectures.number_of("amd64") == 2
    assert architectures.name_of(2) == "x86_64"
    assert architectures.name_of(99) == "unknown"


def test_unknown_architecture():
    with pytest.raises(ValueError, match="isn't supported"):
        architectures.number_of("z80")


def test_own_architecture_comes_first():
    assert architectures.supported()[0] == architectures.native()
