"""Overloads of Postgres's own functions and operators, as a role plants them that may only create objects in `public`.

A call of a polymorphic function, or of one whose arguments are converted, has a better match in an overload for the
arguments' own types, wherever `public` stands in the search path. The functions and operators come from Postgres's
catalog: those whose names are words of our modules and of our schema. Types and relations of these names are planted
too; they matter if `public` comes before `pg_catalog`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import mailglass_reconcile
from mailglass_reconcile.store.schema import script

TYPES = (
    *("text", "character varying", "name", '"char"', "text[]", "uuid", "uuid[]", "boolean", "smallint", "integer"),
    *("bigint", "double precision", "numeric", "oid", "regclass", "jsonb", "json", "interval"),
    *("timestamp without time zone", "timestamp with time zone"),
)
"""The types of our columns, parameters and results, and of those of the catalog."""

_FUNCTIONS = sa.text("""
SELECT proname::text AS name, prokind = 'a' AS is_aggregate, proretset AS returns_set,
       CAST(CAST(proargtypes AS regtype[]) AS text[]) AS arguments, prorettype::regtype::text AS result
  FROM pg_proc
 WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind IN ('f', 'a') AND pronargs > 0
   AND (prokind = 'f' OR prorettype <> 'record'::regtype) AND proname = ANY (:words)
   AND NOT EXISTS (SELECT FROM pg_type
                    WHERE oid IN (SELECT prorettype UNION SELECT unnest(proargtypes))
                      AND typtype = 'p' AND typname NOT IN ('void', 'record') AND typname NOT LIKE 'any%')
 ORDER BY proname, oid
""")
_OPERATORS = sa.text("""
SELECT oprname::text AS name, oprleft::regtype::text AS left, oprright::regtype::text AS right,
       oprresult::regtype::text AS result
  FROM pg_operator
 WHERE oprkind = 'b' AND oprname = ANY (:operators)
   AND (oprleft::regtype::text = ANY (:types) OR oprleft IN (SELECT oid FROM pg_type WHERE typtype = 'p'))
 ORDER BY oprname, oid
""")
_TYPES = sa.text("""
SELECT typname::text FROM pg_type
 WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typelem = 0 AND typname = ANY (:words)
""")
_RELATIONS = sa.text("""
SELECT c.relname::text AS name, string_agg(quote_ident(a.attname), ', ') AS columns
  FROM pg_class AS c
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
  JOIN pg_type AS t ON t.oid = a.atttypid AND t.typtype <> 'p'
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname = ANY (:words) GROUP BY 1
""")
_OWN = sa.text("""
SELECT proname::text AS name, CAST(CAST(proargtypes AS regtype[]) AS text[]) AS arguments,
       CASE WHEN pg_get_function_result(oid) = 'record' THEN 'bigint' ELSE pg_get_function_result(oid) END AS result
  FROM pg_proc
 WHERE pronamespace = CAST(:schema AS regnamespace) AND proname LIKE 'mailglass\\_%' AND pronargs > 0
 ORDER BY proname, oid
""")
_CASTS = sa.text("""
SELECT casttarget::regtype::text, array_agg(castsource::regtype::text) FROM pg_cast WHERE castcontext = 'i' GROUP BY 1
""")

_CALLED = sa.text("""
SELECT p.oid::regprocedure::text
  FROM pg_stat_user_functions AS s JOIN pg_proc AS p ON p.oid = s.funcid
 WHERE p.proowner = CAST(:role AS regrole) AND s.calls > 0 ORDER BY 1
