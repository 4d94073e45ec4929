from __future__ import annotations

import asyncio
import json
import keyword
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from r3agent.errors import VerifierError
from r3agent.records.trajectory import Span, Task, Verdict
from r3agent.verifiers import Answer, find_verifier, judge
from r3agent.verifiers.function_call import function_call
from r3agent.verifiers.function_call.arguments import fault
from r3agent.verifiers.function_call.calls import MAX_CHARS, FunctionCall, Unreadable, native_calls, text_calls

USER = {"role": "user", "content": "?"}
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g"))
TYPES = {
    "i": ["integer"],
    "x": ["float"],
    "s": ["string"],
    "b": ["boolean"],
    "xs": ["array", "integer"],
    "t": ["tuple", "float"],
    "d": ["dict"],
    "ds": ["array", "dict"],
    "free": ["any"],
}


def task(*calls: tuple[str, dict[str, list[Any]]], native: bool = False, expect: str = "calls", **more: Any) -> Task:
    info = {
        "expect": expect,
        "calls": [{"name": name, "accepts": accepts} for name, accepts in calls],
        "functions": {name: {"required": [], "types": TYPES} for name in ("f", "g")},
        **more,
    }
    return Task(id="c", messages=(USER,), tools=TOOLS if native else (), info=info)


def called(*calls: tuple[str, Any]) -> Answer:
    """A reply with native calls; what is not text is written as JSON."""
    functions = [{"name": n, "arguments": a if isinstance(a, str) else json.dumps(a)} for n, a in calls]
    tool_calls = [{"id": "1", "type": "function", "function": function} for function in functions]
    return Answer.of({"role": "assistant", "content": None, "tool_calls": tool_calls})


def passes(task: Task, answer: str) -> bool:
    verdict = function_call(task, answer)
    assert verdict.passed == (verdict.feedback is None)
    return verdict.passed


# ---- arguments ----


@pytest.mark.parametrize(
    ("name", "accepted", "written", "right"),
    [
        ("i", 5, "\n5\n", True),
        ("i", 5, "6", False),
        ("x", 5.5, "5.5", True),
        ("s", "5", "5", True),
        ("s", "true", "true", True),
        ("s", '{"a": 1}', '{"a": 1}', True),
        ("s", "Rome", "Rome", True),
        ("b", True, "true", True),
        ("b", True, "True", True),
        ("b", False, "True", False),
        ("xs", [1, 2], "[1, 2]", True),
        ("d", {"k": ["v"]}, '{"k": "v"}', True),
        ("free", 7, "7", True),
        ("free", "a b", "a b", True),
    ],
)
def test_an_argument_in_tags_has_its_parameters_type(name: str, accepted: Any, written: str, right: bool) -> None:
    reply = f"<tool_call>\n<function=f>\n<parameter={name}>{written}</parameter>\n</function>\n</tool_call>"
    assert passes(task(("f", {name: [accepted]})), reply) == right


@pytest.mark.parametrize(
    ("name", "accepted", "value", "right"),
    [
        ("i", [5], 5, True),
        ("i", [5, 6], 6, True),
        ("i", [5], 4, False),
        ("i", [5], 5.0, False),
        ("i", [5], "5", False),
        ("i", [1], True, False),
        ("i", [5], None, False),
        ("i", ["n"], "n", True),  # a variable stands for a number
        ("i", ["n"], "N", False),
        ("i", ["n"], 5, False),
        ("x", [5.0], 5.0, True),
        ("x", [5.0], 5, True),
        ("x", [5], 5.0, True),
        ("x", [5.0], 10**400, False),
        ("x", [1.0], True, False),
        ("b", [True], True, True),
        ("b", [True], 1, False),
        ("b", [True], "true", False),
        ("s", ["New York, NY"], "new york ny", True),
        ("s", ["it's"], 'IT"S', True),
        ("s", ["a/b-c_d*e^f.g"], "abcdefg", True),
        ("s", ["a b"], "a\nb", False),
        ("s", ["a"], "b", False),
        ("s", ["5"], 5, False),
        ("xs", [[1, 2]], [1, 2], True),
        ("xs", [[1, 2]], [2, 1], False),
        ("xs", [[1, 2], [3]], [3], True),
        ("xs", [[1, 2]], (1, 2), False),
        ("xs", [[1, 2]], [1, 2.0], False),
        ("xs", [[1, 2]], ["1", "2"], False),
        ("xs", [["A b", "c"]], ["ab", "C"], True),
        ("xs", [[1, 2]], 1, False),
        ("t", [[1.5, 2.5]], (1.5, 2.5), True),
        ("t", [[1.5, 2.5]], [1.5, 2.5], True),
        ("d", [{"k": ["v", "w"], "o": [1, ""]}], {"k": "W"}, True),
        ("d", [{"k": ["v", "w"], "o": [1, ""]}], {"k": "v", "o": 1}, True),
        ("d", [{"k": ["v", "w"], "o": [1, ""]}], {"o": 1}, False),
        ("d", [{"k": ["v", "w"], "o": [1, ""]}], {"k": "v", "o": 2}, False),
        ("d", [{"k": ["v"]}], {"k": "v", "else": 1}, False),
        ("d", [{"k": ["v"]}], [["k", "v"]], False),
        ("ds", [[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}], True),
        ("ds", [[{"k": [1]}, {"k": [2]}]], [{"k": 2}, {"k": 1}], False),
        ("ds", [[{"k": [1]}]], [{"k": 1}, {"k": 1}], False),
        ("ds", [[{"k": [1]}], ""], ["k"], False),
        ("free", ["a"], "A", True),
        ("free", [7], 7, True),
        ("free", [7], "7", False),
        ("free", [None], None, True),
    ],
)
def test_a_value_is_right_by_type_and_by_what_is_accepted(name: str, accepted: list[Any], value: Any, right: bool):
    found = fault({name: value}, required=(), accepts={name: accepted}, types=TYPES)
    assert (found is None) is right
    assert found is None or (found.isascii() and len(found) < 300)


