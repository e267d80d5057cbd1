"""Relations and functions that another role plants under our names, and the proof that a superuser has run them.

The proof is what such a role wants: a program of the server. A read-only transaction does not prevent it, and a call
leaves no trace in the database that a rollback could take away.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.store.schema import revision

NAMES = (*revision.TABLES, revision.VERSION_TABLE, *sorted(revision.MAILGLASS_TABLES))

# A program, if the caller may run one; IMMUTABLE, so that the planner calls it.
_PAYLOAD = """
CREATE FUNCTION public.planted_program(place text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
    EXECUTE format('COPY (SELECT %L) TO PROGRAM ''cat >> PROOF''', place);
  END IF;
  RETURN true;
END $$;
CREATE FUNCTION public.planted(place text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN public.planted_program(place);
END $$;
CREATE FUNCTION public.planted_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM public.planted_program('trigger on ' || TG_TABLE_NAME);
  RETURN NULL;
END $$;
"""

_COLUMNS = sa.text("""
SELECT c.relname::text AS name, a.attname::text AS column, format_type(a.atttypid, a.atttypmod) AS type
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relname = ANY (:names) AND c.relkind = 'r' ORDER BY c.relname, a.attnum
""")

_FUNCTIONS = sa.text("""
SELECT proname::text AS name, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
  FROM pg_proc WHERE proname LIKE 'mailglass\\_%' AND prokind = 'f' ORDER BY proname
""")


class Planter:
    """A role that may create objects in `public`, and what it has planted."""

    def __init__(self, migrated: sa.Engine, make_engine: Callable[[], sa.Engine]) -> None:
        """Learn the names from a *migrated* database; *make_engine* connects as the role to the one to plant in."""
        with migrated.connect() as connection:
            self._columns = connection.execute(_COLUMNS, {"names": list(NAMES)}).all()
            self._functions = connection.execute(_FUNCTIONS).all()
        self._engine = make_engine()
        handle, name = tempfile.mkstemp()
        Path(name).chmod(0o666)
        self.proof = Path(name)
        del handle
        self._run(_PAYLOAD.replace("PROOF", name))

    def plant_views(self, names: Sequence[str]) -> None:
        """Plant a view under each name, which runs the program when it is planned and when it is read."""
        for name in names:
            columns = ", ".join(f"{self._value(name, row)} AS {row.column}" for row in self._of(name))
            condition = f"public.planted('planning {name}') AND public.planted_program('{name}')"
            self._run(f"CREATE VIEW public.{name} AS SELECT {columns} WHERE {condition}")

    def plant_tables(self, names: Sequence[str]) -> None:
        """Plant a table under each name, with a trigger, and an index that runs the program when a query is planned."""
        for name in names:
            columns = ", ".join(f"{row.column} {row.type}" for row in self._of(name))
            self._run(f"CREATE TABLE public.{name} ({columns})")
            if name == revision.VERSION_TABLE:
                self._run(f"INSERT INTO public.{name} VALUES ('{revision.VERSION}')")  # noqa: S608
            self._run(f"CREATE INDEX ON public.{name} ((public.planted('planning {name}')))")
            self._run(
                f"CREATE TRIGGER planted BEFORE INSERT OR UPDATE OR DELETE ON public.{name}"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.planted_trigger();"
                f" GRANT ALL ON public.{name} TO PUBLIC"
            )

    def plant_functions(self) -> None:
        """Plant each function of ours that is not there, with exactly its arguments."""
        with self._engine.connect() as connection:
            existing = {function.name for function in connection.execute(_FUNCTIONS)}
        for function in self._functions:
            if function.name in existing:
                continue
            returns = "" if function.result == "trigger" else f"PERFORM public.planted_program('{function.name}');"
            result = "" if "TABLE" in function.result or function.result in ("void", "record") else " NULL"
            self._run(
                f"CREATE FUNCTION public.{function.name}({function.arguments}) RETURNS {function.result}"
                f" LANGUAGE plpgsql AS $$BEGIN {returns} RETURN{result}; END$$"
            )

    def called(self) -> str:
        """Return the lines that the program has written."""
        return self.proof.read_text()

    def close(self) -> None:
        """Remove the proof."""
        self._engine.dispose()
        self.proof.unlink()

    def _of(self, name: str) -> list[sa.Row[Any]]:
        return [row for row in self._columns if row.name == name]

    def _value(self, name: str, row: sa.Row[Any]) -> str:
        return f"CAST('{revision.VERSION}' AS text)" if name == revision.VERSION_TABLE else f"CAST(NULL AS {row.type})"

    def _run(self, sql: str) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
