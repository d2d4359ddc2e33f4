"""Configuration keys of instances, with the texts of a real Incus 6.0.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_actors.domain.instance_config import check_config, is_false, is_true, parse_size
from incus_actors.errors import BadRequestError


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("foo.bar", "1", "Unknown configuration key: foo.bar"),
        ("", "x", "Unknown configuration key: "),
        ("volatile.foo", "x", "Unknown configuration key: volatile.foo"),
        ("agent.nic_config", "true", "Unknown configuration key: agent.nic_config"),
        ("limits.cpu", "abc", "Invalid CPU limit syntax"),
        ("limits.memory", "abc", "Invalid value: abc"),
        ("limits.memory", "-1", "Invalid value: -1"),
        ("boot.autostart", "maybe", 'Invalid value for a boolean "maybe"'),
        ("limits.processes", "x", 'Invalid value for an integer "x"'),
        ("limits.cpu.priority", "50", 'Invalid value for a limit "50". Must be between 0 and 10'),
        ("limits.cpu.allowance", "x", "Invalid allowance: x"),
        ("limits.memory.swap", "foo", '"foo" isn\'t a valid value'),
        ("limits.memory.enforce", "x", 'Invalid value "x" (not one of [soft hard])'),
        (
            "cluster.evacuate",
            "x",
            'Invalid value "x" (not one of [auto migrate live-migrate stop stateful-stop force-stop])',
        ),
        ("boot.host_shutdown_action", "x", 'Invalid value "x" (not one of [stop force-stop stateful-stop])'),
        (
            "security.idmap.base",
            "x",
            'Invalid value for uint32 "x": strconv.ParseUint: parsing "x": invalid syntax',
        ),
        ("snapshots.expiry", "x", "Invalid expiry expression"),
        ("raw.idmap", "x", "Invalid ID map line: x"),
        ("raw.lxc", "foo", "Invalid raw.lxc line: foo"),
        ("volatile.uuid", "x", "Invalid UUID"),
    ],
)
def test_refused(key, value, text):
    with pytest.raises(BadRequestError) as refused:
        check_config({key: value})
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user.", "x"),
        ("image.foo", "x"),
        ("environment.FOO", "1"),
        ("linux.sysctl.net.x", "1"),
        ("limits.cpu", "0-1000"),
        ("limits.cpu", "0,2-3"),
        ("limits.cpu", "4"),
        ("limits.memory", "101%"),
        ("limits.memory", "512MiB"),
        ("limits.memory.swap", "1GiB"),
        ("limits.memory.swap", "false"),
        ("limits.kernel.nofile", "1024"),
        ("boot.autostart.delay", "-5"),
        ("volatile.eth0.hwaddr", "x"),
        ("volatile.eth0.last_state.created", "x"),
        ("snapshots.expiry", "1M 2H 3d"),
        ("raw.lxc", "lxc.a = b\n# comment\n"),
        ("raw.idmap", "both 1000 1000"),
        ("boot.autostart", ""),
    ],
)
def test_accepted(key, value):
    check_config({key: value})


def test_our_own_keys_can_not_be_given():
    with pytest.raises(BadRequestError, match="Unknown configuration key"):
        check_config({"volatile.actors.phase": "creating"})


def test_profiles_have_no_volatile_or_image_keys():
    for key in ("volatile.uuid", "image.os"):
        with pytest.raises(BadRequestError, match="can only be set on instances"):
            check_config({key: "x"}, profile=True)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_sizes(number):
    assert parse_size(str(number)) == parse_size(f"{number}B") == number
    assert parse_size(f"{number}KiB") == number * 1024
    assert parse_size(f"{number}kB") == number * 1000


@given(st.text())
def test_no_text_breaks_a_check(value):
    for key in (
        "limits.cpu",
        "limits.memory",
        "limits.cpu.allowance",
        "raw.idmap",
        "volatile.uuid",
        "snapshots.expiry",
    ):
        try:
            check_config({key: value})
        except BadRequestError:
            continue


def test_truth_as_incus_reads_it():
    assert [is_true(v) for v in ("true", "TRUE", "1", "yes", "on", "", None, "no", "2")] == [True] * 5 + [False] * 4
    assert [is_false(v) for v in ("false", "0", "No", "off", "", None, "true")] == [True] * 4 + [False] * 3