def test_parameters_are_required_optional_or_unexpected() -> None:
    one = task(("f", {"i": [1], "s": ["a", ""]}))
    assert passes(one, "f(i=1)")
    assert passes(one, "f(s='a', i=1)")
    assert not passes(one, "f(s='a')")
    assert not passes(one, "f(i=1, x=2.0)")
    assert not passes(one, "f(i=1, s='b')")
    required = task(("f", {"i": [1, ""]}), functions={"f": {"required": ["i"], "types": TYPES}})
    assert passes(required, "f(i=1)")
    assert not passes(required, "f()")
    undeclared = task(("f", {"i": [1, ""]}), functions={"f": {"types": {"i": []}}})
    assert passes(undeclared, "f()")
    assert not passes(undeclared, "f(i=1)")


# ---- calls ----


def test_the_right_function_once() -> None:
    one = task(("f", {"i": [1]}), native=True)
    assert passes(one, called(("f", {"i": 1})))
    assert not passes(one, called(("g", {"i": 1})))
    assert not passes(one, called(("F", {"i": 1})))
    assert not passes(one, called(("f", {"i": 1}), ("f", {"i": 1})))
    assert not passes(one, called())
    assert not passes(one, "f(i=1)")  # the functions were offered as tools
    assert passes(
        one, 'I call <tool_call>{"name": "f", "arguments": {"i": 1}}</tool_call>'
    )  # a server without a parser


@given(st.permutations([("f", {"i": 1}), ("f", {"i": 2}), ("g", {"i": 1}), ("g", {})]))
def test_parallel_calls_have_no_order(calls: list[tuple[str, Any]]) -> None:
    several = task(("g", {"i": [1]}), ("f", {"i": [1, 2]}), ("f", {"i": [1]}), ("g", {}), native=True)
    assert passes(several, called(*calls))
    assert not passes(several, called(*calls[:3]))
    assert not passes(several, called(*calls[:3], ("g", {"i": 2})))


def test_a_call_that_is_right_for_two_leaves_each_its_own() -> None:
    both = task(("f", {"i": [1, 2]}), ("f", {"i": [1]}))
    assert passes(both, "[f(i=1), f(i=2)]")
    assert passes(both, "[f(i=2), f(i=1)]")
    assert not passes(both, "[f(i=2), f(i=2)]")


