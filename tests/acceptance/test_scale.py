"""Many members: twelve joined one after the other, and five more at the same moment (WANTS 20, 21)."""

from __future__ import annotations

import json

from incus_actors.lab.forming import join_at_once
from incus_actors.lab.report import quantile


def test_twelve_one_after_the_other_and_five_at_the_same_moment(servers, incus_on) -> None:
    lab = servers(17)
    lab.bootstrap()
    seconds = [lab.join(member) for member in lab.members[1:12]]
    together = join_at_once(lab, lab.members[12:])
    print(f"join p50 {quantile(seconds, 0.5):.2f} s; five at once took {max(together):.2f} s")
    lab.wait_until_healthy()
    for member in (lab.members[0], lab.members[-1]):
        rows = json.loads(incus_on(member)("cluster", "list", "-f", "json"))
        assert {row["server_name"] for row in rows} == {m.name for m in lab.members}
        assert all(row["status"] == "Online" and row["message"] == "Fully operational" for row in rows)
        assert sum("database" in row["roles"] for row in rows) == 3
        assert sum("database-standby" in row["roles"] for row in rows) == 2
    assert incus_on(lab.members[0])("cluster", "list-tokens", "-f", "csv") == ""
    incus_on(lab.members[16])("config", "set", "user.seen", "everywhere")
    assert all(incus_on(m)("config", "get", "user.seen").strip() == "everywhere" for m in lab.members)
