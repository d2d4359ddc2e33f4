"""The answers of btrfs' programs, as they are."""

from __future__ import annotations

from incus_actors.drivers import btrfs_tools as tools
from incus_actors.drivers.btrfs_tools import Group, Signature

GROUPS = """Qgroupid    Referenced    Exclusive Max referenced   Path
--------    ----------    --------- --------------   ----
0/5              16384        16384           none   <toplevel>
0/256            16384        12288      104857600   custom/default_v1
0/259            16384        16384           none   <stale>
1/100            16384        16384           none   <0 member qgroups>
"""
SUBVOLUMES = """ID 256 gen 13 top level 5 path custom/default_v1
ID 262 gen 13 top level 5 path custom-snapshots/default_v1/a b
"""


def test_quota_groups():
    assert tools.parse_groups(GROUPS) == [
        Group("0/5", 16384, 16384, 0),
        Group("0/256", 16384, 12288, 104857600),
        Group("0/259", 16384, 16384, 0),
    ]
    assert tools.stale_groups(GROUPS, SUBVOLUMES) == ["0/259"]
    assert tools.parse_groups("") == []


def test_signatures():
    export = (
        "DEVNAME=/dev/loop1\nLABEL=my\\ pool\nUUID=ba7a\nUUID_SUB=1\nBLOCK_SIZE=4096\nTYPE=btrfs\nUSAGE=filesystem\n"
    )
    assert tools.parse_signature(export) == Signature("btrfs", "my pool", "ba7a")
    assert tools.parse_signature("PTUUID=12\nPTTYPE=gpt\n") == Signature("gpt", "", "")
    assert tools.parse_signature("") == Signature("", "", "")


def test_uuids():
    assert tools.is_uuid("f2cdea44-4a4c-4b0a-a1f5-ebf4cb0bdb2c")
    assert not tools.is_uuid("/dev/sdb")
    assert not tools.is_uuid("f2cdea44-4a4c-4b0a-a1f5-ebf4cb0bdb2c\n")


def test_version_is_a_number():
    assert tools.version() == "" or tools.version()[0].isdigit()
