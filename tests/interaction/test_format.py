"""The format itself: the documentation is true, errors name file and line, nothing a script says can break the runner."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from incus_actors.cli.interaction import interaction
from incus_actors.consensus.core import Core
from incus_actors.interaction.commands import GRAMMAR
from incus_actors.interaction.facts import fact_names
from incus_actors.interaction.patterns import KINDS, SHORT
from incus_actors.interaction.runner import Outcome, run_text
from incus_actors.interaction.values import CAUSES, PROGRESS, ROLES, STATUSES

PAGE = (Path(__file__).parents[2] / "docs" / "interaction.md").read_text()


def run(text: str) -> Outcome:
    return run_text(text, "script.txt")


def report(text: str) -> str:
    return "\n".join(run(text).report())


def test_the_worked_example_of_the_documentation_passes() -> None:
    blocks = re.findall(r"```\n(# The write.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    assert run(blocks[0]).passed, report(blocks[0])


@pytest.mark.parametrize("verb", sorted(GRAMMAR.commands))
def test_every_command_is_documented(verb: str) -> None:
    assert re.search(rf"`{verb}\b", PAGE)


@pytest.mark.parametrize("name", fact_names())
def test_every_fact_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("value", [*CAUSES, *PROGRESS, *STATUSES, *ROLES])
def test_every_value_of_a_fact_is_documented(value: str) -> None:
    assert f"`{value}`" in PAGE


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_message_is_documented(kind: str) -> None:
    assert f"`{SHORT[kind]}`" in PAGE


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("members 3\n\nfrobnicate 1", 3, "unknown command 'frobnicate'"),
        ("members 3\nexpct 1 role=leader", 2, "did you mean 'expect'?"),
        ("members 3\nexpect 1 rle=leader", 2, "did you mean 'role'?"),
        ("members 3\nexpect", 2, "usage: expect"),
        ("members 3\nexpect 1", 2, "what is expected?"),
        ("members 3\nexpect 1 term>x", 2, "compares with a number"),
        ("members 3\ndeliver Apend", 2, "did you mean Append?"),
        ("members 3\ndeliver Append colour=red", 2, "no field 'colour'"),
        ("members 3\nhold Append count=1", 2, "takes no count"),
        ("members 3\nexpect no sent Append count=1", 2, "exclude each other"),
        ("members 3\nexpect sent", 2, "the kind of message is missing"),
        ("members x", 1, "whole number"),
        ("members 51", 1, "at most 50"),
        ("members 3 4=standby", 1, "id of 1 to 3"),
        ("member 1 log=2,1", 1, "never fall"),
        ("member 1 log=1 applied=2", 1, "snapshot <= applied"),
        ("member 1 king", 1, "unexpected 'king'"),
        ("timing heartbeat=5", 1, "expected"),
        ("members 3\ntick 1 soon", 2, "milliseconds"),
        ("members 3\ncut 1-2", 2, "expected A->B"),
        ("members 3\npartition 1 2", 2, "two groups"),
        ("members 3\nsend 1->* Vote", 2, "two members"),
        ("members 3\nsend 1->2 Vote term=x", 2, "whole number"),
        ("members 3\nsend 1->2 Vote transfer=maybe", 2, "true or false"),
        ("members 3\nfail 1 badly", 2, "full, io"),
        ("members 3\nchange 1 c voters=a", 2, "expected members"),
        ("members 3\npropose 1 'two words'", 2, "a name is made of"),
        ("members 3\npropose 1 a kind=config2", 2, "kind must be one of"),
        ("members 3\nlink sideways 1", 2, "up, down"),
        ('members 3\nexpect 1 "role=leader', 2, "cannot read the line"),
        ("members 3 extra words", 1, "expected IDS="),
        ("settle 3", 1, "unexpected '3'"),
        ("members 3 ²=standby", 1, "expected members"),
        ("members 3 2-4=standby", 1, "id of 1 to 3"),
        ("members 3 =standby", 1, "id of 1 to 3"),
        ("members 3\ntick 3-1", 2, "expected members"),
        ("members 3\nrun 999999999s", 2, "at most 3600s"),
        ("members 3\ntick 1 999999999", 2, "at most 3600s"),
        ("members 3\ndeliver Append count=0", 2, "at least 1"),
        ("members 3\nrelease Append count=1", 2, "takes no count"),
        ("members 3\nexpect sent Append Vote", 2, "expected FIELD=VALUE, not 'Vote'"),
        ("members 3\nexpect sent 1->2", 2, "the kind of message is missing"),
        # what never is would make an expectation that always holds
        ("members 3\nexpect 1 role!=ledaer", 2, "did you mean 'leader'?"),
        ("members 3\nexpect 1 joint!=yes", 2, "none of true, false"),
        ("members 3\nexpect 1 term!=one", 2, "a whole number is expected"),
        ("members 3\nexpect 1 voters!=all", 2, "expected members"),
        ("members 3\nexpect 1 progress.2!=probing", 2, "did you mean 'probe'?"),
        ("members 3\nrun 10 until any cause=bored", 2, "none of none, timeout"),
        ("members 3\nexpect no sent VoteResp granted=yes", 2, "none of true, false"),
        ("members 3\nexpect no sent Append commit=x", 2, "a whole number is expected"),
        ("members 3\nexpect result a done", 2, "none of pending, applied"),
        ("members 3  # a form feed \x0c and \u2028 end no line\nfly", 2, "unknown command 'fly'"),
        ("# nothing", 0, "no commands"),
        ("x" * (2 << 20), 0, "longer than"),
    ],
)
def test_a_wrong_script_names_the_line(text: str, line: int, part: str) -> None:
    outcome = run(text)
    assert not outcome.passed
    assert outcome.error
    assert outcome.line == line
    assert part in report(text)
    assert report(text).startswith(f"ERROR  script.txt{f':{line}' if line else ''}: ")


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("members 3\nelect 1\nexpect 1 commit=7 role=leader", 3, "expected: commit=7\n  found:    commit=1"),
        ("members 3\nexpect any role=leader", 2, "expected: any member with role=leader"),
        ("members 3\nelect 1\nexpect sent Append 1->2 term=9", 3, "expected: at least 1 of Append 1->2 term=9"),
        ("members 3\ndeliver Append", 2, "no such message is under way"),
        ("members 3\nelect 1\npropose 1 a\nexpect result a applied", 4, "found:    status=pending"),
        ("members 3\nexpect result a applied", 2, "nothing named 'a' was asked"),
        ("members 3\ntick 9", 2, "there is no member 9"),
        ("members 3\ncrash 2\ncampaign 2", 3, "member 2 is not running"),
        (
            "members 3\nelect 1\nsend 3->2 Heartbeat term=1\ndeliver\nexpect 2 term=1",
            5,
            "it stopped in line 4 (fatal: ",
        ),
        ("members 3\ncomplete 1", 2, "no write that waits"),
        ("members 3\nrun 100 until 1 role=leader", 2, "not within 100 ms"),
        ("members 3\nelect 1\nmembers 2", 3, "come before every other command"),
        ("members 3\nelect 1\nlimits pending_reads=3", 3, "come before"),
        ("settle", 1, "there are no members yet"),
        ("member 1 log=1,1 applied=2\nmember 2\nmember 3\nsettle", 4, "a majority of 1,2,3\n  found:    1"),
        ("members 2 1-2=spare\nsettle", 2, "nobody is a voter"),
        ("member 1 log=1,3\nmember 2 term=1\nmember 3 term=2\nsettle", 4, "been in that term (term=3)"),
        ("members 2\ncrash all\nexpect all term=0", 3, "no member runs"),
        ("members 2\ncrash all\nrun 20 until all term=0", 3, "not within 20 ms"),
        ("members 3\nelect 1\nexpect sent PreVote", 3, "messages sent since line 2"),
        ("members 3\nelect 1\nexpect sent Append count>9", 3, "more than 9 of Append"),
        ("members 3\nexpect stopped 2", 2, "it has not asked to be stopped"),
        ("members 3\nexpect 1 match.2=3", 2, "no progress of member 2"),
        ("members 3\nrelease Append", 2, "is not held"),
        ("members 3\nread 1 r\nread 1 r", 3, "was asked for 'r' before"),
        ("members 3\nelect 1\nelect 1\ncampaign 1", 4, "leads already"),
    ],
)
def test_a_failed_line_says_what_was_expected_and_found(text: str, line: int, part: str) -> None:
    outcome = run(text)
    assert (outcome.passed, outcome.error, outcome.line) == (False, False, line)
    assert part in report(text)
    assert report(text).startswith(f"FAIL  script.txt:{line}: ")


def test_a_failure_shows_the_last_messages_and_the_members() -> None:
    text = report("members 3\nelect 1\npropose 1 a\ndrop Append 1->3\nexpect 3 last=2")
    assert "1->3 Append term=1 previous_index=1 previous_term=1 terms=1 proposals=a" in text
    assert "(dropped)" in text
    assert "3: follower term=1 vote=1 leader=1 last=1/1" in text


@pytest.mark.parametrize(
    "line",
    [
        "expect all voters=1-3 members=3,1-2 standbys=none",
        "expect 1 voters~2,3 log~1",
        "expect 2,3 role!=leader",
        "expect sent 1->2 Append count>0",
        "expect sent Append 1->2 count!=2",
        "expect no sent 1->* Append term=9",
        "send 2->1 Vote",
        "send Vote 2->1",
        "hold 1->2 Append",
        "isolate all",
        "run 20 only=all",
        "link down 1 at=all evidence=E0",
        "expect result a status!=pending",
        "expect any leader!=none",
    ],
)
def test_what_can_be_said_in_several_ways(line: str) -> None:
    text = "members 3\nelect 1\npropose 1 a\nrun 50\n" + line
    assert run(text).passed, report(text)


def test_members_of_the_beginning_can_be_described_together() -> None:
    text = "members 9 4,5=standby 6-9=spare\nmember 1-3 term=2 log=1,2 applied=1\nelect 1\nexpect 1 "
    assert run(text + "voters=1-3 standbys=4,5 spares=6-9 log=1,2,3").passed, report(text + "log=1,2,3")


def test_voters_whose_term_is_not_given_have_taken_part_in_the_newest_election() -> None:
    """Figure 7 of the paper as it is printed: logs only."""
    logs = ("1,1,1,4,4,5,5,6,6,6", "1,1,1,4,4,5,5,6,6", "1,1,1,4", "1,1,1,4,4,5,5,6,6,6,6")
    logs += ("1,1,1,4,4,5,5,6,6,6,7,7", "1,1,1,4,4,4,4", "1,1,1,2,2,2,3,3,3,3,3")
    text = "\n".join(f"member {member} log={log}" for member, log in enumerate(logs, 1))
    text += "\nelect 1\nrun 200\nexpect 1 term=8\nexpect all log=1,1,1,4,4,5,5,6,6,6,8 commit=11"
    assert run(text).passed, report(text)
    text = "member 1 log=1\nmember 2 log=1,2\nmember 3 log=1\nmember 4 standby log=1\n"
    assert run(text + "expect 1-3 term=2\nexpect 4 term=1").passed


def test_terms_stay_as_they_are_where_a_majority_has_been_in_the_newest() -> None:
    assert run("member 1-2 log=1,2\nmember 3 log=1\nexpect 3 term=1").passed


def test_a_list_contains_items_and_not_parts_of_them() -> None:
    text = "members 3\nelect 1\npropose 1 append\npropose 1 b\nrun 50\n"
    assert run(text + "expect all state~b,append").passed
    assert not run(text + "expect all state~app").passed


def test_several_die_at_once() -> None:
    text = "members 5\nelect 1\nkill 1,2\nrun 200 until any role=leader\nexpect 1,2 role=down"
    assert run(text).passed, report(text)


def test_a_mistake_of_this_program_is_an_outcome_too() -> None:
    def broken(*_: object, **__: object) -> Core:
        raise KeyError("oops")

    outcome = run_text("members 3\nsettle", "x.txt", make_core=broken)
    assert (outcome.passed, outcome.line) == (False, 2)
    assert "KeyError: 'oops'" in outcome.text


def test_a_stop_that_nobody_expects_fails_where_it_happened() -> None:
    text = "members 3\nelect 1\nsend 3->2 Heartbeat term=1\nsettle\n"
    assert "script.txt:4: settle" in report(text)
    assert "two leaders in term 1" in report(text)
    assert run(text + "expect stopped 2 fatal").passed


def test_a_broken_promise_fails_although_nobody_asks() -> None:
    text = "member 1 log=1:a applied=1\nmember 2 log=1:b applied=1"
    assert "P-SMS" in report(text + "\nsettle")


def test_what_does_not_end_is_ended() -> None:
    outcome = run("members 3\nelect 1\ntick 1 50\n" + "duplicate\n" * 16)
    assert not outcome.passed
    assert "does not end" in outcome.text


def test_the_command_runs_files_and_directories(tmp_path: Path) -> None:
    good, bad, wrong = (tmp_path / name for name in ("good.txt", "bad.txt", "wrong.txt"))
    good.write_text("members 3\nelect 1\nshow 1\n")
    bad.write_text("members 3\nexpect 1 role=leader\n")
    wrong.write_text("members 3\nfly 1\n")
    runner = CliRunner()
    done = runner.invoke(interaction, [str(good)])
    assert done.exit_code == 0
    assert "1: leader term=1" in done.output
    assert f"pass  {good} (3 steps)" in done.output
    done = runner.invoke(interaction, ["-q", str(tmp_path)])
    assert done.exit_code == 1
    assert f"FAIL  {bad}:2: expect 1 role=leader" in done.output
    assert f"ERROR  {wrong}:2: unknown command 'fly'" in done.output
    assert "1 of 3 passed" in done.output
    assert str(good) not in done.output


def test_standard_input_is_a_file_named_minus() -> None:
    runner = CliRunner()
    done = runner.invoke(interaction, ["-"], input="members 1\nsettle")
    assert (done.exit_code, done.output) == (0, "pass  <stdin> (2 steps)\n")
    done = runner.invoke(interaction, ["-"], input="members 1\nfly")
    assert done.exit_code == 1
    assert "ERROR  <stdin>:2: unknown command" in done.output


def test_a_directory_without_scripts_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "empty" / "directory.txt").mkdir(parents=True)
    good = tmp_path / "good.txt"
    good.write_bytes(b"\xef\xbb\xbfmembers 1\r\nsettle\r\n")  # as Windows writes it
    done = CliRunner().invoke(interaction, [str(good), str(tmp_path / "empty")])
    assert done.exit_code == 1
    assert f"pass  {good} (2 steps)" in done.output
    assert f"ERROR  {tmp_path / 'empty'}: no *.txt in this directory" in done.output
    assert "1 of 2 passed" in done.output


def test_a_file_that_is_no_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_bytes(b"members 1\nsettle\n\xe2\x82\n")
    done = CliRunner().invoke(interaction, [str(path)])
    assert done.exit_code == 1
    assert f"ERROR  {path}:3: cannot be read: this is no UTF-8" in done.output


def test_a_file_without_an_end_is_a_failure() -> None:
    done = CliRunner().invoke(interaction, ["/dev/zero"])
    assert done.exit_code == 1
    assert "longer than 1 MiB" in done.output


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_a_failure(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "script.txt"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(interaction, [str(path)])
    assert done.exit_code == 1
    assert f"ERROR  {path}{':1' if content else ''}: cannot be read" in done.output


def test_without_files_the_command_says_how_it_is_used() -> None:
    assert CliRunner().invoke(interaction, []).exit_code == 2
    listed = CliRunner().invoke(interaction, ["--commands"])
    assert listed.exit_code == 0
    assert "deliver [KIND] [A->B]" in listed.output


WORDS = [
    "1", "2", "3", "9", "all", "any", "1,2", "1-3", "0", "-1", "1->2", "*->1", "1<->3", "Append", "Vote", "Heartbeat",
    "role=leader", "term=3", "count=1", "until", "only=1", "600", "2s", "a", "b", "=", "x=y", "log=1,1", "voters=1,2",
    "full", "io", "disk", "state", "files", "up", "down", "|", "result", "sent", "pending", "no", "stopped", "amnesia",
    "entries=1:a", "SnapOffer", "index=3", "size=9", "granted=true", "none", "''", "epoch=2", "to=2", "applied=0",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_nothing_that_a_script_says_breaks_the_runner(seed: int) -> None:
    """Scripts of random words, the lines that parse kept: every one ends as an outcome."""
    rng = random.Random(seed)
    lines = ["members 3", "elect 1"]
    for _ in range(300):
        line = " ".join([rng.choice(sorted(GRAMMAR.commands)), *rng.choices(WORDS, k=rng.randint(0, 4))])
        outcome = run("members 1\n" + line)
        if outcome.error or line.startswith(("expect", "member", "limits", "timing")):
            continue
        lines.append(line)
    for _ in range(30):
        script = "\n".join([*lines[:2], *rng.sample(lines[2:], min(8, len(lines) - 2))])
        outcome = run(script)
        assert outcome.passed or outcome.text
        assert "TypeError" not in outcome.text, script
        assert "KeyError" not in outcome.text, script
        assert "AttributeError" not in outcome.text, script
