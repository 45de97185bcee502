"""Postgres: engine, tables, migrations, locks, wake-ups and the embedded server."""
