"""`incus-actorsd cluster …` on a stopped standalone database, and the `incusd` that the stock client finds."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from incus_actors.cli.daemon import main
from incus_actors.cli.incusd import real_incusd
from incus_actors.cli.tables import render_table
from incus_actors.consensus.bootstrap import create_joiner, create_standalone
from incus_actors.consensus.recovery import overview
from incus_actors.consensus.types import Configuration, HardState, Member, Role
from incus_actors.consensus.witness import Witness

KEY = "cd" * 32


@pytest.fixture
def standalone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    create_standalone(tmp_path / "database", address=f"10.1.1.1:20001:20002:{KEY}")
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def directory(standalone: Path) -> Path:
    (standalone / "cluster.crt").touch()
    return standalone


def run(*arguments: str, text: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments), input=text)
    return result.exit_code, result.output


def test_only_voters_serve_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Incus; `show` has all of them."""
    members = [
        Member(number, f"10.1.1.{number}:20001:20002:{KEY}", role)
        for number, role in enumerate((Role.VOTER, Role.STANDBY, Role.SPARE), 1)
    ]
    known = Configuration(tuple(members))
    create_joiner(tmp_path / "database", cluster_id=b"c" * 16, epoch=1, member_id=3, configuration=known)
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    assert run("cluster", "list-database", "-f", "csv") == (0, "10.1.1.1:20001\n")
    assert run("cluster", "show")[1].count("role: ") == 3


def test_looking_changes_nothing(directory: Path) -> None:
    assert run("cluster", "list-database")[1].splitlines()[1] == "|    ADDRESS     |"
    assert run("admin", "cluster", "ls", "-f", "csv") == (0, "10.1.1.1:20001\n")
    code, shown = run("cluster", "show")
    assert code == 0
    assert shown.startswith("# Latest dqlite segment ID: 1\n")
    assert "\n\nmembers:\n- id: 1\n" in shown
    assert overview(directory / "database").epoch == 1


def test_recovery_asks_as_incus_does(directory: Path) -> None:
    code, said = run("cluster", "recover-from-quorum-loss", text="no\n")
    assert code == 1
    assert said.startswith("You should run this command only if you are *absolutely* certain that this is\n")
    assert "Do you want to proceed? (yes/no): " in said
    assert said.endswith("Error: Recover operation aborted\n")
    for answer in ("y\n", "yes please\n", "\n", ""):
        assert run("cluster", "recover-from-quorum-loss", text=answer)[0] == 1
    assert overview(directory / "database").epoch == 1
    code, said = run("cluster", "recover-from-quorum-loss", text="Yes\n")
    assert code == 0
    assert overview(directory / "database").epoch == 2
    assert next(directory.glob("database.backup-*")).name in said
    assert run("admin", "cluster", "recover-from-quorum-loss", "-q") == (0, "")
    assert overview(directory / "database").epoch == 3
    for _ in range(5):  # within one second: each has a copy of its own, and none of the earlier ones is touched
        assert run("cluster", "recover-from-quorum-loss", "-q") == (0, "")
    copies = sorted(overview(copy).epoch for copy in directory.glob("database.backup-*"))
    assert copies == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("command", ["edit", "recover-from-quorum-loss", "rejoin"])
def test_a_running_daemon_is_not_disturbed(directory: Path, command: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "unix.socket"))
        listener.listen()
        assert run("cluster", command) == (1, "Error: The daemon is running, please stop it first.\n")


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    for command in ("list-database", "show", "edit"):
        code, said = run("cluster", command)
        assert (code, said) == (1, f"Error: There is no database in {tmp_path / 'database'}\n")


def test_an_edit_that_changes_nothing_begins_no_epoch(directory: Path) -> None:
    shown = run("cluster", "show")[1]
    assert run("cluster", "edit", text=shown) == (0, "")
    nameless = "".join(line for line in shown.splitlines(keepends=True) if "name:" not in line)
    assert run("cluster", "edit", text=nameless) == (0, "")
    assert overview(directory / "database").epoch == 1
    code, said = run("cluster", "edit", text="members: []")
    assert (code, said) == (1, "Error: Removing cluster members is not supported\n")