""")

_STEP = '"planted step"'
_CREATE_CALL = """
CREATE FUNCTION public."planted call"() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RETURN true; END$$
"""


def plant(admin: sa.Engine, planter: sa.Engine) -> int:
    """Plant the overloads by *planter*, whose role may create objects in `public`, and return their number.

    *admin* is an engine of a superuser on the same database.
    """
    statements = [_CREATE_CALL, *dict.fromkeys(_statements(admin))]
    with planter.begin() as connection:
        driver = connection.execution_options(no_parameters=True)
        for start in range(0, len(statements), 1_000):
            driver.exec_driver_sql(";\n".join(statements[start : start + 1_000]))
    return len(statements)


def plant_own(admin: sa.Engine, planter: sa.Engine, schema: str = "public", *, as_procedures: bool = False) -> int:
    """Plant overloads of our own functions by *planter*, and return their number.

    They take every type that converts, a VARIADIC list, and polymorphic arguments. A call that resolves to one of
    *as_procedures* is an error of the parser (42809), so that nothing has to be run.
    """
    statements = [
        _create_own(schema, function, arguments, as_procedure=as_procedures)
        for function, overloads in _own_overloads(admin, schema)
        for arguments in overloads
    ]
    with planter.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(";\n".join(statements))
    return len(statements)


def plant_own_with_default(admin: sa.Engine, planter: sa.Engine, schema: str = "public") -> None:
    """Plant an overload of each of our functions that has one more argument with a default: each call is ambiguous."""
    _, functions = _read_own(admin, schema)
    statements = [
        _create_own(schema, function, (*function.arguments, "integer DEFAULT 0"), as_procedure=False)
        for function in functions
    ]
    with planter.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(";\n".join(statements))


def _read_own(admin: sa.Engine, schema: str) -> tuple[dict[str, list[str]], Sequence[sa.Row[Any]]]:
    """Return the implicit casts, and our functions."""
    with admin.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")  # others may be planted already
        return dict(connection.execute(_CASTS).all()), connection.execute(_OWN, {"schema": schema}).all()  # type: ignore[arg-type]


def _own_overloads(admin: sa.Engine, schema: str) -> Iterator[tuple[sa.Row[Any], list[tuple[str, ...]]]]:
    """Yield each of our functions with the arguments of its overloads."""
    casts, functions = _read_own(admin, schema)
    for function in functions:
        own = tuple(function.arguments)
        accepted = [_converted(argument, casts) for argument in own]
        overloads = [signature for signature in _signatures(accepted) if signature != own]
        for place, argument in enumerate(own):
            polymorphic = "anyarray" if argument.endswith("[]") else "anyelement"
            overloads.append((*own[:place], polymorphic, *own[place + 1 :]))
        if not own[-1].endswith("[]"):
            overloads.append((*own[:-1], f"VARIADIC {own[-1]}[]"))
        yield function, overloads


def _converted(type_: str, casts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a type, those that Postgres converts to it in a call, and those that a literal may be taken for."""
    array = "[]" if type_.endswith("[]") else ""
    sources = [
        f"{source}{array}" for source in casts.get(type_.removesuffix("[]"), ()) if source in (*TYPES, "date", "real")
    ]
    return list(dict.fromkeys([type_, *sources, "text", "character varying", "smallint"]))


def _create_own(schema: str, function: sa.Row[Any], arguments: Sequence[str], *, as_procedure: bool) -> str:
    head = f'"{schema}"."{function.name}"({", ".join(arguments)})'
    if as_procedure:
        return f"CREATE PROCEDURE {head} LANGUAGE sql AS ''"
    value = "" if function.result.startswith("TABLE") or function.result == "void" else " NULL"
    return f"CREATE FUNCTION {head} RETURNS {function.result} LANGUAGE plpgsql AS $$BEGIN RETURN{value}; END$$"


def called(admin: sa.Engine, role: str) -> list[str]:
    """Return the overloads of a role that sessions have called; a session reports its calls when it ends."""
    with admin.connect() as connection:
        return list(connection.execute(_CALLED, {"role": role}).scalars())


