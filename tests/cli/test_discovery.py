"""Discovery between real daemons in namespaces without IPv6: found, confirmed by code, joined; strangers refused."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from typing import Any

import pexpect
from conftest import OURS, on_terminal

CODE = re.compile(r"type this code there: ([0-9A-Z]{4}-[0-9A-Z]{4})")


class Terminal:
    """Our CLI in a pseudo-terminal beside one member."""

    def __init__(self, shell: Any, *arguments: str) -> None:
        self.child = on_terminal(shell, *arguments, timeout=40, columns=300)

    def answer(self, question: str, answer: str = "") -> None:
        self.child.expect_exact(question)
        self.child.sendline(answer)

    def code(self) -> str:
        """The next code that is shown."""
        self.child.expect(CODE)
        return str(self.child.match.group(1))

    def end(self) -> tuple[int, str]:
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus or 0), self.child.before.replace("\r\n", "\n")


def announced(shell: Any) -> Terminal:
    waiting = Terminal(shell, "cluster", "announce")
    waiting.child.expect_exact("Now run on the other server")
    return waiting


def begin(shell: Any) -> Terminal:
    """Start forming; the questions about this server are answered."""
    ask = Terminal(shell, "admin", "init", "--discover")
    ask.child.expect_exact("What IP address or DNS name should be used to reach this server?")
    ask.child.sendline(shell.member.address)
    ask.child.expect_exact("What member name should be used to identify this server in the cluster?")
    ask.child.sendline("one")
    return ask


def test_nothing_found_prints_the_manual_commands_in_time(fresh: Any) -> None:
    """WANTS 40: within five seconds on a network without IPv6, with what to do instead."""
    (shell,) = fresh(1)
    start = time.monotonic()
    done = shell.run("cluster", "discover", "--ipv4", "--interface", "eth0", "--timeout", "1")
    assert time.monotonic() - start < 5
    assert done.returncode == 1
    assert "No server that waits to be joined was found on eth0 within 1 s." in done.stderr
    for command in ("cluster announce", "admin init", "cluster add <name>"):
        assert f"incus-actors {command}" in done.stderr
    assert shell.run("cluster", "discover", "--interface", "nope").stderr == 'Error: There is no interface "nope"\n'
    assert "has no address" in shell.run("cluster", "discover", "--interface", "lo").stderr
    assert shell.run("cluster", "discover", "--timeout", "0").returncode == 1


def test_a_cluster_is_formed_from_one_terminal(fresh: Any) -> None:
    first, second, third = fresh(3)
    waiting = {shell.member.address: announced(shell) for shell in (second, third)}
    found = json.loads(first("cluster", "discover", "--enough", "2", "-f", "json"))
    assert {row["address"] for row in found} == {second.member.address, third.member.address}
    for row in found:
        assert row["interface"] == "eth0"
        shell = second if row["address"] == second.member.address else third
        assert row["fingerprint"] == shell.member.client.get("/1.0")["environment"]["certificate_fingerprint"]

    ask = begin(first)
    ask.answer("Which of these servers shall join?", "nobody")
    ask.child.expect_exact('Invalid input: "nobody" is not one of them')
    ask.answer("Which of these servers shall join?", "all")
    names = {second.member.address: "two", third.member.address: "three"}
    for _ in range(2):
        ask.child.expect(r"Code shown on \S+ \(([0-9.]+), fingerprint ([0-9a-f]{12})\): ")
        address = ask.child.match.group(1)
        code = waiting[address].code()
        ask.child.sendline("what?")
        ask.child.expect_exact("Invalid input: a code looks like")
        ask.child.expect_exact("Code shown on ")
        ask.child.sendline(code.lower().replace("-", " "))
        ask.child.expect(r"What member name should be used for \S+ \([0-9.]+\)\? \[default=\S+\]: ")
        ask.child.sendline(names[address])
    ask.answer("Do you want to configure a new local storage pool? (yes/no) [default=yes]: ")
    if (
        ask.child.expect([r"Name of the storage backend to use \(.*: ", "Would you like to use an existing bridge"])
        == 0
    ):
        ask.child.sendline("dir")
        ask.child.expect_exact("Would you like to use an existing bridge")
    ask.child.sendline("")
    ask.answer("Would you like stale cached images to be updated automatically?", "")
    ask.child.expect_exact("All existing data on ")
    assert {"two", "three"} == set(re.findall(r"two|three", ask.child.before))
    ask.child.sendline("yes")
    code, text = ask.end()
    assert code == 0, text
    assert text.count("✔") == 3
    assert first("cluster", "list", "-c", "ns", "-f", "csv") == "one,ONLINE\nthree,ONLINE\ntwo,ONLINE\n"
    assert first.stock("storage", "list", "-f", "csv", "-c", "nD").stdout == "local,dir\n"
    for address, terminal in waiting.items():
        code, text = terminal.end()
        assert code == 0, text
        assert f"This server is now the member {names[address]}." in text
    deadline = time.monotonic() + 5
    while second.member.client.get("/internal/discovery")["waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert first("cluster", "list-tokens", "-f", "csv") == ""
    refused = second.run("cluster", "announce")
    assert refused.stderr == "Error: This server is already clustered\n"


def test_wrong_codes_end_it_and_nothing_is_formed(fresh: Any) -> None:
    first, second = fresh(2)
    waiting = announced(second)
    ask = begin(first)
    ask.answer("Which of these servers shall join?", second.member.address)
    for left in ("2 attempts left", "1 attempts left"):
        ask.answer("Code shown on ", "0000-0000")
        ask.child.expect_exact(f"Invalid input: Wrong code, {left}")
    ask.answer("Code shown on ", "0000-0000")
    ask.child.expect_exact("can't be trusted: Wrong code, no attempts left")
    ask.answer("Continue without ", "yes")
    code, text = ask.end()
    assert code == 1
    assert "Error: No server is left that could join" in text
    waiting.child.expect_exact("does not know the code: refused.")
    waiting.child.sendcontrol("c")
    assert waiting.end()[0] == 1
    assert not second.member.client.get("/internal/discovery")["waiting"]
    assert first.run("cluster", "list").returncode == 1, "the first server was not touched"
    assert "core.https_address" not in first("config", "show")


PROBE = """
import json, sys
from incus_actors.cli import joining
from incus_actors.cli.discovery_client import Candidate, Pairing
from incus_actors.cli.api_client import server_certificate
host, port, own = sys.argv[1], int(sys.argv[2]), sys.argv[3]
candidate = Candidate("x", host, port, "eth0", server_certificate(f"{host}:{port}"))
def attempt(action):
    try:
        return action() or "done"
    except joining.JoiningError as problem:
        return str(problem)
