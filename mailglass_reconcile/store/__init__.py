"""Everything that is only about Postgres: connections, the schema, tables, queries, migrations."""
