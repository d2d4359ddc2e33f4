"""Instances' keys with the errors of the API."""

from __future__ import annotations

import pytest

from incus_actors.domain import instance_config
from incus_actors.errors import BadRequestError


def test_wrong_config_is_a_bad_request():
    with pytest.raises(BadRequestError, match=r"^Unknown configuration key: foo$"):
        instance_config.check_config({"foo": "1"})
    instance_config.check_config({"limits.cpu": "2", "limits.memory": ""})


def test_nobody_sets_our_own_keys():
    with pytest.raises(BadRequestError, match="Unknown configuration key"):
        instance_config.check_config({instance_config.PHASE_KEY: "creating"})


def test_sizes():
    assert instance_config.parse_size("1KiB") == 1024
    with pytest.raises(BadRequestError, match=r"^Invalid value: 1 KiB$"):
        instance_config.parse_size("1 KiB")


def test_words_for_yes_and_no():
    assert instance_config.is_true("Yes")
    assert instance_config.is_false("OFF")
    assert not instance_config.is_true(None)
    assert not instance_config.is_false("")
