"""What a request to run a command becomes for the driver."""

from __future__ import annotations

import os

import pytest
from instance_kit import machines

from incus_actors.drivers.base import RunStatus
from incus_actors.errors import BadRequestError, NotFoundError
from incus_actors.model.instances import InstanceExecPost
from incus_actors.services.instance_exec import PATH, environment_of


def test_environment_is_complete_and_the_user_has_the_last_word():
    post = InstanceExecPost(command=["x"], environment={"TERM": "xterm", "LANG": "de", "B": "2"})
    config = {"environment.A": "1", "environment.B": "1", "user.x": "y"}
    assert environment_of(config, post) == {
        "A": "1", "B": "2", "HOME": "/root", "LANG": "de", "PATH": PATH, "TERM": "xterm", "USER": "root",
    }  # fmt: skip
    assert "HOME" not in environment_of({}, InstanceExecPost(user=1000))


@pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")
async def test_only_running_instances_run_commands(tmp_path):
    async with machines(tmp_path) as (machine,):
        await machine.add_image()
        await machine.create()
        commands = machine.instances.commands
        post = InstanceExecPost(command=["ls"], interactive=True, width=100, height=40)
        with pytest.raises(BadRequestError, match=r"^Instance is not running$"):
            commands.prepare("default", "c1", post)
        machine.driver.running["c1"] = RunStatus.FROZEN
        with pytest.raises(BadRequestError, match=r"^Instance is frozen$"):
            commands.prepare("default", "c1", post)
        machine.driver.running["c1"] = RunStatus.RUNNING
        spec, request = commands.prepare("default", "c1", post)
        assert spec.volume_dir == machine.volume("c1")
        assert (request.argv, request.cwd, request.width, request.height) == (("ls",), "/", 100, 40)
        (machine.volume("c1") / "rootfs/root").mkdir()
        assert commands.prepare("default", "c1", post)[1].cwd == "/root"
        assert commands.prepare("default", "c1", InstanceExecPost(command=["ls"], cwd="/tmp"))[1].cwd == "/tmp"
        with pytest.raises(BadRequestError):
            commands.prepare("default", "c1", InstanceExecPost(command=[]))
        with pytest.raises(BadRequestError):
            commands.prepare("default", "c1", InstanceExecPost(command=["a\0b"]))
        with pytest.raises(NotFoundError, match=r"^Instance not found$"):
            commands.prepare("default", "nope", post)
