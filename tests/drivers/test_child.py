from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import Child, decode_fields, encode_fields, helper_argv, run_helper


def test_fields_travel() -> None:
    fields = [("a", "1"), ("a", ""), ("b", "ü\nx\udcff")]
    data = encode_fields(fields)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert decode_fields(data[4:]) == fields
    assert decode_fields(b"") == []
    with pytest.raises(ValueError, match="NUL"):
        encode_fields([("a", "b\0c")])


async def test_exit_codes() -> None:
    child = Child(["sh", "-c", "exit 5"])
    assert await child.wait() == 5
    assert child.exit_code == 5
    child.kill()  # harmless
    child = Child(["sleep", "60"])
    assert child.exit_code == -1
    child.kill()
    assert await child.wait() == 137


async def test_only_what_is_given_is_inherited() -> None:
    listener = socket.socket()
    listener.set_inheritable(True)
    with listener:
        child = Child(["sh", "-c", "ls -l /proc/$$/fd"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        output = await asyncio.to_thread(child.stdout.read)
        child.stdout.close()
        await child.wait()
    assert b"socket:" not in output


async def test_the_environment_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    child = Child(["env"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    output = await asyncio.to_thread(child.stdout.read)
    child.stdout.close()
    await child.wait()
    assert b"SECRET_TOKEN" not in output
    assert os.environ["SECRET_TOKEN"] == "x"


async def test_a_missing_program() -> None:
    with pytest.raises(FileNotFoundError):
        Child(["/no/such/program"])


async def test_a_helper_that_dies_is_an_error() -> None:
    with pytest.raises(DriverError, match="ended without an answer"):
        await run_helper("no_such_helper", [], [("a", "b")])


async def test_a_helper_that_hangs_is_killed() -> None:
    with pytest.raises(TimeoutError):
        await run_helper("archive_helper", [], [], timeout_s=0)


def test_helpers_are_isolated() -> None:
    assert helper_argv("x", "y")[1:4] == ["-I", "-S", "-B"]
