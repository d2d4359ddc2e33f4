"""Storage benchmark: `python benchmarks/storage.py` (root)."""

from incus_actors.cli.bench import storage

if __name__ == "__main__":
    storage()
