"""A database that has too many connections when the first two sends are recorded."""

TWICE = (
    "CREATE SEQUENCE tries",
    "CREATE FUNCTION refuse_twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    "   IF nextval('public.tries') < 3 THEN RAISE 'sorry, too many clients already' USING ERRCODE = '53300'; END IF;"
    "   RETURN NEW; END $$",
    "CREATE TRIGGER refuse_twice BEFORE INSERT ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION refuse_twice()",
)
TRIES = "SELECT last_value FROM tries"
