"""CPU architectures: Incus' numbers in the database, its names in the API.

Owns the table; used by the schema's first rows, instances and images. Must keep the numbers, which are stored.
"""

from __future__ import annotations

import platform
from typing import Final

#: number -> name; a real Incus stores x86_64 as 2 (seen in its `nodes.arch`).
NAMES: Final[dict[int, str]] = {
    1: "i686",
    2: "x86_64",
    3: "armv7l",
    4: "aarch64",
    5: "ppc",
    6: "ppc64",
    7: "ppc64le",
    8: "s390x",
    9: "mips",
    10: "mips64",
    11: "riscv32",
    12: "riscv64",
    13: "armv6l",
    14: "armv8l",
    15: "loongarch64",
}

_NUMBERS: Final = {name: number for number, name in NAMES.items()}
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64", "i386": "i686", "i586": "i686", "armhf": "armv7l"}

#: What a kernel of the first can run besides its own.
_PERSONALITIES: Final[dict[str, tuple[str, ...]]] = {
    "x86_64": ("i686",),
    "aarch64": ("armv8l", "armv7l"),
    "ppc64": ("ppc",),
    "mips64": ("mips",),
}


def number_of(name: str) -> int:
    """Return the stored number of an architecture name or alias. Raises ValueError if there is no such thing."""
    canonical = _ALIASES.get(name, name)
    if canonical not in _NUMBERS:
        raise ValueError(f'Architecture isn\'t supported: "{name}"')
    return _NUMBERS[canonical]


def name_of(number: int) -> str:
    """Return the API name of a stored number, "unknown" if it came from newer software."""
    return NAMES.get(number, "unknown")


def native() -> str:
    """Return this machine's own architecture."""
    machine = platform.machine()
    return _ALIASES.get(machine, machine)


def supported() -> list[str]:
    """Return what this machine's kernel can run, its own first (`environment.architectures`)."""
    return runnable(native())


def runnable(architecture: str) -> list[str]:
    """Return what a machine of this architecture can run, its own first."""
    return [architecture, *_PERSONALITIES.get(architecture, ())]
