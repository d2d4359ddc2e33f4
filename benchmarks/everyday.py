"""Everyday benchmark: `python benchmarks/everyday.py` (root)."""

from incus_actors.cli.bench import everyday

if __name__ == "__main__":
    everyday()
