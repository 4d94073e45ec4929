"""Overhead of an episode without the model: r3agent's frontier nodes against one LangGraph `Send` per span.

Both run the same tree (1 attempt, 8 reflections, 8 retries, 1 blind retry) with a policy that answers immediately, in
alternating turns. Reported are CPU milliseconds per episode in the fastest turn; the ratio is Send / frontier.

    python benchmarks/graph_overhead.py [--episodes 50] [--turns 7]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send

from r3agent.episodes.graph import build_graph
from r3agent.episodes.state import Json, merge_spans
from r3agent.policy import Policy
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Generation, Label, Span, Task, Trajectory
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import Answer, Verifier, judge

REFLECTIONS, PROMPT_TOKENS, TOKENS = 8, 100, 20

GENERATION = Generation(
    text="one two three",
    model="scripted",
    prompt_token_ids=tuple(range(PROMPT_TOKENS)),
    token_ids=tuple(range(TOKENS)),
    logprobs=(-0.5,) * TOKENS,
    capability="trainable-exact",
)
TASK = Task(messages=({"role": "user", "content": "one, two, and then?"},)).model_dump(mode="json")


def never(task: Task, answer: Answer) -> bool:
    return False


class SendState(TypedDict):
    task: Json
    spans: Annotated[list[Json], merge_spans]
    trajectory: Json


class Grown(TypedDict):
    """Payload of one `Send`: the tree so far and the span to work on."""

    task: Json
    spans: list[Json]
    span: Json | None
    prompt: str


def build_send_graph(policy: Policy, verifier: Verifier) -> StateGraph[Any, Any, Any, Any]:
    """Build the same loop for one reflection round, with one LangGraph task per span."""

    async def grow(state: Grown, label: Label) -> Span:
        tree = Trajectory.model_validate({"task": state["task"], "spans": state["spans"]})
        parent = state["span"] and Span.model_validate(state["span"])
        messages = list(tree.task.messages) if parent is None else [*tree.prompt(parent), parent.message]
        request = ({"role": "user", "content": state["prompt"]},) if parent else ()
        [generation] = await policy.sample([*messages, *request])
        place = {"label": label, "parent_id": parent and parent.span_id, "request": request}
        return Span.model_validate({**dict(generation), **place})

    def carry(state: Grown | SendState, span: Json, prompt: str = "") -> Grown:
        return {"task": state["task"], "spans": merge_spans(state["spans"], [span]), "span": span, "prompt": prompt}

    async def attempt(state: SendState) -> Command[str]:
        span = (await grow({**state, "span": None, "prompt": ""}, "attempt")).model_dump(mode="json")
        return Command(update={"spans": [span]}, goto=Send("verify", carry({**state, "spans": []}, span)))

    async def verify(state: Grown) -> dict[str, Any]:
        span = Span.model_validate(state["span"])
        [verdict] = await judge(verifier, Task.model_validate(state["task"]), [span])
        return {"spans": [span.model_copy(update={"verdict": verdict}).model_dump(mode="json")]}

    def decide(state: SendState) -> Command[str]:
        if len(state["spans"]) > 1:
            tree = Trajectory.model_validate({"task": state["task"], "spans": state["spans"]})
            return Command(update={"trajectory": tree.model_dump(mode="json")})
        failed = state["spans"][0]
        reflections = [Send("reflect", carry(state, failed, REFLECT)) for _ in range(REFLECTIONS)]
        return Command(goto=[*reflections, Send("retry", carry(state, failed, BLIND_RETRY))])

    async def reflect(state: Grown) -> Command[str]:
        span = (await grow(state, "reflect")).model_dump(mode="json")
        return Command(update={"spans": [span]}, goto=Send("retry", carry(state, span, RETRY)))

    async def retry(state: Grown) -> Command[str]:
        span = (await grow(state, "retry")).model_dump(mode="json")
        return Command(update={"spans": [span]}, goto=Send("verify", carry(state, span)))

    graph = StateGraph(SendState)
    for node in (attempt, verify, reflect, retry):
        graph.add_node(node.__name__, node)
    graph.add_node("decide", decide, defer=True)  # once every span is verified
    graph.add_edge(START, "attempt")
    graph.add_edge("verify", "decide")
    return graph


async def cpu_ms(graph: CompiledStateGraph[Any, Any, Any, Any], episodes: int) -> float:
    start = time.process_time()
    for _ in range(episodes):
        await graph.ainvoke({"task": TASK})
    return (time.process_time() - start) / episodes * 1e3


async def measure(episodes: int, turns: int) -> dict[str, float]:
    policy = ScriptedPolicy(GENERATION)
    graphs = {
        "frontier_ms": build_graph(
            policy=policy, verifier=never, reflections=REFLECTIONS, retries=1, blind_retries=1
        ).compile(),
        "send_ms": build_send_graph(policy, never).compile(),
    }
    for name, graph in graphs.items():
        grown = (await graph.ainvoke({"task": TASK}))["trajectory"]["spans"]
        assert len(grown) == 2 + 2 * REFLECTIONS, f"{name}: {len(grown)} spans"
    times = {name: [] for name in graphs}
    for _ in range(turns):
        for name, graph in graphs.items():
            times[name].append(await cpu_ms(graph, episodes))
    return {name: min(of_turns) for name, of_turns in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    times = asyncio.run(measure(options.episodes, options.turns))
    ratio = times["send_ms"] / times["frontier_ms"]
    print(json.dumps({**{name: round(ms, 2) for name, ms in times.items()}, "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
