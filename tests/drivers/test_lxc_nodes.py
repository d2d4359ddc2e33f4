"""Which device node of the host an instance gets, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import pytest

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.lxc_nodes import number_of

NULL = {"type": "unix-char", "path": "/dev/null"}
NOWHERE = {"type": "unix-char", "path": "/dev/nowhere"}


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (NULL, (1, 3)),
        ({**NOWHERE, "major": "5", "minor": "0"}, (5, 0)),
        ({**NOWHERE, "source": "/dev/null"}, (1, 3)),
        ({**NOWHERE, "required": "false"}, None),
    ],
)
def test_numbers_are_given_or_those_of_the_host(device, number):
    assert number_of(device) == number


@pytest.mark.parametrize("half", ["major", "minor"])
def test_half_a_number_is_none(half):
    with pytest.raises(DriverError, match=r"^Both major and minor must be supplied for device: /dev/null$"):
        number_of({**NULL, half: "5"})
    with pytest.raises(DriverError, match=r"^The required device path doesn't exist and the major and minor settings"):
        number_of({**NOWHERE, half: "5"})


def test_the_node_of_the_host_is_of_the_same_kind():
    with pytest.raises(DriverError, match=r"^Path specified is not a unix-block device$"):
        number_of({**NULL, "type": "unix-block"})
