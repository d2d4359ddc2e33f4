"""The front door shared by every API: access, operations, events, forwarding."""
