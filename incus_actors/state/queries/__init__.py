"""Typed read functions over the replicated state; one module per noun. They take a Reader and never write."""
