"""The prompts of the loop: what they may name, when a wrong one is found, and that the conversation is kept whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from r3agent.episodes.graph import build_graph
from r3agent.errors import ConfigError
from r3agent.policy import OpenAIPolicy
from r3agent.records.prompts import BLIND_RETRY, KNOWN, PROMPTS, REFLECT, RETRY, Kind
from r3agent.records.trajectory import Task, Trajectory, Verdict
from r3agent.run.config import load_config
from r3agent.run.stages import Run
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from r3agent.verifiers import KINDS, VERIFIERS

TASK = Task(
    id="t",
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "20 C"},
        {"role": "user", "content": "And in Oslo?"},
    ),
    tools=({"type": "function", "function": {"name": "weather", "parameters": {}}},),
    info={"answer": "secret"},
    gold={"role": "assistant", "content": "secret"},
)
INPUT = {"task": TASK.model_dump(mode="json")}


def judged(task: Task, answer: str) -> Verdict:
    return Verdict(passed=answer == "right", score=float(answer == "right"), feedback=f"{answer} is wrong")


def asked_with(policy: ScriptedPolicy | None = None, **settings: Any) -> list[tuple[str, str]]:
    """Role and words of the last message of every request."""
    policy = policy or ScriptedPolicy(["bad", "hm", "worse", "hmm", "worst", "x"])
    build_graph(policy=policy, verifier=judged, **settings).compile().invoke(INPUT)  # pyright: ignore
    return [(str(c.messages[-1]["role"]), str(c.messages[-1]["content"])) for c in policy.calls]


def test_a_prompt_is_filled_in_with_what_the_policy_may_know() -> None:
    told = asked_with(
        max_attempts=3,
        reflect_prompt="try {{ attempt }}: {{ answer }}; {{ feedback }}; {{ task.messages[-1].content }}",
        retry_prompt="after {{ attempt }}, {{ answer }} and {{ reflection }}: {{ task.tools[0].function.name }}",
    )
    assert [text for _, text in told[1:]] == [
        "try 1: bad; bad is wrong; And in Oslo?",
        "after 1, bad and hm: weather",
        "try 2: worse; worse is wrong; And in Oslo?",
        "after 2, worse and hmm: weather",
    ]
    assert {role for role, _ in told} == {"user"}


def test_a_blind_retry_is_told_of_the_failed_try() -> None:
    told = asked_with(reflections=0, blind_retries=1, blind_retry_prompt="{{ attempt }} {{ answer }} {{ feedback }}")
    assert told[1:] == [("user", "1 bad bad is wrong")]


def test_what_is_recorded_is_what_was_said() -> None:
    policy = ScriptedPolicy("bad")
    graph = build_graph(policy=policy, verifier=judged, reflect_prompt="{{ answer }}?").compile()
    trajectory = Trajectory.model_validate(graph.invoke(INPUT)["trajectory"])  # pyright: ignore
    assert trajectory.spans[1].request == ({"role": "user", "content": "bad?"},)
    assert [c.messages for c in policy.calls] == [trajectory.prompt(s) for s in trajectory.spans]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_defaults_of_every_kind_tell_only_that_it_failed(kind: Kind) -> None:
    told = asked_with(ScriptedPolicy("bad, she said"), blind_retries=1, **PROMPTS[kind].model_dump())
    assert [text for _, text in told[1:]] == list(PROMPTS[kind].model_dump().values())
    assert not [text for _, text in told[1:] if "secret" in text or "she said" in text]


def test_the_general_prompts_are_the_ones_the_bundled_policy_was_taught() -> None:
    assert PROMPTS["general"].model_dump() == {
        "reflect_prompt": REFLECT,
        "retry_prompt": RETRY,
        "blind_retry_prompt": BLIND_RETRY,
    }


# ---- what cannot work is found before any request ----

WRONG = [
    ({"reflect_prompt": "{{ gold }}"}, r"reflect_prompt: gold is unknown; known are task\.messages, .*, attempt"),
    ({"reflect_prompt": "{{ task.info.answer }}"}, r"reflect_prompt: task\.info is unknown.*is hidden from the policy"),
    ({"reflect_prompt": "{{ reflection }}"}, "reflect_prompt: reflection is unknown"),
    ({"blind_retry_prompt": "{{ reflection }}"}, "blind_retry_prompt: reflection is unknown"),
    ({"retry_prompt": "{% if answer %}again"}, "retry_prompt: line 1: "),
]


NOT_TEXT = [({name: None}, rf"{name} = None: .* or leave it out for the default") for name in KNOWN]


@pytest.mark.parametrize(("prompt", "says"), [*WRONG, *NOT_TEXT])
def test_a_wrong_prompt_is_refused_when_the_graph_is_built(prompt: dict[str, Any], says: str) -> None:
    policy = ScriptedPolicy("bad")
    with pytest.raises(ConfigError, match=says):
        build_graph(policy=policy, verifier=judged, **prompt)  # pyright: ignore
    assert policy.calls == []


@pytest.mark.parametrize(("prompt", "says"), WRONG)
def test_a_wrong_prompt_is_refused_when_the_settings_are_read(
    tmp_path: Path, prompt: dict[str, str], says: str
) -> None:
    [(name, text)] = prompt.items()
    path = tmp_path / "r3.toml"
    path.write_text(f"[prompts]\n{name} = '{text}'\n")
    with pytest.raises(ConfigError, match=rf"r3\.toml: prompts\.{says}"):
        load_config(path, {})


def test_what_each_prompt_may_name_is_what_it_is_given() -> None:
    prompts = {name: " ".join(f"{{{{ {path} }}}}" for path in known) for name, known in KNOWN.items()}
    assert len(asked_with(blind_retries=1, **prompts)) == 4


# ---- settings of a run ----


def test_init_writes_the_prompts_that_count_and_they_can_be_edited(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"prompts.retry_prompt": "Again: {{ reflection }}"})
    run.write_config()
    written = load_config(tmp_path / "run" / "r3.toml", {}).prompts
    assert written == run.config.prompts
    assert (written.reflect_prompt, written.retry_prompt) == (REFLECT, "Again: {{ reflection }}")
    assert Run(tmp_path / "run", {"prompts.reflect_prompt": "Why?"}).config.prompts.reflect_prompt == "Why?"


@pytest.mark.parametrize("kind", sorted({"general", *KINDS.values()}))
def test_the_prompts_of_a_run_are_those_of_its_verifier(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "?", "answer": "!"}\n')
    verifier = kind if kind in VERIFIERS else "exact"
    settings = {"task.source": str(tmp_path / "tasks.jsonl"), "task.verifier": verifier}
    assert Run(tmp_path / "run", settings).config.prompts.model_dump() == PROMPTS[kind].model_dump()


def test_a_file_without_prompts_has_the_others_of_its_verifier(tmp_path: Path) -> None:
    (tmp_path / "r3.toml").write_text("[prompts]\nblind_retry_prompt = 'Once more.'\n")
    prompts = Run(tmp_path).config.prompts
    assert (prompts.reflect_prompt, prompts.blind_retry_prompt) == (REFLECT, "Once more.")


# ---- the conversation ----


async def test_the_whole_conversation_is_sent_in_order_every_time() -> None:
    with ScriptedEndpoint(lambda body, i: f"reply {len(body['messages'])}") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            await build_graph(policy=policy, verifier=judged, max_attempts=3).compile().ainvoke(INPUT)  # pyright: ignore
    sent = [received.body["messages"] for received in endpoint.received]
    whole = list(TASK.messages)
    expected: list[list[Any]] = [list(whole)]
    for prompt in (REFLECT, RETRY, REFLECT, RETRY):
        whole += [{"role": "assistant", "content": f"reply {len(whole)}"}, {"role": "user", "content": prompt}]
        expected.append(list(whole))
    assert sent == expected
    assert "secret" not in str([received.body for received in endpoint.received])


def call(arguments: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_calls_of_a_failed_try_are_answered_and_those_that_cannot_be_read_are_fed_back_as_text() -> None:
    good, torn = call('{"city": "Rome"}', "a"), call('{"city": ', "b")

    def reply(body: dict[str, Any], choice: int) -> str | dict[str, Any]:
        tried = len(body["messages"]) > len(TASK.messages)
        return "right" if tried else {"role": "assistant", "content": None, "tool_calls": [good, torn]}

    with ScriptedEndpoint(reply) as endpoint:
        policy = OpenAIPolicy(endpoint.url, "scripted")
        result = build_graph(policy=policy, verifier=judged).compile().invoke(INPUT)  # pyright: ignore
        policy.close()
    trajectory = Trajectory.model_validate(result["trajectory"])
    attempt, reflection, retry = trajectory.spans
    assert attempt.tool_calls == (good, torn)  # the record, and what the verifier sees
    asked = [received.body["messages"] for received in endpoint.received]
    assert [message["role"] for message in asked[1][-3:]] == ["assistant", "tool", "user"]
    assert asked[1][-3] == {
        "role": "assistant",
        "content": '{"name": "weather", "arguments": "{\\"city\\": "}',
        "tool_calls": [good],
    }
    assert asked[1][-2]["tool_call_id"] == "a"
    assert asked[1] == trajectory.prompt(reflection)
    assert asked[2] == trajectory.prompt(retry)
