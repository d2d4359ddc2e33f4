"""REST shapes and configuration keys as data; no behaviour."""
