"""How the demo speaks: ticks and tables on a terminal, plain lines elsewhere, facts as JSON on request.

Called by demo.py only; owns no facts of its own.
"""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console

from incus_actors.cli.cluster import member_columns
from incus_actors.cli.output import Columns, listing
from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.failover import since

PLAIN_WIDTH = 130

CAUSES = {
    "forgot": "lost its connections to it",
    "lost": "lost its connections to it",
    "heir": "is the heir and lost its connections to it",
    "timeout": "heard nothing in time",
    "won": "has a majority",
}

LOSSES = frozenset({"forgot", "lost", "heir", "timeout"})


def _addresses(instance: dict[str, Any], family: str) -> str:
    """Return the global addresses of an instance with their interfaces, a line each."""
    networks: dict[str, Any] = (instance["state"] or {}).get("network") or {}
    return "\n".join(
        f"{address['address']} ({name})"
        for name, network in sorted(networks.items())
        for address in network["addresses"]
        if address["family"] == family and address["scope"] == "global"
    )


INSTANCES: Columns = {
    "n": ("NAME", lambda i: i["name"]),
    "s": ("STATE", lambda i: i["status"].upper()),
    "4": ("IPV4", lambda i: _addresses(i, "inet")),
    "6": ("IPV6", lambda i: _addresses(i, "inet6")),
    "t": ("TYPE", lambda i: i["type"].upper()),
    "S": ("SNAPSHOTS", lambda i: str(len(i["snapshots"] or ()))),
    "L": ("LOCATION", lambda i: i["location"]),
}


class Story:
    """Tells each step when it is done."""

    def __init__(self, *, as_json: bool, pause_s: float) -> None:
        self.console = Console(highlight=False, quiet=as_json)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.as_json = as_json
        self.pause_s = pause_s if self.console.is_terminal else 0.0
        self.facts: dict[str, Any] = {"steps": []}

    def title(self, version: str, cluster: LabCluster, driver: str) -> None:
        """The first line."""
        self.facts.update(version=version, driver=driver)
        self.console.print(
            f"[bold]incus_actors {version} demo[/]   {len(cluster.members)} members on {cluster.members[0].address}   "
            f"data in {cluster.directory} (removed on exit; --keep to keep)"
        )

    def step(self, text: str, seconds: float | None = None) -> None:
        """One thing done, and how long it took."""
        self.facts["steps"].append({"text": text, "seconds": seconds})
        took = "" if seconds is None else f"{seconds:.2f} s"
        self.console.print(f" [green]✔[/] {text:<96} {took:>8}", markup=True, soft_wrap=True)

    def chapter(self, text: str) -> None:
        """A new part of the story."""
        self.console.print(f"\n [bold]{text}[/]")
        time.sleep(self.pause_s)

    def members(self, rows: list[dict[str, Any]]) -> None:
        """The member table, as `incus cluster list` shows it."""
        self.facts["members"] = rows
        self._table(member_columns("table"), rows)

    def instances(self, rows: list[dict[str, Any]]) -> None:
        """The instance table, as `incus list` shows it."""
        self.facts["instances"] = [{k: r[k] for k in ("name", "status", "location")} for r in rows]
        self._table(INSTANCES, rows)

    def _table(self, columns: Columns, rows: list[dict[str, Any]]) -> None:
        self.console.print(listing("table", columns, "".join(columns), rows), soft_wrap=True, markup=False)

    def failover(
        self,
        victim: str,
        journal: list[dict[str, Any]],
        moment_ns: int,
        seen: tuple[float | None, float | None],
        write_ms: float,
    ) -> None:
        """What each survivor did, in order, with its time after the kill."""
        self._moment(0.0, f"{victim} gone")
        told = False
        for row in journal:
            after = since(row, moment_ns)
            if after is None:
                continue
            if after > write_ms and not told:
                self._moment(write_ms, "first write accepted   [dim]← clients may go on[/]")
                told = True
            self._moment(after, self._words(row, victim))
        if not told:
            self._moment(write_ms, "first write accepted   [dim]← clients may go on[/]")
        self.facts["failover_ms"] = {"noticed": seen[0], "elected": seen[1], "write": write_ms}
        time.sleep(self.pause_s)

    def _moment(self, after_ms: float, text: str) -> None:
        self.console.print(f"   +{after_ms:8.1f} ms  {text}")

    @staticmethod
    def _words(row: dict[str, Any], victim: str) -> str:
        who, role, cause = row["member"], row["role"], CAUSES.get(row["cause"], row["cause"])
        if role == "leader":
            return f"[bold]{who} is leader[/] (term {row['term']})"
        if role == "pre-candidate":
            return f"{who} asks for pre-votes ({cause})"
        if role == "candidate":
            return f"{who} asks for votes in term {row['term']}"
        if row["leader"]:
            return f"{who} follows m{row['leader']} (term {row['term']})"
        return f"{who} forgets {victim} ({cause})" if row["cause"] in LOSSES else f"{who} is in term {row['term']} now"

    def verdict(self, acknowledged: int, attempts: int, write_ms: float) -> None:
        """The last word."""
        self.facts["verdict"] = {"acknowledged": acknowledged, "attempts": attempts, "lost": 0}
        self.console.print(
            f" [bold green]Verdict:[/] no acknowledged write lost: {acknowledged} of {attempts} attempts were acknowledged, "
            f"all are there. Writes went on {write_ms:.0f} ms after the kill."
        )

    def failed(self, text: str) -> None:
        """What went wrong."""
        self.facts["failure"] = text
        self.console.print(f" [bold red]✘[/] {text}", soft_wrap=True)

    def log(self, name: str, text: str) -> None:
        """The end of a member's log, after a failure."""
        if text:
            self.console.print(f"--- log of {name}\n{text}", markup=False)

    def how_to_go_on(self, cluster: LabCluster) -> None:
        """--keep: the exact next commands."""
        self.console.print("\n It runs on. Try:")
        for member, command in zip(cluster.members, ("cluster list", "list", "exec web-1 -- ps"), strict=False):
            self.console.print(f"   INCUS_DIR={member.directory} incus {command}", soft_wrap=True)
        self.console.print(f"   INCUS_DIR={cluster.members[0].directory} .venv/bin/incus-actors actors", soft_wrap=True)
        self.console.print(
            f" To end it:\n   .venv/bin/incus-actors demo --end --data {cluster.directory}", soft_wrap=True
        )

    def cleaned(self, seconds: float, forced: list[str]) -> None:
        """Everything is gone, or what had to be forced."""
        self.facts["forced_clean_up"] = forced
        extra = f"; by force: {', '.join(forced)}" if forced else ""
        self.step(f"cleaned up{extra}", seconds)

    def end(self, code: int) -> None:
        """Print the facts when asked for."""
        if self.as_json:
            print(json.dumps({**self.facts, "exit_code": code}, indent=1))
