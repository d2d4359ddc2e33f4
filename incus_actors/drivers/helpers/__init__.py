"""Programs that drivers execute, each one file, standard library only (plus `_lxc`): start-up time matters.

Own the forks, namespaces and blocking work that may not happen in the daemon. Started by `drivers/child.py` as
`python -I -S -B <file> <command> <socket number>`; must never import incus_actors.
"""
