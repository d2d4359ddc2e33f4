"""A seeded simulator of the consensus core: virtual network, disks and clocks, real code (CONSENSUS 4.1)."""
