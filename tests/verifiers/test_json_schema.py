from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.json_schema import JsonSchema

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^(x+x+)+y$"},
        "age": {"type": "integer", "minimum": 0},
        "mail": {"type": "string", "format": "email"},
    },
    "required": ["age"],
    "additionalProperties": False,
}

judged = JsonSchema()


def asking(schema: Any) -> Task:
    return Task(id="j", messages=({"role": "user", "content": "?"},), info={"schema": schema})


@pytest.mark.parametrize(
    "reply",
    [
        '{"age": 7}',
        ' {"age": 7, "name": "xxy"}\n',
        '```json\n{"age": 7}\n```',
        'Here you are:\n```\n{"age": 7}\n```\nAnything else?',
        '```json\n{"age": -7}\n```\nOr rather:\n```json\n{"age": 7}\n```',
        '```json title="a"\r\n{"age": 7}\r\n```',
        '1. So:\n   ~~~JSON\n   {"age": 7}\n   ~~~',
        '```json {"age": 7}```',
        '`{"age": 7}`',
        '```json\n{"age": 7, "mail": "```json {} ```"}\n```',
        '{"age": 7, "mail": "```\\n{}\\n``` or <answer>{}</answer>"}',
        '```json\n{"age": 7}\n```\n```python\nprint(7)\n```',
        '<answer>{"age": 7}</answer>',
        '<answer>\n```json\n{"age": 7}\n```\n</answer>',
        '{"age": 7, "mail": "nobody"}',
    ],
)
def test_what_fits_passes(reply: str) -> None:
    assert judged(asking(SCHEMA), reply) == Verdict(passed=True, score=1.0)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("", "not JSON"),
        ("seven", "not JSON"),
        ("{'age': 7}", "not JSON"),
        ('{"age": 7} {"age": 7}', "not JSON: Extra data"),
        ('So: {"age": 7}', "not JSON"),
        ('{"age": 7} is it.', "not JSON"),
        ('```python\n{"age": 7}\n```', "not JSON"),
        ('{"age": NaN}', "not JSON: NaN is no JSON number"),
        ('{"age": Infinity}', "not JSON: Infinity is no JSON number"),
        ("{}", "$: 'age' is a required property"),
        ('{"age": -1}', "$.age: -1 is less than the minimum of 0"),
        ('{"age": 7.5}', "$.age: 7.5 is not of type 'integer'"),
        ('{"age": true}', "$.age: True is not of type 'integer'"),
        ('{"age": 7, "size": 1}', "Additional properties are not allowed"),
        ("[" * 50_000, "not JSON"),
        ('{"age": ' + "9" * 10_000 + "}", "not JSON"),
        (" " * 5 + "1" * 100_001, "100001 characters; an answer has at most 100000"),
    ],
)
def test_what_does_not_fit_fails_and_says_where(reply: str, says: str) -> None:
    verdict = judged(asking(SCHEMA), reply)
    assert (verdict.passed, verdict.score) == (False, 0.0)
    assert says in (verdict.feedback or "")


def test_deep_nesting_that_a_schema_follows_fails() -> None:
    nested = asking({"items": {"$ref": "#"}, "type": "array"})
    assert judged(nested, "[[[]]]").passed
    assert not judged(nested, "[" * 900 + "]" * 900).passed


def test_a_pattern_that_never_ends_fails() -> None:
    verdict = JsonSchema(cpu_s=1)(asking(SCHEMA), json.dumps({"age": 7, "name": "x" * 5000}))
    assert verdict.feedback == "checking the answer took more than 1 s"


def test_formats_are_checked_when_asked() -> None:
    reply = '{"age": 7, "mail": "nobody"}'
    assert JsonSchema(formats=True)(asking(SCHEMA), reply).feedback == "$.mail: 'nobody' is not a 'email'"


def test_the_dialect_is_the_schema_s() -> None:
    tuple_of_draft_7 = {"items": [{"type": "string"}]}
    named = {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of_draft_7}
    assert judged(asking(named), '["a", 1]').passed
    assert not judged(asking(named), "[1]").passed


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "text"}, "SchemaError: 'text' is not valid"),
        ({"$ref": "http://localhost:1/schema.json"}, "Unresolvable: http://localhost:1/schema.json"),
        ({"$ref": "file:///etc/passwd"}, "Unresolvable: file:///etc/passwd"),
        ({"$ref": "#/nowhere"}, "PointerToNowhere"),
    ],
)
def test_a_schema_that_is_none_is_an_error_and_nothing_is_fetched(schema: Any, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        judged(asking(schema), "{}")


def test_a_task_without_a_schema_is_an_error() -> None:
    with pytest.raises(KeyError, match="schema"):
        judged(Task(messages=({"role": "user", "content": "?"},)), "{}")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(values, st.text())
@settings(max_examples=60)
def test_a_constant_fits_itself_alone(value: Any, other: str) -> None:
    assert judged(asking({"const": value}), json.dumps(value)).passed
    assert not judged(asking({"const": [value]}), json.dumps(value)).passed
    assert not judged(asking({"not": {}}), other).passed
