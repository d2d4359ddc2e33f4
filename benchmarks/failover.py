"""Failover benchmark: `python benchmarks/failover.py --rounds 20 --plot docs/failover.png` (root)."""

from incus_actors.cli.bench import failover

if __name__ == "__main__":
    failover()
