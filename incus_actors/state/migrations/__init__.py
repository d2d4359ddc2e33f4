"""One module per schema version: `upgrade(db)` changes a sqlite-utils Database from the version before.

Owns DDL and nothing else; run only by `state.schema` on a scratch database, where the statements are captured
and become one replicated transaction. A released migration is never edited: the log of an old cluster holds its
statements for ever, and a new member must build the same tables.
"""
