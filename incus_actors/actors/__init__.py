"""The actor runtime (mailboxes, supervision, references) and the actors of a member. User guide: docs/actors.md."""
