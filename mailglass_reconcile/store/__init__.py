"""Everything that is only about Postgres: connections, tables, migrations."""
