"""Conversations that an application sends back in another form: the tree is the same."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import r3agent
from r3agent.records.trajectory import Generation, Trajectory
from r3agent.testing import ScriptedEndpoint

ASK: list[Any] = [{"role": "user", "content": "Cancel order 1."}]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
answers = st.tuples(st.text(max_size=8), st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=3))
"""A text and the arguments of tool calls."""
forms = st.fixed_dictionaries(
    {
        "content": st.sampled_from(["text", "parts", "none", "missing"]),
        "indent": st.sampled_from([None, 2]),
        "ensure_ascii": st.booleans(),
        "sort_keys": st.booleans(),
        "ids": st.sampled_from(["kept", "other", "missing"]),
        "more": st.booleans(),
    }
)


def call(arguments: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "cancel", "arguments": arguments}}


def generation(text: str, arguments: list[Any], step: int) -> Generation:
    calls = [call(json.dumps(value), f"c{step}.{i}") for i, value in enumerate(arguments)]
    return Generation(text=text, tool_calls=tuple(calls), model="m")


def sent_back(answer: Generation, form: Any) -> list[dict[str, Any]]:
    """The messages that continue the conversation: the answer in another form, and a result for each call."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if form["content"] == "parts":
        message["content"] = [{"type": "text", "text": piece} for piece in [answer.text[:1], answer.text[1:]]]
    elif not answer.text and form["content"] == "none":
        message["content"] = None
    elif not answer.text and form["content"] == "missing":
        del message["content"]
    style = {key: form[key] for key in ("indent", "ensure_ascii", "sort_keys")}
    calls, results = list[Any](), list[Any]()
    for i, made in enumerate(answer.tool_calls):
        again = call(json.dumps(json.loads(made["function"]["arguments"]), **style), made["id"])
        result = {"role": "tool", "tool_call_id": made["id"], "content": f"done {i}"}
        if form["ids"] == "other":
            again["id"] = result["tool_call_id"] = f"x{i}"
        elif form["ids"] == "missing":
            del again["id"], again["type"], result["tool_call_id"]
        calls.append({**again, "index": i} if form["more"] else again)
        results.append({**result, "name": "cancel"} if form["more"] else result)
    message |= {"tool_calls": calls} if calls else {}
    message |= {"refusal": None, "annotations": [], "name": "agent"} if form["more"] else {}
    return [message, *results, {"role": "user", "content": "Go on."}]


@given(st.lists(st.tuples(answers, forms), min_size=1, max_size=4))
def test_conversation_in_any_form_has_the_same_parent(turns: list[Any]) -> None:
    with r3agent.trace() as episode:
        messages = ASK
        for step, ((text, arguments), form) in enumerate(turns):
            episode.begin(messages, [], "")
            answer = generation(text, arguments, step)
            episode.add([answer], None, messages, [])
            messages = [*messages, *sent_back(answer, form)]
    spans = episode.spans
    assert [span.parent_id for span in spans] == [None, *(span.span_id for span in spans[:-1])]
    assert not any(span.standalone for span in spans)


@given(answers, values, forms)
def test_conversation_after_other_calls_has_no_parent(answer: Any, other: Any, form: Any) -> None:
    (text, arguments), different = answer, {"": other, "else": "x"}
    if different in arguments:
        return
    with r3agent.trace() as episode:
        episode.begin(ASK, [], "")
        episode.add([generation(text, arguments, 0)], None, ASK, [])
        messages = [*ASK, *sent_back(generation(text, [*arguments[1:], different], 0), form)]
        episode.add([generation("", [], 1)], None, messages, [])
    assert episode.spans[1].parent_id is None


def recorded(answers: list[Any], conversations: list[list[Any]]) -> Trajectory:
    """The tree of calls with these messages, at an endpoint that answers as in `answers`."""
    script = iter(answers)
    with ScriptedEndpoint(lambda body, i: next(script)) as endpoint:
        plain = openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            for messages in conversations:
                client.chat.completions.create(model="scripted", messages=messages)
        sent = [request.body["messages"] for request in endpoint.received]
    assert [episode.trajectory.prompt(span) for span in episode.spans] == sent
    return episode.trajectory


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        ({"content": "4", "reasoning": "2 + 2"}, {"content": "4"}),
        ({"content": "<think>2 + 2</think>\n\n4"}, {"content": "4"}),
        ({"content": "<think>2 + 2</think>\n\n4"}, {"content": [{"type": "text", "text": "4\n"}]}),
        ({"content": "", "tool_calls": [call('{"order": ', "1")]}, {"tool_calls": [call('{"order": ', "2")]}),
    ],
)
def test_conversation_without_its_thinking_is_recorded_as_sent(answer: Any, sent: Any) -> None:
    second = [*ASK, {"role": "assistant", **sent}, {"role": "user", "content": "Go on."}]
    third = [*second, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And on."}]
    one, two, three = recorded([answer, "5", "6"], [ASK, second, third]).spans
    assert (two.parent_id, two.standalone, list(two.request)) == (one.span_id, True, second)
    assert (three.parent_id, three.standalone, len(three.request)) == (two.span_id, False, 1)


def test_conversation_continues_the_sibling_with_its_ids() -> None:
    same = [Generation(text="", tool_calls=(call('{"order": 1}', name),), model="m") for name in ("a", "b", "c")]
    with r3agent.trace() as episode:
        episode.begin(ASK, [], "")
        episode.add(same, None, ASK, [])
        for ids in ("b", "a", "else"):
            messages = [*ASK, {"role": "assistant", "tool_calls": [call('{"order":1}', ids)]}]
            messages.append({"role": "tool", "tool_call_id": ids, "content": "done"})
            episode.add([generation("Done.", [], 1)], None, messages, [])
    a, b, c, *grown = episode.spans
    assert [span.parent_id for span in grown] == [b.span_id, a.span_id, c.span_id]


def test_conversation_of_a_langchain_agent_is_one_path() -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage

    arguments = ['{"order":1,"why":"\\u00fcber"}', '{"why": "x",  "order": 2.0}']
    script = iter(
        [{"content": None, "tool_calls": [call(text, f"c{i}")]} for i, text in enumerate(arguments)] + ["Done."]
    )
    with ScriptedEndpoint(lambda body, i: next(script)) as endpoint:
        plain = openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            model = langchain_openai.ChatOpenAI(
                model="scripted", api_key="x", client=client.chat.completions, root_client=client
            )
            messages: list[Any] = [HumanMessage("Cancel orders 1 and 2.")]
            for _ in range(3):
                answer = model.invoke(messages)
                messages.append(answer)
                messages += [ToolMessage("done", tool_call_id=made["id"]) for made in answer.tool_calls]
    one, two, three = episode.spans
    assert (two.parent_id, three.parent_id) == (one.span_id, two.span_id)
    assert {span.capability for span in episode.spans} == {"trainable-exact"}
