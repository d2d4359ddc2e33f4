"""Pure rules: validation, placement, roles; builders of the transactions that must last."""
