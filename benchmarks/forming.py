"""Forming benchmark: `python benchmarks/forming.py` (root)."""

from incus_actors.cli.bench import forming

if __name__ == "__main__":
    forming()
