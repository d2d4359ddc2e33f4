"""`admin init` in a pseudo-terminal: every question, every branch, against real daemons."""

from __future__ import annotations

import re
import sys
from typing import Any

import pexpect
import pytest
from conftest import on_terminal

CLUSTERING = "Would you like to use clustering? (yes/no) [default=no]: "
ADDRESS = "What IP address or DNS name should be used to reach this server? [default={}]: "
JOINING = "Are you joining an existing cluster? (yes/no) [default=no]: "
MEMBER_NAME = "What member name should be used to identify this server in the cluster? [default={}]: "
PASSWORD = "Setup password authentication on the cluster? (yes/no) [default=no]: "
LOCAL_POOL = "Do you want to configure a new local storage pool? (yes/no) [default=yes]: "
REMOTE_POOL = "Do you want to configure a new remote storage pool? (yes/no) [default=no]: "
POOL = "Do you want to configure a new storage pool? (yes/no) [default=yes]: "
POOL_NAME = "Name of the new storage pool [default=default]: "
BRIDGE = "Would you like to create a new local network bridge? (yes/no) [default=yes]: "
EXISTING = "Would you like to use an existing bridge or host interface? (yes/no) [default=no]: "
INTERFACE = "Name of the existing bridge or host interface: "
LISTEN = "Would you like the server to be available over the network? (yes/no) [default=no]: "
HOST = "Address to bind to (not including port) [default=all]: "
PORT = "Port to bind to [default=8443]: "
IMAGES = "Would you like stale cached images to be updated automatically? (yes/no) [default=yes]: "
YAML = 'Would you like a YAML "init" preseed to be printed? (yes/no) [default=no]: '
TOKEN = "Please provide join token: "
DATA_LOSS = "All existing data is lost when joining a cluster, continue? (yes/no) [default=no] "
MEMBER_ADDRESS = "IP address or FQDN of an existing cluster member (may include port): "
FINGERPRINT = "Is this the correct fingerprint? (yes/no/[fingerprint]) [default=no]: "
TRUST_PASSWORD = "Cluster trust password: "


class Dialogue:
    """A program in a terminal that asks."""

    def __init__(self, shell: Any, *arguments: str) -> None:
        self.child = on_terminal(shell, *arguments, timeout=90, columns=400)

    def answer(self, question: str, answer: str = "") -> None:
        """Wait for exactly this question as the next one, and answer."""
        self.child.expect_exact(question)
        said = self.child.before.replace("\r\n", "\n")
        assert ": " not in said.rpartition("\n")[2], f"asked before: {said!r}"
        self.child.sendline(answer)

    def said(self, text: str) -> None:
        """Wait for a text."""
        self.child.expect_exact(text)

    def backend(self, answer: str) -> None:
        """The storage backend is asked for only where there is a choice."""
        found = self.child.expect(
            [r"Name of the storage backend to use \(.*\) \[default=\w+\]: ", "Where should this "]
        )
        if found == 0:
            self.child.sendline(answer)
            self.child.expect_exact("Where should this ")
        self.child.expect(r"storage pool store its data\? \[default=\S+\]: ")

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and what was said last."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus or 0), self.child.before.replace("\r\n", "\n")


@pytest.fixture
def hostname() -> str:
    import socket

    return socket.gethostname()


