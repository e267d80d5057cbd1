"""The JSON schemas in docs/ have every field and every value that the commands print."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest

import pages
from mailglass_reconcile import Erased, PruneResult, SweepResult
from mailglass_reconcile.handlers.dispatcher import DispatchResult
from mailglass_reconcile.ops.checks import Finding
from mailglass_reconcile.ops.deliveries import Delivery
from mailglass_reconcile.ops.explanation import Explanation
from mailglass_reconcile.ops.prune_preview import Preview
from mailglass_reconcile.ops.status import Status
from mailglass_reconcile.rules import states
from mailglass_reconcile.store import runs
from mailglass_reconcile.store.listing import ListedEvent

pytestmark = pytest.mark.version_independent

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (pages.ROOT / "docs/schemas").glob("*.json")}
OPTIONAL = {"reconciled_from_event_id"}  # a message about an attached event has none

ADDED = {"explain": {"delivery"}, "orphans": {"summary"}, "prune": {"status"}}
"""What a command adds to the fields of its result."""
RESULTS = {
    "erase": Erased, "explain": Explanation, "orphans": ListedEvent, "prune": PruneResult,
    "prune_step": Preview, "status": Status,
    "sweep": SweepResult,
}  # fmt: skip

WORDS = {
    "kind": {*runs.KINDS}, "origin": {*get_args(runs.Origin)}, "verdict": {*states.MATCH_STATES, None},
    ("explain", "state"): {*states.EVENT_STATES, None}, ("orphans", "state"): {*states.OPEN_STATES},
    ("find", "kind"): {"delivery", "event"}, ("find", "state"): {*states.EVENT_STATES},
    ("status", "state"): {*states.OPEN_STATES} - {"expired"}, ("status", "status"): {*states.RUN_STATUSES},
    ("sweep", "status"): {*get_args(states.SweepStatus)}, ("doctor", "status"): {*get_args(states.FindingStatus)},
}  # fmt: skip


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object whose fields a schema describes."""
    if isinstance(schema, dict):
        if "required" in schema and "properties" in schema:
            yield schema
        schema = list(schema.values())
    for value in schema if isinstance(schema, list) else []:
        yield from objects(value)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_field_of_a_schema_is_required(name):
    """Fields are only added, so a program may rely on each."""
    for described in objects(SCHEMAS[name]):
        assert set(described["properties"]) - OPTIONAL == set(described["required"])


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_schema_has_the_fields_of_the_result(name):
    """The fields at its top level are exactly those."""
    fields = {field.name for field in dataclasses.fields(RESULTS[name])} | ADDED.get(name, set())
    assert set(SCHEMAS[name]["properties"]) == fields


def test_a_record_has_the_same_fields_wherever_it_is_printed():
    result = {tuple(row["properties"]["kind"].values()): set(row["properties"]) for row in SCHEMAS["find"]["oneOf"]}
    delivery = {field.name for field in dataclasses.fields(Delivery)}
    assert result["delivery",] == delivery | {"kind", "id"}
    assert result["event",] == set(SCHEMAS["orphans"]["properties"]) | {"kind", "id"}
    assert set(SCHEMAS["explain"]["properties"]["delivery"]["properties"]) == delivery


def test_the_schemas_of_findings_and_counts_have_their_fields():
    findings = SCHEMAS["doctor"]["properties"]["findings"]["items"]
    assert set(findings["properties"]) == set(Finding("", "ok", "").as_dict())
    counts = SCHEMAS["dispatch"]["oneOf"][0]["properties"]
    assert set(counts) == {field.name for field in dataclasses.fields(DispatchResult)}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_has_every_value_of_a_field(name):
    """Kinds and origins of runs, states and statuses are those of the code."""
    for object_schema in objects(SCHEMAS[name]):
        for field, described in object_schema["properties"].items():
            words = WORDS.get((name, field)) or WORDS.get(field)
            if words and "enum" in described:
                assert set(described["enum"]) == words, field
