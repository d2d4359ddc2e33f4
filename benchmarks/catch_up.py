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

KEYS = 10_000
VALUE_BYTES = 2_000  #: 10,000 of them are 20 MB
ROUNDS = 5  #: 100 MB of log, more than a leader keeps for a member that is away


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
        for what, rounds in (("entries", 1), ("snapshot", ROUNDS)):
            before = away.ask("status")["last"]
            away.ask("stop")
            for _ in range(rounds):
                leader.ask("fill", first=0, keys=KEYS, size=VALUE_BYTES)
            log = leader.ask("status")
            if (log["first"] > before + KEYS) != (what == "snapshot"):
                raise SystemExit(f"the leader's log begins at {log['first']}: that is not what is to be measured")
            seconds = caught_up(away, log["applied"])
            found.append(
                {
                    "what": what,
                    "writes": rounds * KEYS,
                    "leader_log_begins": log["first"],
                    "state_mib": round(leader.ask("status")["state_bytes"] / 2**20, 1),
                    "seconds": round(seconds, 3),
                    "writes_per_second": round(rounds * KEYS / seconds),
                }
            )
            text = "{what:8} {writes:6} writes missed, state of {state_mib} MiB: {seconds} s ({writes_per_second}/s)"
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
