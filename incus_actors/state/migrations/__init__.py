"""One module per schema version: `upgrade(db)` changes a sqlite-utils Database from the version before.

Owns DDL and nothing else; run only by `capture` on a scratch database, and what they do there is written into
statements.json, from which `state.schema` makes the replicated transactions. A released migration is never edited: the log of an old cluster holds its
statements for ever, and a new member must build the same tables.
"""
