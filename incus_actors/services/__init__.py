"""Use cases: validate, propose, act."""
