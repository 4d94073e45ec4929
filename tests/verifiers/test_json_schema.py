from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
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


FORMATS = {
    "date": ("2024-02-29", "2024-13-01"),
    "date-time": ("2024-02-29T12:00:00Z", "2024-02-30T12:00:00Z"),
    "duration": ("P1D", "1 day"),
    "email": ("a@b.c", "nobody"),
    "hostname": ("a.b", "-a-"),
    "ipv4": ("1.2.3.4", "256.1.1.1"),
    "iri": ("http://\u00e4.de/", "a b"),
    "regex": ("a+", "("),
    "time": ("12:00:00Z", "25:00:00Z"),
    "uri": ("http://a.de", "a b"),
    "uri-template": ("/{a}", "{a"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000", "1"),
}
CHECKERS = ("fqdn", "idna", "isoduration", "jsonpointer", "rfc3339_validator", "rfc3987_syntax", "uri_template")
installed = pytest.mark.skipif(not all(map(find_spec, CHECKERS)), reason="needs jsonschema[format-nongpl]")


@installed
@pytest.mark.parametrize(
    ("value", "factor", "passed"),
    [(19.99, 0.01, True), (1e-7, 1e-8, True), (19.995, 0.01, False), (10**30 + 1, 2, False), (4.0, 2, True)],
)
def test_multiples_are_exact(value: float, factor: float, passed: bool) -> None:
    for schema in ({"multipleOf": factor}, json.dumps({"multipleOf": factor})):
        assert judged(asking(schema), json.dumps(value)).passed == passed
    assert not judged(asking({"multipleOf": factor}), "1e999").passed


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_checked_when_asked(name: str) -> None:
    checked, (good, bad) = JsonSchema(formats=True), FORMATS[name]
    assert checked(asking({"format": name}), json.dumps(good)).passed
    assert not checked(asking({"format": name}), json.dumps(bad)).passed
    assert judged(asking({"format": name}), json.dumps(bad)).passed


@installed
def test_formats_that_the_draft_lacks_are_an_error() -> None:
    checked, draft_4 = JsonSchema(formats=True), {"$schema": "http://json-schema.org/draft-04/schema#"}
    for schema in ({"format": "phone"}, {"properties": {"n": {"format": "int32"}}}, {**draft_4, "format": "uuid"}):
        with pytest.raises(RuntimeError, match=r"format '\w+' is not one of its draft: .*email"):
            checked(asking(schema), "{}")
    assert checked(asking({"properties": {"format": {"enum": ["phone"]}}}), '{"format": "phone"}').passed


def test_formats_without_their_checkers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "isoduration.py").write_text("raise ImportError")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from r3agent.verifiers import find_verifier; "
    code += "find_verifier('json_schema', formats=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"nothing installed checks .*duration.*pip install .jsonschema\[format-nongpl\]", done.stderr)


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
