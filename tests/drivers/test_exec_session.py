"""Real commands in real instances, by both drivers."""

from __future__ import annotations

import asyncio
import signal

import pytest
from drivers_kit import PATH, Machine

from incus_actors.drivers.base import DriverError, ExecError, ExecRequest
from incus_actors.errors import BadRequestError
from incus_actors.tasks import spawn

pytestmark = pytest.mark.real


async def test_output_errors_and_exit_code(machine: Machine) -> None:
    spec = await machine.create("g1-exec")
    await machine.driver.start(spec)
    assert await machine.run(spec, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


async def test_stdin_passes_through_whole(machine: Machine) -> None:
    spec = await machine.create("g1-stdin")
    await machine.driver.start(spec)
    session = await machine.driver.exec(spec, ExecRequest(("cat",), PATH))
    data = bytes(range(256)) * 4096 * 4  # 4 MiB: more than all buffers on the way

    async def feed() -> None:
        session.stdin.write(data)
        await session.stdin.drain()
        session.stdin.close()

    feeder = spawn(feed(), name="feeder")
    assert await session.stdout.read() == data
    await feeder
    assert await session.wait() == 0
    await session.close()


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("no-such-command",), 127, "Command not found"),
        (("/no/such/command",), 127, "Command not found"),
        (("/etc/passwd",), 126, "Command not executable"),
        (("/",), 126, "Command not executable"),
    ],
)
async def test_what_cannot_run(machine: Machine, argv: tuple[str, ...], code: int, text: str) -> None:
    spec = await machine.create("g1-missing")
    await machine.driver.start(spec)
    with pytest.raises(ExecError) as caught:
        await machine.driver.exec(spec, ExecRequest(argv, PATH))
    assert (str(caught.value), caught.value.exit_code) == (text, code)


async def test_signals_reach_the_process_and_give_128_plus_n(machine: Machine) -> None:
    spec = await machine.create("g1-signals")
    await machine.driver.start(spec)
    session = await machine.driver.exec(
        spec, ExecRequest(("sh", "-c", "trap 'exit 7' USR1; echo up; sleep 60 & wait"), PATH)
    )
    assert await session.stdout.readline() == b"up\n"
    session.signal(signal.SIGUSR1)
    assert await session.wait() == 7
    await session.close()
    session = await machine.driver.exec(spec, ExecRequest(("sleep", "60"), PATH))
    session.signal(signal.SIGTERM)
    assert await session.wait() == 143
    with pytest.raises(ValueError, match="no signal"):
        session.signal(4711)
    await session.close()


async def test_a_terminal_has_size_name_and_job_control(machine: Machine) -> None:
    spec = await machine.create("g1-tty")
    await machine.driver.start(spec)
    session = await machine.driver.exec(
        spec,
        ExecRequest(
            ("sh", "-c", "stty size; tty; read x; stty size; cat"), PATH, interactive=True, width=100, height=40
        ),
    )
    assert session.stderr is None
    assert await session.stdout.readline() == b"40 100\r\n"
    assert (await session.stdout.readline()).startswith(b"/dev/pts/")
    session.resize(120, 50)
    session.stdin.write(b"go\n")
    assert await session.stdout.readline() == b"go\r\n"  # the terminal's echo
    assert await session.stdout.readline() == b"50 120\r\n"
    session.stdin.write(b"\x03")  # ctrl-c ends cat and the shell
    assert await session.wait() == 130
    await session.close()


async def test_a_background_process_does_not_hold_the_session(machine: Machine) -> None:
    spec = await machine.create("g1-background")
    await machine.driver.start(spec)
    async with asyncio.timeout(20):
        code, output, _ = await machine.run(spec, "sh", "-c", "sleep 300 & echo done")
        assert (code, output) == (0, b"done\n")
        code, output, _ = await machine.run(spec, "sh", "-c", "sleep 300 & echo done", interactive=True)
        assert (code, output) == (0, b"done\r\n")


