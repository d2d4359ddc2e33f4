"""Hand-written Raft: a sans-IO core and the driver that gives it disk, network and time."""