pairing = Pairing(candidate, own)
print(attempt(lambda: pairing._post("facts", {"session": "0" * 32})), flush=True)
print(attempt(lambda: pairing._post("ask", {"name": "a\\nb\\x1b[31m" + "x" * 500, "nonce": "zz"})), flush=True)
print(attempt(lambda: pairing._post("ask", {"name": 5})), flush=True)
print(attempt(lambda: pairing._post("nope", {})), flush=True)
pairing.ask("a\\nb\\x1b[31m" + "x" * 500)
print(attempt(pairing.facts), flush=True)
print(attempt(lambda: pairing.join({"cluster_token": "x"})), flush=True)
print("asked", flush=True)
code = sys.stdin.readline().strip()
pairing.confirm(code)
print("paired", flush=True)
first = pairing._transcript
print(attempt(lambda: pairing.confirm(code)), flush=True)
print(sorted(pairing.facts()), flush=True)
print(attempt(lambda: pairing.join({"cluster_token": ""})), flush=True)
print(attempt(lambda: pairing.join({"cluster_token": "x", "server_name": "a"})), flush=True)
pairing.ask("again")
print(attempt(lambda: pairing.confirm(code)), flush=True)
pairing._transcript = first
print(attempt(pairing.facts), flush=True)
"""


def test_strangers_get_nothing_and_codes_work_once(fresh: Any) -> None:
    """Nonsense, requests without a code, a code used twice, a code of an earlier session: all refused."""
    first, second = fresh(2)
    second("cluster", "announce", "--background")
    status = second.member.client.get("/internal/discovery")
    own = first.member.client.get("/1.0")["environment"]["certificate_fingerprint"]
    probe = subprocess.Popen(
        [*first.member.enter, OURS[0], "-c", PROBE, second.member.address, str(status["port"]), own],
        env=first.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert probe.stdin is not None
    assert probe.stdout is not None
    said = []
    while (line := probe.stdout.readline().strip()) != "asked":
        assert line, probe.poll()
        said.append(line)
    assert said == [
        "There is no such request, or its code has expired",
        "Invalid nonce",
        said[2],
        "not found",
        "not authorized",
        "not authorized",
    ]
    assert said[2] != "done"
    (session,) = second.member.client.get("/internal/discovery")["sessions"]
    assert session["asker"].startswith("a?b?[31mxxx")
    assert len(session["asker"]) <= 63
    rest, _ = probe.communicate(session["code"] + "\n", timeout=60)
    assert rest.splitlines() == [
        "paired",
        "This code was used already",
        "['address', 'disks', 'interfaces', 'name', 'storage_drivers']",
        "A join token is needed",
        "No server address provided for this member",
        "Wrong code, 2 attempts left",
        "There is no such request, or its code has expired",
    ]
    over_the_api = subprocess.run(
        [*first.member.enter, "curl", "-sk", f"https://{second.member.address}:{status['port']}/1.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(over_the_api.stdout)["error_code"] == 404, "the API itself is not behind that door"
    second("cluster", "announce", "--stop")
    assert not second.member.client.get("/internal/discovery")["waiting"]


LIAR = """
import asyncio, sys
from incus_actors.transport.mdns import Announcement
async def main():
    liar = Announcement(name="liar\\n\\x1b[31m", fingerprint=sys.argv[3], port=int(sys.argv[2]), addresses=[sys.argv[1]])
    await liar.start()
    print("up", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_strangers_answer_is_refused(fresh: Any) -> None:
    """It announces a certificate that it can't show."""
    first, second = fresh(2)
    second("cluster", "announce", "--background")
    port = second.member.client.get("/internal/discovery")["port"]
    liar = subprocess.Popen(
        [*second.member.enter, OURS[0], "-c", LIAR, second.member.address, str(port), secrets.token_hex(32)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert liar.stdout is not None
        assert liar.stdout.readline() == "up\n"
        done = first.run("cluster", "discover", "--enough", "2", "-f", "json")
        assert len(json.loads(done.stdout)) == 1
        assert "Refused: liar??[31m" in done.stderr
        assert "it shows the certificate" in done.stderr
    finally:
        liar.kill()
        liar.wait()


def test_a_daemon_can_wait_from_its_start(fresh: Any) -> None:
    first, second = fresh(2)
    second.member.stop(10)
    second.member.command = (*second.member.command, "--discoverable")
    second.member.start()
    second.member.wait_until_ready(30)
    found = json.loads(first("cluster", "discover", "--enough", "1", "-f", "json"))
    assert [row["address"] for row in found] == [second.member.address]