@pytest.mark.parametrize(
    ("reply", "none", "some"),
    [
        ("", False, False),
        (" \n", False, False),
        ("No function fits: f(x) is not defined.", True, False),
        ("[]", True, False),
        ("<think>No function fits, because", False, False),
        ("<think>f(i=1)</think>None of them fits.", True, False),
        ('{"name": "f", "arguments": {"i": ', False, False),
        ('```json\n[{"function": {"name": "f"', False, False),
        ("[f(i=1, s=", False, False),
        ("f('Paris')", False, False),
        ('{"error": "No function fits."}', True, False),
        ("[None] of these fits the request (at all).", True, False),
        ("I would write:\n```python\nprint(1)\n```", True, False),
        ("f(i=1)", False, True),
        ("h(i=1)", False, False),
        ("<tool_call>{</tool_call>", False, False),
        (called(("f", {"any": 1})), False, True),
        (called(("h", {})), False, False),
        (called(("f", "{")), False, False),
    ],
)
def test_no_call_and_some_call(reply: str, none: bool, some: bool) -> None:
    assert passes(task(expect="no_call"), reply) is none
    assert passes(task(expect="some_call"), reply) is some


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}]',
        ' {"name": "a.f", "parameters": {"i": 1, "b": true, "n": null}}\n',
        '```json\n[{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}]\n```',
        "```a.f(i=1, b=True, n=None)```",
        "a.f(i=1, b=True, n=None)",
        "[a.f(i=1, b=true, n=null)]",
        "<think>h(j=2)</think>a.f(b=True,\n  i=1, n=None)",
        'So <tool_call>\n{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}\n</tool_call> it is.',
        "<tool_call>a.f(i=1, b=True, n=None)",
        '{"function": {"name": "a.f", "arguments": "{\\"i\\": 1, \\"b\\": true, \\"n\\": null}"}}',
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "a.f", "arguments": {"i": 1, "b": true,'
        ' "n": null}}}]}',
        '[{"function": "a.f", "parameters": {"i": 1, "b": true, "n": null}}]',  # BFCL's form in JSON
        '[{"tool_name": "a.f", "parameters": {"i": 1, "b": true, "n": null}}]',
        '{"type": "tool_use", "id": "1", "name": "a.f", "input": {"i": 1, "b": true, "n": null}}',
        "{'name': 'a.f', 'arguments': {'i': 1, 'b': True, 'n': None}}",
        'Here it is:\r\n```json\r\n{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}\r\n```\r\nDone.',
        "```tool_code\na.f(i=1, b=True, n=None)\n```",
        '<tools>\n{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}\n</tools>',
        '<|python_tag|>{"name": "a.f", "parameters": {"i": 1, "b": true, "n": null}}<|eom_id|>',
        '[TOOL_CALLS] [{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}]</s>',
        '[TOOL_CALLS]a.f[CALL_ID]x1[ARGS]{"i": 1, "b": true, "n": null}',
        '<function=a.f>{"i": 1, "b": true, "n": null}</function>',
        "<|python_start|>[a.f(i=1, b=True, n=None)]<|python_end|>",
        'functools[{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}]',
        "<|tool_call_start|>[a.f(i=1, b=True, n=None)]<|tool_call_end|><|im_end|>",
        '{"name": "a.f", "arguments": {"i": 1, "b": true, "n": null}}\n<|im_end|> <|endoftext|></s>\n',
    ],
)
def test_ways_to_write_a_call(text: str) -> None:
    assert text_calls(text) == [FunctionCall("a.f", {"i": 1, "b": True, "n": None})]


@pytest.mark.parametrize(
    "text",
    [
        "f(i=1)\ng()",
        "f(i=1); g()",
        "f(i=1), g()",
        "[f(i=1), g()]",
        '<tool_call>{"name": "f", "arguments": {"i": 1}}</tool_call><tool_call>{"name": "g"}</tool_call>',
        '{"name": "f", "arguments": {"i": 1}}\n{"name": "g", "arguments": null}',
        '{"name": "f", "parameters": {"i": 1}}; {"name": "g", "parameters": {}}',
        '{"name": "f", "arguments": {"i": 1}},\n{"name": "g", "arguments": ""}',
        '```json\n{"name": "f", "arguments": {"i": 1}}\n```\nand\n```json\n{"name": "g"}\n```',
        '<tool_call>[{"name": "f", "arguments": {"i": 1}}, {"name": "g"}]</tool_call>',
        '[TOOL_CALLS]f{"i": 1}[TOOL_CALLS]g[ARGS]{}',
        '<function=f>{"i": 1}</function>\n<function=g>{}</function>',
    ],
)
def test_ways_to_write_several(text: str) -> None:
    assert text_calls(text) == [FunctionCall("f", {"i": 1}), FunctionCall("g", {})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "i": 1}',  # no arguments, but more than a name
        '{"name": "f", "arguments": {"i": 1}, "parameters": {"i": 2}}',
        '{"name": "f", "description": "A function.", "parameters": {}}',
        '{"name": "f", "parameters": {"type": "object", "properties": {"i": {"type": "integer"}}}}',
        '[[{"name": "f", "arguments": {"i": 1}}]]',
        '["f", {"i": 1}]',
        '["f(i=1)"]',
        '{"name": "f", "arguments": {"i": 1}} is the call.',
        'I could call f(i=1), or {"name": "f", "arguments": {"i": 1}}.',
        'f{"i": 1}{"i": 2}',
        "Run this:\n```python\nx = f(i=1)\n```",
        '{"name": "f", "arguments": {"i": 1}',
    ],
)
def test_what_only_resembles_calls_is_none(text: str) -> None:
    with pytest.raises(Unreadable):
        text_calls(text)
    assert not passes(task(expect="some_call"), text)
    assert not passes(task(("f", {"i": [1, ""]})), text)


