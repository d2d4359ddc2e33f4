"""Tests of incus_actors.domain."""
