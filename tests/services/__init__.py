"""Tests of incus_actors.services."""