def test_tags_within_an_argument_are_text() -> None:
    [call] = text_calls('{"name": "f", "arguments": {"s": "<tools>```g()```"}}')
    assert call == FunctionCall("f", {"s": "<tools>```g()```"})


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"i": 1}}',
        '```json\n{"name": "f", "arguments": {"i": 1}}\n```',
        "[f(i=1)]",
        '<tools>{"name": "f", "arguments": {"i": 1}}</tools>',
    ],
)
def test_calls_of_offered_tools_are_read_from_templates(text: str) -> None:
    assert passes(task(("f", {"i": [1]}), native=True), text)
    assert not passes(task(native=True, expect="no_call"), text)


identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(identifiers, st.dictionaries(identifiers, values, max_size=4)), min_size=1, max_size=3))
def test_what_is_written_is_read(calls: list[tuple[str, dict[str, Any]]]) -> None:
    read = [FunctionCall(name, arguments) for name, arguments in calls]
    assert native_calls(called(*calls).tool_calls) == read
    assert text_calls(json.dumps([{"name": n, "arguments": a} for n, a in calls])) == read
    python = [f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls]
    assert text_calls(f"[{', '.join(python)}]") == read


# ---- what a model may write ----

HOSTILE = [
    "f(i=1",
    "f(1)",
    "f(**{})",
    "f(i=1, i=1)",
    "f(i=x)",
    "f(i=1+1)",
    "f(i=g())",
    "f(i=-'a')",
    "f(i=1e999)",
    "f(i=-1e999)",
    "f(i=1j)",
    "f(i=b'a')",
    "f(i=...)",
    "f(i={1: 2})",
    "f(i={**{}})",
    "f(i={'a': 1, 'a': 1})",
    "f(i=0x" + "f" * 10_000 + ")",
    "f(i=" + "9" * 10_000 + ")",
    "f(i=" + "(" * 5_000 + ")" * 5_000 + ")",
    "f(i=" + "[" * 150 + "]" * 150 + ")",
    "f(i=" + "-" * 20_000 + "1)",
    "f(i=" + "not " * 10_000 + "1)",
    "f(i=1" + "+1" * 20_000 + ")",
    "f" + ".f" * 20_000 + "(i=1)",
    "f" + "()" * 20_000,
    "f(i=" + "lambda:" * 5_000 + "1)",
    "f(s=f'{1}')",
    "f()()",
    "'f'()",
    "f(s='\x00')",
    "f(s='\ud800",
    "import os",
    "i = f(i=1)",
    "__import__('os').system('true')",
    "[" * 40_000,
    '{"a":' * 9_000,
    '[{"name": "f", "arguments": {"i": 1, "i": 1}}]',
    '[{"name": "f", "arguments": {"i": NaN}}]',
    '[{"name": "f", "arguments": {"i": -Infinity}}]',
    '[{"name": "f", "arguments": {"i": 1e999}}]',
    '[{"name": "f", "arguments": {"i": ' + "9" * 10_000 + "}}]",
    '[{"name": "f", "arguments": "i"}]',
    '[{"name": 1, "arguments": {}}]',
    '[{"arguments": {}}]',
    "[1, null]",
    "{}",
    "```",
    "``````",
    "<tool_call>nothing",
    "x" * 10_000_000,
    "f(s='" + "x" * 10_000_000 + "')",
    "<tool_call>" * 1_000_000,
    "<function=f>" + "<parameter=i>" * 3_000,
    "<function=f><parameter=i>1</parameter><parameter=i>1</parameter></function>",
    "<tools>" * 7_000,
    "```" * 16_000,
    "{}," * 16_000,
    "</s>" * 1_000_000,
    "f" + " " * 49_000 + "f",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24].encode("unicode_escape").decode())
def test_hostile_text_fails_and_harms_nothing(text: str) -> None:
    for asked in (task(("f", {"i": [1]})), task(("f", {"i": [1]}), native=True)):
        for answer in (Answer(text), called(("f", text)), called((text, {"i": 1}))):
            verdict = function_call(asked, answer)
            assert not verdict.passed
            assert verdict.feedback is not None
            assert verdict.feedback.isascii()
            assert len(verdict.feedback) < 300