async def test_closing_kills_the_command(machine: Machine) -> None:
    spec = await machine.create("g1-close")
    await machine.driver.start(spec)
    session = await machine.driver.exec(spec, ExecRequest(("sleep", "4242"), PATH))
    await session.close()
    assert await session.wait() == 137
    code, output, _ = await machine.run(spec, "ps")
    assert code == 0
    assert b"sleep 4242" not in output


async def test_environment_and_directory(machine: Machine) -> None:
    spec = await machine.create("g1-env")
    await machine.driver.start(spec)
    environment = {**PATH, "GREETING": "hello world", "EMPTY": ""}
    code, output, _ = await machine.run(
        spec, "sh", "-c", 'echo "$GREETING:$EMPTY:$PWD"; env | grep -c INCUS', environment=environment, cwd="/tmp"
    )
    assert (code, output) == (1, b"hello world::/tmp\n0\n")


async def test_a_directory_that_is_not_there_is_the_root(machine: Machine) -> None:
    spec = await machine.create("g1-cwd")
    await machine.driver.start(spec)
    assert await machine.run(spec, "sh", "-c", "echo $PWD", cwd="/nowhere/at/all") == (0, b"/\n", b"")


async def test_nothing_of_the_daemon_is_inherited(machine: Machine) -> None:
    spec = await machine.create("g1-fds")
    await machine.driver.start(spec)
    for interactive in (False, True):
        code, output, _ = await machine.run(
            spec,
            "sh",
            "-c",
            "for n in $(seq 0 99); do readlink /proc/$$/fd/$n && echo $n; done; true",
            interactive=interactive,
        )
        assert code == 0
        open_numbers = [line for line in output.split() if line.isdigit()]
        # 10 is a shell's own copy of its terminal
        assert set(open_numbers) - {b"10"} == {b"0", b"1", b"2"}, output


async def test_not_running(machine: Machine) -> None:
    spec = await machine.create("g1-stopped")
    with pytest.raises(BadRequestError, match=r"^Instance is not running$"):
        await machine.driver.exec(spec, ExecRequest(("true",), PATH))


async def test_frozen(machine: Machine) -> None:
    spec = await machine.create("g1-frozen")
    await machine.driver.start(spec)
    await machine.driver.freeze(spec)
    with pytest.raises(BadRequestError, match=r"^Instance is frozen$"):
        await machine.driver.exec(spec, ExecRequest(("true",), PATH))
    await machine.driver.unfreeze(spec)
    assert (await machine.run(spec, "true"))[0] == 0


async def test_many_at_once(machine: Machine) -> None:
    spec = await machine.create("g1-many")
    await machine.driver.start(spec)
    results = await asyncio.gather(*(machine.run(spec, "echo", str(number)) for number in range(8)))
    assert [output for _, output, _ in results] == [f"{number}\n".encode() for number in range(8)]


async def test_another_user(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-user")
    await lxc_machine.driver.start(spec)
    code, output, _ = await lxc_machine.run(spec, "id", uid=1000, gid=1000)
    assert (code, output) == (0, b"uid=1000(user) gid=1000(user)\n")
    code, output, _ = await lxc_machine.run(spec, "sh", "-c", "tty; id -u", uid=1000, gid=1000, interactive=True)
    assert output.startswith(b"/dev/pts/")


async def test_nothing_runs_before_it_is_ready(machine: Machine) -> None:
    """The helper is there already, the command is not; and it never comes if what it waits for fails."""
    running = await machine.create("g1-ready")
    await machine.driver.start(running)
    may = asyncio.Event()
    request = ExecRequest(("touch", "/begun"), PATH, ready=may.wait)
    starting = spawn(machine.driver.exec(running, request), name="exec")
    await asyncio.sleep(0.2)
    assert (await machine.run(running, "ls", "/begun"))[0] != 0
    may.set()
    session = await starting
    assert await session.wait() == 0
    await session.close()
    assert (await machine.run(running, "rm", "/begun"))[0] == 0

    async def never() -> None:
        raise DriverError("the client has gone")

    with pytest.raises(DriverError, match="the client has gone"):
        await machine.driver.exec(running, ExecRequest(("touch", "/begun"), PATH, ready=never))
    assert (await machine.run(running, "ls", "/begun"))[0] != 0
