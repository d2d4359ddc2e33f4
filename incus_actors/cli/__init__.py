"""Command lines: incus-actorsd (daemon) and incus-actors (operator tool)."""
