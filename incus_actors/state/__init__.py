"""The SQLite database that the log builds: transactions, schema, readers."""
