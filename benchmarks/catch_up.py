"""How fast a member that was away catches up: by entries, and by a snapshot of 20 MB.

Run `python benchmarks/catch_up.py [--json FILE]`. Three member processes as in consensus.py; the third is stopped, the
others go on writing, and it is started again. Its applied index is asked for every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from consensus import Process, make_cluster, processes

ENTRIES = 2_000  #: fewer than a leader keeps for members that are away
KEYS = 10_000
VALUE_BYTES = 2_000  #: 10,000 of them are 20 MB


def caught_up(process: Process, index: int) -> float:
    """Start a stopped member; return the seconds from then until it has applied `index`."""
    begin = time.perf_counter()
    process.ask("start")
    while process.ask("status")["applied"] < index:
        time.sleep(0.002)
    return time.perf_counter() - begin


def rows() -> list[dict[str, Any]]:
    """Measure both ways, print and return the rows."""
    found: list[dict[str, Any]] = []
    with processes() as members:
        make_cluster(members)
        leader, away = members[0], members[2]
        for what, entries, size in (("entries", ENTRIES, 200), ("snapshot", KEYS, VALUE_BYTES)):
            away.ask("stop")
            leader.ask("fill", first=0, keys=entries, size=size)
            log = leader.ask("status")
            seconds = caught_up(away, log["applied"])
            found.append(
                {
                    "what": what,
                    "writes": entries,
                    "leader_log_begins": log["first"],
                    "state_mib": round(leader.ask("status")["state_bytes"] / 2**20, 1),
                    "seconds": round(seconds, 3),
                    "entries_per_second": round(entries / seconds),
                }
            )
            text = "{what:8} {writes:6} writes missed, state of {state_mib} MiB: {seconds} s ({entries_per_second}/s)"
            print(text.format(**found[-1]), flush=True)
    return found


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = rows()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
