"""A database that refuses to commit some links."""

from database import Database

_REFUSING = """
CREATE SEQUENCE refusals;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$ BEGIN
  IF {condition} THEN RAISE SQLSTATE '{state}' USING MESSAGE = 'refused on purpose'; END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON mailglass_events DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.type = 'reconciled') EXECUTE FUNCTION refuse();
"""


def refusing(db: Database, state: str, condition: str) -> None:
    """Refuse a COMMIT with this SQLSTATE if a new link meets the condition."""
    with db.engine.begin() as connection:
        script = _REFUSING.format(state=state, condition=condition)
        connection.execution_options(no_parameters=True).exec_driver_sql(script)


def forgiving(db: Database) -> None:
    """Stop refusing."""
    db.run("DROP FUNCTION IF EXISTS refuse CASCADE")
    db.run("DROP SEQUENCE IF EXISTS refusals")
