"""Interaction scripts: a small text format that drives the sans-IO core step by step (docs/interaction.md)."""
