"""`incus-actors`: the operator's tool: the stock client's cluster commands, and what it does not know.

Owns the click group; each command lives in a module of its own, imported when it is used.
"""

from __future__ import annotations

from typing import Any, ClassVar

import click

from incus_actors import __version__
from incus_actors.cli.base import ClientGroup


class LazyGroup(ClientGroup):
    """All commands of the program, each imported only when it is asked for: a fast start."""

    command_class = None

    commands_at: ClassVar[dict[str, str]] = {
        "actors": "incus_actors.cli.inspect:actors",
        "admin": "incus_actors.cli.admin:admin",
        "bench": "incus_actors.cli.bench:bench",
        "chaos": "incus_actors.cli.chaos:chaos",
        "cluster": "incus_actors.cli.cluster:cluster",
        "config": "incus_actors.cli.config:config",
        "demo": "incus_actors.cli.demo:demo",
        "interaction": "incus_actors.cli.interaction:interaction",
        "raft": "incus_actors.cli.inspect:raft",
        "simulate": "incus_actors.cli.simulate:simulate",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, places={name: (place, "") for name, place in self.commands_at.items()}, **kwargs)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Form and manage an incus_actors cluster, look into it, show it, measure it.

    Instances, images, networks: the stock `incus` client.
    """


if __name__ == "__main__":
    main()