def _statements(admin: sa.Engine) -> Iterator[str]:
    words, operators = _read_names()
    with admin.connect() as connection:
        casts = dict(connection.execute(_CASTS).all())
        functions = connection.execute(_FUNCTIONS, {"words": words}).all()
        binary_operators = connection.execute(_OPERATORS, {"operators": operators, "types": list(TYPES)}).all()
        types = connection.execute(_TYPES, {"words": words}).scalars().all()
        relations = connection.execute(_RELATIONS, {"words": words}).all()
    overloads = {}
    for function in functions:
        for arguments in _signatures([_accepted(argument, casts) for argument in function.arguments]):
            overloads.setdefault((function.name, arguments), function)
    for (_, arguments), function in overloads.items():
        yield from _create_overload(function, arguments)
    operands = {}
    for operator in binary_operators:
        # Of a literal beside another type, Postgres first takes it for that type.
        pairs = [(type_, type_) for type_ in (operator.left, operator.right) if not type_.startswith("any")]
        for pair in (*pairs, *product(_accepted(operator.left, casts), _accepted(operator.right, casts))):
            operands.setdefault((operator.name, pair), operator)
    for (_, pair), operator in operands.items():
        yield from _create_operator(operator, *pair)
    for type_ in types:
        yield f'CREATE DOMAIN public."{type_}" AS pg_catalog."{type_}" CHECK (public."planted call"())'
    for relation in relations:
        yield (
            f'CREATE VIEW public."{relation.name}" AS'  # noqa: S608
            f' SELECT {relation.columns} FROM pg_catalog."{relation.name}" WHERE public."planted call"()'
        )


def _signatures(accepted: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yield the arguments of overloads: every combination of up to two, and of more each type in each place."""
    if len(accepted) < 3:
        yield from product(*accepted)
        return
    first = [types[0] for types in accepted]
    for place, types in enumerate(accepted):
        yield from ((*first[:place], type_, *first[place + 1 :]) for type_ in types)


def _accepted(type_: str, casts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the types of the arguments that Postgres accepts for one: it, those that it converts, and literals."""
    if type_.endswith("range"):
        return []
    if type_.strip('"').startswith("any"):
        return [name for name in TYPES if name.endswith("]") or not type_.endswith("array")]
    return [name for name in dict.fromkeys([type_, *casts.get(type_, ()), "text"]) if name in TYPES or name == type_]


def _create_overload(function: sa.Row[Any], arguments: Sequence[str]) -> Iterator[str]:
    result = _result(function.result, arguments)
    if function.is_aggregate:
        yield _create_function(_STEP, (result, *arguments), result)
        yield (
            f'CREATE AGGREGATE public."{function.name}" ({", ".join(arguments)})'
            f" (SFUNC = public.{_STEP}, STYPE = {result})"
        )
    else:
        setof = "SETOF " if function.returns_set else ""
        yield _create_function(f'"{function.name}"', arguments, setof + result)


def _create_operator(operator: sa.Row[Any], left: str, right: str) -> Iterator[str]:
    name = f'"planted {operator.name}"'
    yield _create_function(name, (left, right), _result(operator.result, (left, right)))
    yield f"CREATE OPERATOR public.{operator.name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.{name})"


def _create_function(name: str, arguments: Iterable[str], result: str) -> str:
    # Postgres counts no calls of an aggregate's own function.
    call = 'PERFORM public."planted call"();' if name == _STEP else ""
    value = "" if result.startswith("SETOF ") or result == "void" else " NULL"
    return (
        f"CREATE FUNCTION public.{name}({', '.join(arguments)}) RETURNS {result}"
        f" LANGUAGE plpgsql AS $$BEGIN {call} RETURN{value}; END$$"
    )


def _read_names() -> tuple[list[str], list[str]]:
    """Return the words and the operators of the package's modules and its schema."""
    package = Path(mailglass_reconcile.__file__).parent
    paths = [*package.rglob("*.py"), *script.find_folder().rglob("*.sql")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    operators = set(re.findall(r"[-+*/<>=~!@#%^&|?]+", text))
    return sorted(set(re.findall(r"[a-z]\w+", text))), sorted(operators | {"~~", "!~~"})


def _result(result: str, arguments: Sequence[str]) -> str:
    """Return the result of an overload, of a polymorphic function by its first argument."""
    if result in ("anyarray", "anycompatiblearray"):
        return arguments[0] if arguments[0].endswith("]") else f"{arguments[0]}[]"
    return arguments[0].removesuffix("[]") if result.strip('"').startswith("any") else result