def test_bootstrap_as_the_recorded_one(fresh: Any, hostname: str) -> None:
    """captures/admin-init-interactive-bootstrap: the same answers give the same preseed."""
    (shell,) = fresh(1)
    address = shell.member.address
    ask = Dialogue(shell, "admin", "init")
    ask.answer(CLUSTERING, "yes")
    ask.answer(ADDRESS.format(address), address)
    ask.answer(JOINING, "no")
    ask.answer(MEMBER_NAME.format(hostname), "node1")
    ask.answer(PASSWORD, "")
    ask.answer(LOCAL_POOL, "yes")
    ask.backend("dir")
    ask.child.sendline("")
    ask.answer(REMOTE_POOL, "no")
    ask.answer(EXISTING, "no")
    ask.answer(IMAGES, "yes")
    ask.answer(YAML, "yes")
    code, text = ask.end()
    assert code == 0, text
    assert text.lstrip("yes\n").startswith(
        f"config:\n  core.https_address: {address}:8443\nnetworks: []\nstorage_pools:\n"
    )
    assert shell("cluster", "list", "-c", "ns", "-f", "csv") == "node1,ONLINE\n"
    assert shell.stock("storage", "list", "-f", "csv", "-c", "nD").stdout == "local,dir\n"
    assert shell.member.client.get("/1.0/profiles/default")["devices"] == {
        "root": {"type": "disk", "path": "/", "pool": "local"}
    }
    again = Dialogue(shell, "admin", "init")
    again.answer(CLUSTERING, "yes")
    code, text = again.end()
    assert (code, "Error: This server is already clustered" in text) == (1, True)


def test_nonsense_is_asked_for_again(fresh: Any, hostname: str) -> None:
    """The words of a real 6.0.4 for each."""
    (shell,) = fresh(1)
    address = shell.member.address
    ask = Dialogue(shell, "admin", "init")
    ask.answer(CLUSTERING, "maybe")
    ask.said("Invalid input, try again.")
    ask.answer(CLUSTERING, "YES")
    where = ADDRESS.format(address)
    for wrong, words in [
        ("0.0.0.0", "Invalid input: Invalid IP address or DNS name"),
        ("[::]:8443", "Invalid input: Invalid IP address or DNS name"),
        ("1.2.3.4", 'Invalid input: Can\'t bind address "1.2.3.4:8443": listen tcp 1.2.3.4:8443: bind: cannot assign'),
        ("no such.host", 'Invalid input: Can\'t bind address "no such.host:8443": listen tcp: lookup no such.host'),
        (f"{address}:99999", "Invalid input: Invalid IP address or DNS name"),
    ]:
        ask.answer(where, wrong)
        ask.said(words)
    ask.answer(where, "")
    ask.answer(JOINING, "x")
    ask.said("Invalid input, try again.")
    ask.answer(JOINING, "")
    ask.answer(MEMBER_NAME.format(hostname), "none")
    ask.said("Invalid input: Invalid server name")
    ask.answer(MEMBER_NAME.format(hostname), "")
    ask.answer(PASSWORD, "yes")
    ask.answer("Trust password for new clients: ", "one")
    ask.answer("Again: ", "two")
    ask.said("Invalid input, try again.")
    ask.answer("Trust password for new clients: ", "sekret")
    ask.answer("Again: ", "sekret")
    ask.answer(LOCAL_POOL, "no")
    ask.answer(REMOTE_POOL, "")
    ask.answer(EXISTING, "yes")
    ask.answer(INTERFACE, "nope0")
    ask.said("The requested interface doesn't exist. Please choose another one.")
    ask.answer(INTERFACE, "eth0")
    ask.answer(IMAGES, "no")
    ask.answer(YAML, "y")
    code, text = ask.end()
    assert code == 0, text
    assert "sekret" not in text
    assert "nictype: macvlan" in text
    config = shell.member.client.get("/1.0")["config"]
    assert config["core.trust_password"] == "true"
    assert config["images.auto_update_interval"] == "0"


