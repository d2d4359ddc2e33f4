"""/1.0/instances/<n>/exec: commands over websockets (CONTRACT 9.1).

Owns the wiring of an ExecSession to the sockets of an operation and the meaning of exit codes. The process begins
when its sockets are there, everything it wrote is sent before the end markers, and the operation ends after them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from aiohttp import web

from incus_actors.drivers.base import ExecError, ExecRequest, ExecSession, InstanceSpec
from incus_actors.errors import ApiError, NotImplementedHereError
from incus_actors.gateway.websockets import (
    CONTROL,
    OperationSocket,
    Signal,
    SocketSet,
    WindowResize,
    follow_control,
    pump_stream_to_ws,
    pump_ws_to_stream,
)
from incus_actors.model.instances import InstanceExecPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, accepted, project_of, read_json, url_of
from incus_actors.tasks import spawn

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation
    from incus_actors.services.instance_exec import ExecService
    from incus_actors.services.instance_use_cases import InstanceUseCases

_log = logging.getLogger(__name__)

_SOCKETS = 4  #: stdin, stdout, stderr and control
_HANGUP = 1
_KILL = 9


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec(
            "POST", "/1.0/instances/{name}/exec", post_exec, forward="instance", project_scoped=True, upgrades=_SOCKETS
        ),
    ]


async def post_exec(request: web.Request) -> web.StreamResponse:
    """Prepare a command; it runs when the client has connected its websockets."""
    post = await read_json(request, InstanceExecPost)
    project, name = project_of(request), request.match_info["name"]
    commands = cast("InstanceUseCases", gateway(request).services.instances).commands
    spec, command = commands.prepare(project, name, post)
    if post.record_output:
        raise NotImplementedHereError("Recording the output of commands is not supported yet")
    sockets = SocketSet.for_exec(interactive=post.interactive) if post.wait_for_websocket else None
    metadata = {
        "command": post.command,
        "environment": command.environment,
        "fds": sockets.fds() if sockets is not None else {},
        "interactive": post.interactive,
    }
    who, url = caller(request), url_of("instances", name, project=project)
    publish = partial(
        gateway(request).events.lifecycle,
        "instance-exec",
        url,
        project=project,
        caller=who,
        context={"command": post.command},
        name=name,
    )

    async def run(operation: Operation) -> None:
        connected: dict[str, OperationSocket] = {}

        async def ready() -> None:
            if sockets is not None:
                connected.update(await sockets.wait_required())
            publish()

        await _run(operation, commands, spec, replace(command, ready=ready), sockets, connected)

    operation = gateway(request).operations.create(
        kind="websocket" if sockets is not None else "task",
        description="Executing command",
        project=project,
        resources={"instances": [url]},
        metadata=metadata,
        run=run,
        caller=who,
        sockets=sockets,
    )
    return accepted(operation)


async def _run(
    operation: Operation,
    commands: ExecService,
    spec: InstanceSpec,
    command: ExecRequest,
    sockets: SocketSet | None,
    connected: dict[str, OperationSocket],
) -> None:
    """Run the command, connect it, wait for its end. Raises ExecError when it can't be run at all."""
    try:
        session = await commands.start(spec, command)
    except ApiError as error:
        if sockets is not None and not connected:
            await sockets.wait_required()  # the client hears of it where it listens
        if isinstance(error, ExecError):
            operation.update({"return": error.exit_code})
        raise
    try:
        code = await _connect(session, sockets, connected)
    finally:
        await session.close()
    operation.update({"return": code})


async def _connect(session: ExecSession, sockets: SocketSet | None, connected: dict[str, OperationSocket]) -> int:
    """Pump until the process has ended and all of its output is sent; return its exit code."""
    background = []
    if sockets is not None:
        background.append(spawn(_control(session, sockets), name="exec control"))
    if session.interactive:
        background.append(spawn(_terminal_input(session, connected.get("0")), name="exec terminal"))
        outputs = [_output(session.stdout, connected.get("0"))]
    else:
        background.append(spawn(_input(session, connected.get("0")), name="exec stdin"))
        outputs = [_output(session.stdout, connected.get("1"))]
        if session.stderr is not None:
            outputs.append(_output(session.stderr, connected.get("2")))
    try:
        *_, code = await asyncio.gather(*outputs, session.wait())
    finally:
        for task in background:
            task.cancel()
    return code


async def _output(reader: asyncio.StreamReader, socket: OperationSocket | None) -> int:
    """Send a stream to its end; without a socket, read it so that the process doesn't block."""
    if socket is not None:
        return await pump_stream_to_ws(reader, socket)
    while await reader.read(65536):
        pass
    return 0


async def _input(session: ExecSession, socket: OperationSocket | None) -> None:
    if socket is None:
        session.stdin.close()
        return
    await pump_ws_to_stream(socket, session.stdin)


async def _terminal_input(session: ExecSession, socket: OperationSocket | None) -> None:
    """What is typed goes to the terminal; who closes the window hangs up."""
    if socket is None:
        return
    if not await pump_ws_to_stream(socket, session.stdin, close=False):
        session.signal(_HANGUP)


async def _control(session: ExecSession, sockets: SocketSet) -> None:
    """Window sizes and signals; a client that vanishes takes its process with it, as in Incus."""
    socket = await sockets.wait_for(CONTROL)

    def act(message: WindowResize | Signal) -> None:
        if isinstance(message, WindowResize):
            session.resize(message.width, message.height)
        else:
            session.signal(message.number)

    await follow_control(socket, act)
    session.signal(_KILL)
