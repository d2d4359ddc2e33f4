"""`incus-actors`: the operator's tool for what the stock client does not know.

Owns the click group; each command lives in a module of its own, imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

import click

from incus_actors import __version__


class LazyGroup(click.Group):
    """Imports a command only when it is asked for: a fast start."""

    commands_at: ClassVar[dict[str, str]] = {
        "actors": "incus_actors.cli.inspect:actors",
        "bench": "incus_actors.cli.bench:bench",
        "demo": "incus_actors.cli.demo:demo",
        "raft": "incus_actors.cli.inspect:raft",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *self.commands_at})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module."""
        place = self.commands_at.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, name = place.split(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Look into an incus_actors cluster, show it, measure it. Everything else: the stock `incus` client."""


if __name__ == "__main__":
    main()