def test_standalone(fresh: Any) -> None:
    (shell,) = fresh(1)
    ask = Dialogue(shell, "admin", "init")
    ask.answer(CLUSTERING)
    ask.answer(POOL)
    ask.answer(POOL_NAME, "a/b")
    ask.said("Invalid input: Storage pool names may not contain slashes")
    ask.answer(POOL_NAME, "data")
    ask.backend("dir")
    ask.child.sendline("relative")
    ask.said("Invalid input: ")
    ask.child.expect(r"store its data\? \[default=\S+/storage-pools/data\]: ")
    ask.child.sendline("")
    ask.answer(BRIDGE, "no")
    ask.answer(EXISTING)
    ask.answer(LISTEN, "yes")
    ask.answer(HOST, shell.member.address)
    ask.answer(PORT, "70000")
    ask.said("Invalid input: out of range")
    ask.answer(PORT, "x")
    ask.said('Invalid input: strconv.ParseInt: parsing "x": invalid syntax')
    ask.answer(PORT, "8444")
    ask.answer(IMAGES, "no")
    ask.answer(YAML, "yes")
    code, text = ask.end()
    assert code == 0, text
    assert text.endswith("projects: []\ncluster: null\n\n")
    assert shell("config", "get", "core.https_address") == f"{shell.member.address}:8444\n"
    assert shell.stock("storage", "list", "-f", "csv", "-c", "nD").stdout == "data,dir\n"
    again = Dialogue(shell, "admin", "init")
    again.answer(CLUSTERING)
    again.answer(POOL)
    again.answer(POOL_NAME, "data")
    again.said('The requested storage pool "data" already exists. Please choose another name.')
    again.child.sendcontrol("c")
    assert again.end()[0] == 1


def test_a_bridge_is_asked_for_and_checked(fresh: Any) -> None:
    (shell,) = fresh(1)
    ask = Dialogue(shell, "admin", "init")
    ask.answer(CLUSTERING)
    ask.answer(POOL, "no")
    ask.answer(BRIDGE)
    name = "What should the new bridge be called? [default=incusbr0]: "
    ask.answer(name, "eth0")
    ask.said('The requested network bridge "eth0" already exists. Please choose another name.')
    ask.answer(name, "bad name!")
    ask.said("Invalid input: Network interface contains invalid characters")
    ask.answer(name, "x" * 16)
    ask.said("Invalid input: Network interface is too long (maximum 15 characters)")
    ask.answer(name, "incusbrt")
    ipv4 = "What IPv4 address should be used? (CIDR subnet notation, “auto” or “none”) [default=auto]: "
    ask.answer(ipv4, "1.2.3.4")
    ask.said("Invalid input: invalid CIDR address: 1.2.3.4")
    ask.answer(ipv4, "fd42::1/64")
    ask.said('Invalid input: Not an IPv4 address "fd42::1"')
    ask.answer(ipv4, "10.200.1.1/24")
    ask.answer("Would you like to NAT IPv4 traffic on your bridge? [default=yes]: ", "no")
    ask.answer("What IPv6 address should be used? (CIDR subnet notation, “auto” or “none”) [default=auto]: ", "none")
    ask.answer(LISTEN)
    ask.answer(IMAGES)
    ask.answer(YAML, "yes")
    ask.said('ipv4.nat: "false"')
    ask.said("network: incusbrt")
    ask.end()


def bootstrapped(shell: Any, *, password: str = "") -> None:
    extra = f"\n  core.trust_password: {password}" if password else ""
    text = (
        f"config:\n  core.https_address: {shell.member.https_address}{extra}\n"
        "storage_pools: [{name: local, driver: dir}]\ncluster: {server_name: one, enabled: true}\n"
    )
    shell("admin", "init", "--preseed", text=text)


def begin_joining(shell: Any, address: str) -> Dialogue:
    ask = Dialogue(shell, "admin", "init")
    ask.answer(CLUSTERING, "yes")
    ask.answer(ADDRESS.format(address), "")
    ask.answer(JOINING, "yes")
    return ask


