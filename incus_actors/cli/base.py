"""What all commands of the client side share: flags, error texts, aliases and lazily imported commands.

Owns how a command fails: one line "Error: …" and exit code 1, as the stock client. Every noun's module uses
`ClientGroup` and `ClientCommand`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import click

from incus_actors.cli import remotes
from incus_actors.cli.api_client import ApiClient, ApiFailureError, UnreachableError


@dataclass(slots=True)
class Flags:
    """The flags that every command takes."""

    project: str = ""
    force_local: bool = False
    quiet: bool = False
    debug: bool = False
    verbose: bool = False


def _keep(context: click.Context, option: click.Parameter, value: Any) -> Any:
    if value:
        setattr(flags(context), str(option.name), value)
    return value


def flags(context: click.Context | None = None) -> Flags:
    """Return the flags of the running command."""
    found = (context or click.get_current_context()).find_root().ensure_object(Flags)
    assert isinstance(found, Flags)
    return found


def _global_options() -> list[click.Parameter]:
    return [
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=_keep, help="Show all debug messages"),
        click.Option(
            ["--force-local"],
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Force using the local unix socket",
        ),
        click.Option(["--project"], expose_value=False, callback=_keep, help="Override the source project"),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Don't show progress information",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Show all information messages",
        ),
    ]


class UsageFailedError(click.ClickException):
    """Wrong arguments: the help, then the reason."""

    def __init__(self, context: click.Context | None, message: str) -> None:
        super().__init__(message)
        self.context = context

    def show(self, file: Any = None) -> None:
        """Print both."""
        if self.context is not None:
            click.echo(self.context.get_help(), file=file)
        click.echo(f"Error: {self.message}", err=True)


class _Settings:
    context_settings: ClassVar[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class ClientCommand(click.Command):
    """A command with the global flags, that reports wrong arguments as the stock client does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", _Settings.context_settings)
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse. Raises UsageFailedError."""
        try:
            return super().make_context(*args, **kwargs)
        except click.NoSuchOption as problem:
            flag = problem.option_name
            unknown = f"flag: {flag}" if flag.startswith("--") else f"shorthand flag: '{flag[1:]}' in {flag}"
            raise UsageFailedError(None, f"unknown {unknown}") from None
        except click.MissingParameter as problem:
            if problem.param is not None and problem.param.param_type_name == "argument":
                raise UsageFailedError(problem.ctx, "Invalid number of arguments") from None
            raise
        except click.UsageError as problem:
            if "unexpected extra argument" in problem.message:
                raise UsageFailedError(problem.ctx, "Invalid number of arguments") from None
            raise UsageFailedError(None, problem.message) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run; what the API says becomes the error line."""
        try:
            return super().invoke(ctx)
        except (ApiFailureError, UnreachableError) as failure:
            raise click.ClickException(str(failure)) from None


class ClientGroup(click.Group):
    """A group of commands, each imported when it is asked for.

    `places` maps a command's name to ("module:attribute", help in one line); `aliases` other names to it.
    """

    command_class: type[click.Command] | None = ClientCommand
    places: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(
        self,
        *args: Any,
        places: dict[str, tuple[str, str]] | None = None,
        aliases: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("context_settings", _Settings.context_settings)
        super().__init__(*args, **kwargs)
        self._places = {**self.places, **(places or {})}
        self._aliases = aliases or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *self._places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module."""
        cmd_name = self._aliases.get(cmd_name, cmd_name)
        place = self._places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, name = place[0].split(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = []
        for name in self.list_commands(ctx):
            known = self._places.get(name, ("", ""))[1]
            command = None if known else self.get_command(ctx, name)
            rows.append((name, known if command is None else command.get_short_help_str(90)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageFailedError in the stock client's words."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UsageFailedError(None, f'unknown command "{args[0]}" for "{ctx.command_path}"')
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run the program: errors are one line, and exit code 1."""
        extra.pop("standalone_mode", None)
        try:
            code = super().main(args, standalone_mode=False, **extra)
        except UsageFailedError as problem:
            problem.show()
            sys.exit(1)
        except click.UsageError as problem:  # of a command that is not the stock client's
            problem.show()
            sys.exit(problem.exit_code)
        except click.ClickException as problem:
            click.echo(f"Error: {problem.format_message()}", err=True)
            sys.exit(1)
        except click.Abort:
            click.echo("Aborted", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


ClientGroup.group_class = ClientGroup


# -- the server that a command talks to -------------------------------------------------------------------------------


def server(remote: str = "") -> ApiClient:
    """Return a client of the remote that the command named ("" is the default one). Raises ClickException."""
    return named_server(remote)[1]


def named_server(remote: str = "") -> tuple[str, ApiClient]:
    """Return (its name, a client of it)."""
    chosen = flags()
    name, client = remotes.connect(remote, force_local=chosen.force_local)
    if chosen.project:
        client.project = chosen.project
    return name, client


def on_server(text: str, what: str = "") -> tuple[ApiClient, str]:
    """Return (client, name) of "[<remote>:]<name>". Raises ClickException "Missing `what`" without a name."""
    remote, name = remotes.split(text)
    if not name and what:
        raise click.ClickException(f"Missing {what}")
    return server(remote), name


def remote_of(text: str) -> str:
    """Return the remote of an optional "[<remote>:]" argument. Raises ClickException if there is more in it."""
    remote, rest = remotes.split(text)
    if rest:
        raise click.ClickException("Invalid number of arguments" if remote else f'The remote "{rest}" needs a ":"')
    return remote
