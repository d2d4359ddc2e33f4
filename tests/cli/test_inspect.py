"""What `incus-actors raft status` prints."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table

from incus_actors.cli.inspect import print_whole


def test_a_wide_table_is_not_squeezed_on_a_narrow_terminal() -> None:
    table = Table("ID", "ADDRESS", "STATE", "LAST CONTACT", box=box.ASCII)
    table.add_row("1 *", "10.111.222.133:12345", "replicate", "1234 ms")
    out = io.StringIO()
    print_whole(Console(file=out, width=30), table)
    head, row = (line for line in out.getvalue().splitlines() if line.startswith("|") and not line.startswith("|-"))
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["ID", "ADDRESS", "STATE", "LAST CONTACT"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["1 *", "10.111.222.133:12345", "replicate", "1234 ms"]