def test_join_by_token(fresh: Any) -> None:
    """captures/admin-init-interactive-join; then a token that was used, and a user who thinks better of it."""
    first, second, third = fresh(3)
    bootstrapped(first)
    token = first("cluster", "add", "two", "-q").strip()
    ask = begin_joining(second, second.member.address)
    for wrong in ("", "AAAA", "e30="):
        ask.answer(TOKEN, wrong)
        ask.said("Invalid input: Invalid join token: ")
    ask.answer(TOKEN, token)
    ask.answer(DATA_LOSS, "yes")
    ask.answer('Choose "source" property for storage pool "local": ', "")
    ask.answer(YAML, "yes")
    code, text = ask.end()
    assert code == 0, text
    assert "cluster:\n  server_name: two\n  enabled: true\n  member_config:\n  - entity: storage-pool\n" in text
    assert "networks:" not in text
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "one\ntwo\n"

    used = begin_joining(third, third.member.address)
    used.answer(TOKEN, token)
    used.answer(DATA_LOSS, "yes")
    code, text = used.end()
    assert code == 1
    assert "No matching cluster join operation found" in text

    token = first("cluster", "add", "three", "-q").strip()
    before = first("config", "trust", "list", "-f", "csv")
    for stop in (DATA_LOSS, 'Choose "source" property for storage pool "local": '):
        afraid = begin_joining(third, third.member.address)
        afraid.answer(TOKEN, token)
        if stop == DATA_LOSS:
            afraid.answer(DATA_LOSS, "")
            code, text = afraid.end()
            assert (code, "Error: User aborted configuration" in text) == (1, True)
        else:
            afraid.answer(DATA_LOSS, "yes")
            afraid.said(stop)
            afraid.child.sendcontrol("c")
            assert afraid.end()[0] == 1
        assert first("config", "trust", "list", "-f", "csv") == before, "a certificate was left behind"
    token = first("cluster", "add", "three", "-q").strip()
    ask = begin_joining(third, third.member.address)
    ask.answer(TOKEN, token)
    ask.answer(DATA_LOSS, "yes")
    ask.answer('Choose "source" property for storage pool "local": ', "")
    ask.answer(YAML)
    assert ask.end()[0] == 0
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "one\nthree\ntwo\n"


def test_join_without_a_token(fresh: Any, hostname: str) -> None:
    """Address, fingerprint (refused, wrong, typed), password (wrong, then right)."""
    first, second = fresh(2)
    bootstrapped(first, password="sekret")
    fingerprint = first.member.client.get("/1.0")["environment"]["certificate_fingerprint"]

    def begin(address: str = first.member.address) -> Dialogue:
        ask = begin_joining(second, second.member.address)
        ask.answer(TOKEN, "no")
        ask.answer(MEMBER_NAME.format(hostname), "two")
        ask.answer(MEMBER_ADDRESS, address)
        return ask

    ask = begin("10.255.255.1:99999")
    ask.said("Invalid input: Invalid address: 10.255.255.1:99999")
    ask.answer(MEMBER_ADDRESS, f"{first.member.address}:1")
    ask.said("Invalid input: Error connecting to existing cluster member")
    ask.answer(MEMBER_ADDRESS, first.member.address)
    ask.said(f"Cluster fingerprint: {fingerprint}")
    ask.answer(FINGERPRINT, "perhaps")
    ask.said("Invalid input: ")
    ask.answer(FINGERPRINT, "")
    assert "Error: User aborted configuration" in ask.end()[1]

    ask = begin()
    ask.answer(FINGERPRINT, "0" * 64)
    assert "Error: Certificate fingerprint mismatch" in ask.end()[1]

    ask = begin()
    ask.answer(FINGERPRINT, fingerprint.upper())
    ask.answer(DATA_LOSS, "yes")
    ask.answer(TRUST_PASSWORD, "wrong")
    ask.said("Invalid input: Failed to setup trust with the cluster: not authorized: the trust password is wrong")
    ask.answer(TRUST_PASSWORD, "sekret")
    ask.answer('Choose "source" property for storage pool "local": ', "")
    ask.answer(YAML)
    code, text = ask.end()
    assert code == 0, text
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "one\ntwo\n"
    assert "wrong trust password from " in first.member.log.read_text()


