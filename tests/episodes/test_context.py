"""Settings of one run that differ from the graph's: `context`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from r3agent import ConfigError, EpisodeContext, Generation, OpenAIPolicy, Sampling, build_graph
from r3agent.episodes.budget import ENDED
from r3agent.records.versions import BASE
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from r3agent.verifiers import find_verifier
from tests.episodes.episodes import CHAIN, INPUT, labels, on_thread, right

COUNTED = Generation(text="wrong", model="m", prompt_tokens=1, completion_tokens=1)
PRICES = {"prompt": 1, "sampled": 2, "currency": "EUR"}
NEVER: Any = {"attempt": "wrong", "reflect": "hm", "retry": "wrong", "blind_retry": "wrong"}


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy(NEVER)


@pytest.fixture
def graph(policy: ScriptedPolicy) -> Any:
    return build_graph(policy=policy, verifier=right).compile()


@pytest.mark.parametrize(
    ("context", "grown"),
    [
        (None, CHAIN),
        ({}, CHAIN),
        ({"max_attempts": 1}, ["attempt"]),
        ({"max_attempts": 3}, [*CHAIN, "reflect", "retry"]),
        ({"reflections": 2, "retries": 2}, ["attempt", *["reflect"] * 2, *["retry"] * 4]),
        ({"reflections": 0, "blind_retries": 2}, ["attempt", "retry", "retry"]),
        (EpisodeContext(max_attempts=1), ["attempt"]),
    ],
)
async def test_a_run_has_limits_of_its_own_and_leaves_the_graph_as_it_was(graph: Any, context: Any, grown: Any) -> None:
    assert labels(graph.invoke(INPUT, context=context)) == grown
    assert labels(await graph.ainvoke(INPUT, context=context)) == grown
    assert labels(await graph.ainvoke(INPUT)) == CHAIN


def test_sampling_is_that_of_the_run(graph: Any, policy: ScriptedPolicy) -> None:
    graph.invoke(INPUT, context={"sampling": {"temperature": 0.5, "max_tokens": 9}})
    assert [call.sampling for call in policy.calls] == [Sampling(temperature=0.5, max_tokens=9)] * 3
    policy.calls.clear()
    graph.invoke(INPUT, context={"reflect_sampling": {"max_tokens": 8}})
    assert [call.sampling for call in policy.calls] == [None, Sampling(max_tokens=8), None]


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ({"max_attempts": 0}, "context.max_attempts = 0: .* greater than or equal to 1; change it"),
        ({"retries": "many"}, "context.retries = 'many': .* integer"),
        ({"max_attempt": 3}, "unknown key .context.max_attempt.; did you mean .context.max_attempts"),
        ({"sampling": {"temperature": -1}}, r"context.sampling.temperature = -1"),
        ({"sampling": {"heat": 1}}, "unknown key .context.sampling.heat.; known are temperature"),
        ({"max_steps": 3}, "max_steps = 3: limits tries of an agent"),
        ({"model": "tiny@v0003"}, r"model = 'tiny@v0003': ScriptedPolicy has no `asking\(model\)`; pass policy="),
        ({"policy": "tiny"}, "policy = 'tiny'"),
        ({"max_tokens_total": 0}, "context.max_tokens_total = 0"),
        ({"max_cost": 0}, "context.max_cost = 0"),
        ({"max_cost": 0.5}, "context: max_cost = 0.5: ScriptedPolicy has no prices; give it prices=Prices"),
        ({"reflections": 0}, "reflections = 0 and blind_retries = 0: nothing would retry.*pass reflections=1"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_is_asked(
    graph: Any, policy: ScriptedPolicy, context: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        graph.invoke(INPUT, context=context)
    with pytest.raises(ConfigError, match=says):
        await graph.ainvoke(INPUT, context=context)
    assert policy.calls == []


@dataclass
class OfTheApp:
    max_attempts: int = 1
    user: str = "ada"


class Parent(TypedDict):
    task: dict[str, Any]
    trajectory: dict[str, Any]


@pytest.mark.parametrize(
    ("kind", "context", "grown"),
    [
        (OfTheApp, OfTheApp(), CHAIN),
        (OfTheApp, {"max_attempts": 1}, CHAIN),
        (dict, {"max_attempts": 1, "reflections": "as many as you like"}, CHAIN),
        (EpisodeContext, {"max_attempts": 1}, ["attempt"]),
        (EpisodeContext, EpisodeContext(max_attempts=1), ["attempt"]),
    ],
)
async def test_the_context_of_a_larger_graph_counts_only_if_it_is_ours(
    graph: Any, kind: Any, context: Any, grown: Any
) -> None:
    parent = StateGraph(Parent, context_schema=kind)
    parent.add_node("solve", graph)
    parent.add_edge(START, "solve")
    app: Any = parent.compile()
    assert labels(app.invoke(INPUT, context=context)) == grown
    assert labels(await app.ainvoke(INPUT, context=context)) == grown


def test_a_run_that_is_resumed_is_told_again(policy: ScriptedPolicy) -> None:
    """LangGraph keeps the state and not the context."""
    graph: Any = build_graph(policy=policy, verifier=find_verifier("person")).compile(InMemorySaver())
    once = {"max_attempts": 1}
    for thread, again, grown in (("told", once, ["attempt"]), ("not told", None, CHAIN[:2])):
        graph.invoke(INPUT, on_thread(thread), context=once)
        graph.invoke(Command(resume=False), on_thread(thread), context=again)
        spans = graph.get_state(on_thread(thread)).values["spans"]
        assert [span["label"] for span in spans][:2] == grown


def test_what_goes_in_and_comes_out_has_a_schema(graph: Any) -> None:
    assert graph.get_input_jsonschema()["properties"].keys() == {"task"}
    assert graph.get_output_jsonschema()["properties"].keys() == {"answer", "passed", "trajectory"}


def test_the_schema_of_the_context_explains_every_setting(graph: Any) -> None:
    schema = graph.get_context_jsonschema()
    assert schema["properties"].keys() == EpisodeContext.model_fields.keys() - {"policy", "begin"}
    assert all(setting["description"] for setting in schema["properties"].values())


def test_a_run_asks_a_policy_or_a_model_of_its_own(policy: ScriptedPolicy, tmp_path: Path) -> None:
    other = ScriptedPolicy(NEVER)
    build_graph(policy=policy, verifier=right).compile().invoke(INPUT, context={"policy": other})
    assert (len(policy.calls), len(other.calls)) == (0, 3)
    with ScriptedEndpoint("no") as endpoint:
        registry = Registry(tmp_path)
        registry.add_base("tiny", "base")
        registry.set_live(BASE)
        asked = OpenAIPolicy(endpoint.url, "tiny@live", registry=registry)
        graph: Any = build_graph(policy=asked, verifier=right).compile()
        endpoint.model = "tiny@v0003"
        out = graph.invoke(INPUT, context={"model": "tiny@v0003"})
        asked.close()
    assert {s["policy_version"] for s in out["trajectory"]["spans"]} == {"v0003"}
    assert [request.body["model"] for request in endpoint.received] == ["tiny@v0003"] * 3


@pytest.mark.parametrize(
    ("budget", "grown", "reason"),
    [
        ({"max_tokens_total": 1}, ["attempt"], "max_tokens_total = 1: 2 are used"),
        ({"max_tokens_total": 3}, ["attempt", "reflect"], "max_tokens_total = 3: 4 are used"),
        ({"max_tokens_total": 9999}, CHAIN, ""),
        ({"max_cost": 3e-6, "prices": PRICES}, ["attempt"], "max_cost = 3e-06: 3e-06 EUR are spent"),
        ({"max_cost": 5e-6, "prices": PRICES}, ["attempt", "reflect"], "max_cost = 5e-06: 6e-06 EUR are spent"),
        ({"max_cost": 1, "prices": PRICES}, CHAIN, ""),
        ({"max_seconds": 1e-9}, ["attempt"], "max_seconds = 1e-09: "),
        ({"max_seconds": 999}, CHAIN, ""),
    ],
)
async def test_a_spent_budget_ends_the_episode(budget: dict[str, Any], grown: list[str], reason: str) -> None:
    graph: Any = build_graph(policy=ScriptedPolicy(COUNTED), verifier=right).compile()
    for out in (graph.invoke(INPUT, context=budget), await graph.ainvoke(INPUT, context=budget)):
        assert labels(out) == grown
        assert out["trajectory"]["metadata"].get(ENDED, "").startswith(reason)
        assert (ENDED in out["trajectory"]["metadata"]) == bool(reason)
        assert out["passed"] is False


@pytest.mark.parametrize("budget", [{"max_tokens_total": 9}, {"max_cost": 9, "prices": PRICES}])
async def test_a_budget_of_tokens_that_nobody_counts_is_spent(budget: dict[str, Any]) -> None:
    graph: Any = build_graph(policy=ScriptedPolicy(Generation(text="no", model="m")), verifier=right).compile()
    out = await graph.ainvoke(INPUT, context=budget)
    assert labels(out) == ["attempt"]
    assert "does not count its tokens" in out["trajectory"]["metadata"][ENDED]