@pytest.mark.parametrize(
    "tool_call",
    [
        {},
        {"function": None},
        {"function": {}},
        {"function": {"name": None}},
        {"function": {"name": "f", "arguments": 7}},
        {"function": {"name": "f", "arguments": [1]}},
        {"function": {"name": "f", "arguments": "[]"}},
        {"function": {"name": "f", "arguments": "null"}},
        {"function": {"name": "f", "arguments": '{"i": 1} {"i": 1}'}},
    ],
)
def test_a_broken_tool_call_fails(tool_call: dict[str, Any]) -> None:
    answer = Answer.of({"role": "assistant", "tool_calls": [tool_call]})
    assert not passes(task(("f", {"i": [1]}), native=True), answer)
    with pytest.raises(Unreadable):
        native_calls([tool_call])


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_without_arguments_is_written_in_several_ways(arguments: Any) -> None:
    assert native_calls([{"function": {"name": "f", "arguments": arguments}}]) == [FunctionCall("f", {})]


def test_length_is_bounded_over_all_calls() -> None:
    half = json.dumps({"s": "x" * (MAX_CHARS // 2 - 10)})
    assert len(native_calls(called(("f", half)).tool_calls)) == 1
    with pytest.raises(Unreadable, match=rf"\d+ characters; calls have at most {MAX_CHARS}"):
        native_calls(called(("f", half), ("f", half), ("f", half)).tool_calls)


def test_an_odd_escape_is_text_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_calls(r"f(s='\d')") == [FunctionCall("f", {"s": r"\d"})]


SIGNS = [*"[]{}()=,.:'\"`\\\n -09eE_fgis", "<tool_call>", "</tool_call>", '"name": "f"', '"arguments": {', "NaN"]
pieces = st.lists(st.sampled_from(SIGNS) | st.text(max_size=3), max_size=30).map("".join)


@settings(max_examples=50)
@given(st.one_of(st.text(), pieces), st.booleans(), st.sampled_from(["calls", "some_call", "no_call"]))
def test_whatever_is_written_gets_a_verdict(text: str, native: bool, expect: str) -> None:
    calls = [("f", {"i": [1]})] if expect == "calls" else []
    asked = task(*calls, native=native, expect=expect)
    for answer in (Answer(text), called(("f", text)), called((text, {}))):
        verdict = function_call(asked, answer)
        assert isinstance(verdict, Verdict)
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


RIGHT = {
    "i": 1,
    "x": 1.5,
    "s": "a",
    "b": True,
    "xs": [1],
    "t": [1.5],
    "d": {"k": [1]},
    "ds": [{"k": [1]}],
    "free": "a",
}


@settings(max_examples=50)
@given(values, st.sampled_from(sorted(TYPES)), st.booleans())
def test_whatever_is_given_is_right_or_wrong(value: Any, name: str, optional: bool) -> None:
    accepted = [RIGHT[name], ""] if optional else [RIGHT[name]]
    wrong = fault({name: value}, required=(), accepts={name: accepted}, types=TYPES)
    assert wrong is not None or type(value) is type(RIGHT[name])


# ---- what a task may say ----


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"expect": "everything"},
        {"calls": []},
        {"expect": "no_call"},
        {"calls": [{"name": "h", "accepts": {}}]},
        {"calls": [{"name": "f", "accepts": {"unknown": [1]}}]},
        {"calls": [{"name": "f", "accepts": {"i": 1}}]},
        {"functions": {"f": {"types": {"i": ["int"]}}}},
    ],
)
async def test_a_malformed_task_is_an_error_of_the_verifier(info: dict[str, Any]) -> None:
    asked = task(("f", {"i": [1]}))
    broken = asked.model_copy(update={"info": {**asked.info, **info} if info else {}})
    with pytest.raises(ValidationError):
        function_call(broken, Answer("f(i=1)"))
    span = Span(text="f(i=1)", model="m", label="attempt")
    with pytest.raises(VerifierError, match=r"function_call failed on task 'c': ValidationError"):
        await judge(find_verifier("function_call"), broken, [span])


async def test_found_by_name_and_safe_in_threads() -> None:
    verifier = find_verifier("function_call")
    asked = task(("f", {"i": [1]}))
    spans = [Span(text=text, model="m", label="attempt") for text in ("f(i=1)", r"f(i='\d')")]
    verdicts = await asyncio.gather(*(judge(verifier, asked, spans) for _ in range(20)))
    assert [[v.passed for v in both] for both in verdicts] == [[True, False]] * 20