def test_join_by_a_preseed_with_a_password(fresh: Any) -> None:
    """The shape of LXD's documentation; the password is wrong first, and nothing is left of that."""
    first, second = fresh(2)
    bootstrapped(first, password="sekret")
    certificate = first.member.client.get("/1.0")["environment"]["certificate"]
    file = second.member.directory / "cluster-of-first.crt"
    file.write_text(certificate)
    text = (
        f"cluster:\n  server_name: two\n  enabled: true\n  server_address: {second.member.address}\n"
        f"  cluster_address: {first.member.address}\n  cluster_certificate_path: {file}\n  cluster_password: {{}}\n"
    )
    before = first("config", "trust", "list", "-f", "csv")
    wrong = second.run("admin", "init", "--preseed", text=text.format("wrong"))
    assert wrong.returncode == 1
    assert "the trust password is wrong" in wrong.stderr
    assert first("config", "trust", "list", "-f", "csv") == before
    second("admin", "init", "--preseed", text=text.format("sekret"))
    assert first("cluster", "list", "-c", "n", "-f", "csv") == "one\ntwo\n"
    other = second.run("admin", "init", "--preseed", text=text.format("sekret").replace("name: two", "name: three"))
    assert other.stderr == "Error: Failed to join cluster: This server is already clustered\n"


def test_a_cluster_without_a_password_asks_for_none(fresh: Any, hostname: str) -> None:
    first, second = fresh(2)
    bootstrapped(first)
    ask = begin_joining(second, second.member.address)
    ask.answer(TOKEN, "no")
    ask.answer(MEMBER_NAME.format(hostname), "")
    ask.answer(MEMBER_ADDRESS, first.member.address)
    ask.answer(FINGERPRINT, "yes")
    code, text = ask.end()
    assert code == 1
    assert "This cluster accepts no trust password" in text
    assert f"cluster add {hostname}" in text


FLAGS = [
    ["--auto", "--preseed"],
    ["--auto", "--minimal"],
    ["--minimal", "--preseed"],
    ["--dump", "--auto"],
    ["--network-address", "1"],
    ["--auto", "--storage-backend", "foo"],
    ["--auto", "--storage-backend", "dir", "--storage-create-loop", "1"],
    ["--auto", "--network-port", "1"],
]


def test_flags_that_do_not_go_together_and_auto_twice(fresh: Any) -> None:
    (shell,) = fresh(1)
    for flags in FLAGS:
        ours, stock = shell.run("admin", "init", *flags), shell.stock("admin", "init", *flags)
        assert (ours.stdout, ours.stderr, ours.returncode) == (stock.stdout, stock.stderr, stock.returncode), flags
    address = shell.member.address
    shell("admin", "init", "--auto", "--network-address", address, "--storage-backend", "dir")
    assert shell("config", "get", "core.https_address") == f"{address}:8443\n"
    profile = shell.member.client.get("/1.0/profiles/default")["devices"]
    assert profile["root"] == {"type": "disk", "path": "/", "pool": "default"}
    index = shell.member.client.get("/internal/raft")["status"]["commit"]
    shell("admin", "init", "--auto")
    shell("admin", "init", "--minimal")
    assert shell.member.client.get("/internal/raft")["status"]["commit"] <= index + 1
    assert not re.search("Traceback", shell.member.log.read_text())


def test_only_root_joins(fresh: Any) -> None:
    """Who is not root is told so before anything is asked further."""
    (shell,) = fresh(1)
    code = (
        "import os, sys; os.geteuid = lambda: 1000; sys.argv = ['incus-actors', 'admin', 'init'];"
        "from incus_actors.cli.main import main; main()"
    )
    child = pexpect.spawn(
        shell.member.enter[0],
        [*shell.member.enter[1:], sys.executable, "-c", code],
        env=shell.environment,
        encoding="utf8",
        timeout=30,
    )
    for question, answer in [(CLUSTERING, "yes"), (ADDRESS.format(shell.member.address), ""), (JOINING, "yes")]:
        child.expect_exact(question)
        child.sendline(answer)
    child.expect_exact("Error: Joining an existing cluster requires root privileges")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1