def test_the_editor_is_opened_again_with_what_was_typed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = directory / "editor"
    editor.write_text(
        '#!/bin/sh\ncp "$1" "$0.seen.$(ls "$0".seen.* 2>/dev/null | wc -l)"\n'
        'grep -q bogus "$1" && sed -i s/bogus/voter/ "$1" || sed -i s/voter$/bogus/ "$1"\n'
    )
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    main_terminal, terminal = pty.openpty()
    os.write(main_terminal, b"\n")
    with os.fdopen(terminal) as typed:
        done = subprocess.run(
            [sys.executable, "-m", "incus_actors.cli.daemon", "cluster", "edit"],
            stdin=typed, capture_output=True, text=True, check=False,
        )  # fmt: skip
    os.close(main_terminal)
    assert (done.returncode, done.stderr) == (
        0,
        'Config validation error: unknown raft role: "bogus" (voter, stand-by, spare)\n',
    )
    assert done.stdout == "Press enter to open the editor again or ctrl+c to abort change\n"
    assert (directory / "editor.seen.0").read_text().startswith("# Latest dqlite segment ID: 1\n")
    assert "role: bogus" in (directory / "editor.seen.1").read_text()


def test_a_server_by_itself_has_nothing_to_recover(standalone: Path) -> None:
    assert run("cluster", "recover-from-quorum-loss", "-q") == (1, "Error: This server is not clustered\n")
    code, said = run("cluster", "edit", text="members: []")
    assert code == 1
    assert said.startswith("Error: Can't edit cluster configuration as server isn't clustered")
    assert "forgotten" not in run("cluster", "show")[1]
    witness = Witness(standalone / "database" / "tail.wit")
    witness.write(8, b"12345678", HardState(1, 0), 0, sync=True)
    witness.close()
    said = "# This server has forgotten writes that it had acknowledged: the log ends at 1, but 8 was durable once\n\n"
    assert said in run("cluster", "show")[1]
    (standalone / "database" / "amnesia").write_text("the log ends too early")
    assert "acknowledged: the log ends too early\n\n" in run("cluster", "show")[1]
    assert "repeat this with --accept-data-loss" in run("cluster", "recover-from-quorum-loss", "-q")[1]
    assert run("cluster", "recover-from-quorum-loss", "-q", "--accept-data-loss") == (0, "")


def test_a_standalone_server_has_nothing_to_join_again(standalone: Path) -> None:
    assert run("cluster", "rejoin", "-q") == (1, "Error: This server is not a member of a cluster\n")


def test_removing_a_raft_node_needs_the_daemon(directory: Path) -> None:
    code, said = run("cluster", "remove-raft-node", "10.0.0.1:8443", text="no\n")
    assert said.endswith("Error: Remove raft node operation aborted\n")
    code, said = run("cluster", "remove-raft-node", "-q", "10.0.0.1:8443")
    assert (code, said) == (
        1,
        f"Error: Failed to connect to daemon: {directory / 'unix.socket'}: No such file or directory\n",
    )
    code, said = run("cluster", "remove-raft-node")
    assert code == 1
    assert said.startswith("Usage: ")
    assert said.endswith("Error: Missing required arguments\n")


def test_the_daemon_itself_imports_no_recovery() -> None:
    script = (
        "import sys; from incus_actors.cli import daemon;"
        "assert not [m for m in sys.modules if 'admin_cluster' in m or m == 'yaml']"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_directory_of_a_real_incus_is_passed_on(tmp_path: Path) -> None:
    real = tmp_path / "incusd"
    real.touch()
    foreign = tmp_path / "foreign"
    (foreign / "database" / "global").mkdir(parents=True)
    (tmp_path / "ours").mkdir()
    assert real_incusd(str(foreign), (str(real),)) == str(real)
    assert real_incusd(str(foreign), (str(tmp_path / "none"),)) is None
    assert real_incusd(str(tmp_path / "ours"), (str(real),)) is None


def test_formats() -> None:
    rows = [("a", "bb"), ("ccc", "d")]
    assert render_table(("X", "Y"), rows, "table") == (
        "+-----+----+\n|  X  | Y  |\n+-----+----+\n| a   | bb |\n+-----+----+\n| ccc | d  |\n+-----+----+\n"
    )
    assert render_table(("X", "Y"), rows, "csv") == "a,bb\nccc,d\n"
    assert render_table(("X",), [("a",)], "json") == '[{"x": "a"}]\n'
    assert render_table(("X",), [("a",)], "yaml") == "- x: a\n"
    assert render_table(("X",), [("a",)], "compact") == "  X  \n  a  \n"
    assert render_table(("X",), [("a",)], "csv,header") == "X\na\n"
    assert render_table(("XXXX",), [("a",)], "table,noheader") == "+---+\n| a |\n+---+\n"
    assert render_table(("XXXX",), [("a",)], "compact,noheader") == "  a  \n"
    for wrong in ("xml", "csv,headers", ",header", ""):
        with pytest.raises(ValueError, match=f'Invalid format "{wrong}"'):
            render_table(("X",), [], wrong)
