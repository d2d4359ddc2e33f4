#!/usr/bin/env python3
"""Write incus_actors/state/migrations/statements.json: what the migrations do, as replicated statements.

usage: tools/capture_migrations.py [--rewrite]

Run it after a migration was added. What is there already must stay as it is: logs of clusters hold it. `--rewrite`
is for a migration that no release has had yet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from incus_actors.state.migrations import capture


def main() -> None:
    """Capture, refuse to change history, write."""
    path = Path(capture.__file__).with_name("statements.json")
    found = capture.capture()
    before = json.loads(path.read_text()) if path.exists() else []
    if found[: len(before)] != before and "--rewrite" not in sys.argv:
        raise SystemExit("a migration that is written down already came out differently; add a new one instead")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
