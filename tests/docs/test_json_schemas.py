"""The JSON schemas in docs/ are those of what the commands print."""

import json

import json_schemas
import pytest

import pages

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (pages.ROOT / "docs/schemas").glob("*.json")}
OPTIONAL = {"reconciled_from_event_id"}  # a message about an attached event has none


def objects(schema):
    """Yield every object whose fields a schema describes."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        schema = list(schema.values())
    for value in schema if isinstance(schema, list) else []:
        yield from objects(value)


def test_each_record_that_a_command_prints_has_a_schema():
    assert SCHEMAS.keys() == json_schemas.PRINTED.keys()


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_field_of_a_schema_is_required_and_later_ones_are_allowed(name):
    """Fields are only added, so a program may rely on each."""
    for described in objects(SCHEMAS[name]):
        assert set(described["properties"]) - OPTIONAL == set(described["required"])
        assert described.get("additionalProperties", True) is True
