"""Commands inside instances (CONTRACT 9.1).

Owns what a request becomes for the driver: environment, user, directory, terminal. Called by rest/exec_routes.py on
the member that has the instance; commands run side by side, not through the instance's mailbox.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.actors.host import Host
from incus_actors.drivers.base import ExecRequest, ExecSession, InstanceSpec, RunStatus
from incus_actors.errors import BadRequestError
from incus_actors.model.instances import InstanceExecPost
from incus_actors.services.instances import InstanceService

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ExecService:
    """Prepares and starts commands."""

    def __init__(self, host: Host, instances: InstanceService) -> None:
        self._host = host
        self._instances = instances

    def prepare(self, project: str, name: str, post: InstanceExecPost) -> tuple[InstanceSpec, ExecRequest]:
        """Return where and what to run.

        Raises NotFoundError, BadRequestError "Instance is not running" / "Instance is frozen".
        """
        record = self._instances.record(project, name)
        status = self._host.driver.status(self._host.status_spec(record))
        if status is RunStatus.FROZEN:
            raise BadRequestError("Instance is frozen")
        if status is not RunStatus.RUNNING or record.phase:
            raise BadRequestError("Instance is not running")
        if not post.command:
            raise BadRequestError("No command specified")
        if any("\0" in text for text in (*post.command, *post.environment, *post.environment.values(), post.cwd)):
            raise BadRequestError("Command and environment must not contain NUL characters")
        environment = environment_of(record.expanded_config, post)
        spec = self._host.spec(record)
        home = environment.get("HOME", "/").lstrip("/")
        cwd = post.cwd or (f"/{home}" if (spec.rootfs / home).is_dir() else "/")
        return spec, ExecRequest(
            argv=tuple(post.command),
            environment=environment,
            uid=post.user,
            gid=post.group,
            cwd=cwd,
            interactive=post.interactive,
            width=post.width,
            height=post.height,
        )

    async def start(self, spec: InstanceSpec, request: ExecRequest) -> ExecSession:
        """Run it. Raises ExecError (127, 126), BadRequestError when the instance has stopped meanwhile."""
        return await self._host.driver.exec(spec, request)


def environment_of(config: Mapping[str, str], post: InstanceExecPost) -> dict[str, str]:
    """Return the whole environment: defaults, the instance's `environment.*`, then what the user gave."""
    environment = {
        key.removeprefix("environment."): value for key, value in config.items() if key.startswith("environment.")
    }
    environment.update(post.environment)
    defaults = {"PATH": PATH, "LANG": "C.UTF-8"}
    if post.user == 0:
        defaults |= {"HOME": "/root", "USER": "root"}
    return dict(sorted({**defaults, **environment}.items()))
