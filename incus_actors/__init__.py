"""incus_actors: Incus-compatible clusters as an actor system over a Raft-replicated SQLite database."""

__version__ = "0.2.0"
