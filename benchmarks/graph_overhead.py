"""Overhead of an episode without the model: r3agent's frontier nodes against one LangGraph `Send` per span.

All run the same tree (1 attempt, 8 reflections, 8 retries, 1 blind retry) with a policy that answers immediately, in
alternating turns. Reported are CPU milliseconds per episode in the fastest turn; the ratio is Send / frontier. `plain`
makes the same record of the same requests and verdicts in one function without a graph. `collecting` is the form in
which `collect` runs the nodes, here with a shipped verifier; as `plain`, it can neither be resumed nor edited. With an
application's own verifier, `own_verifier`, all of them are within one node of LangGraph. `vs_plain` is collecting /
plain, and `frontier_vs_plain` frontier / plain.

    python benchmarks/graph_overhead.py [--episodes 50] [--turns 7]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send

from r3agent._util.templates import Template
from r3agent.episodes.assembly import assemble
from r3agent.episodes.graph import build_graph
from r3agent.episodes.nodes import Nodes
from r3agent.episodes.run_episode import run_episode
from r3agent.episodes.state import Json, merge_spans
from r3agent.policy import Policy
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Generation, Label, Span, Task, Trajectory
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import Answer, Verifier, judge
from r3agent.verifiers.text import exact

REFLECTIONS, PROMPT_TOKENS, TOKENS = 8, 100, 20

GENERATION = Generation(
    text="one two three",
    model="scripted",
    prompt_token_ids=tuple(range(PROMPT_TOKENS)),
    token_ids=tuple(range(TOKENS)),
    logprobs=(-0.5,) * TOKENS,
    capability="trainable-exact",
)
TASK = Task(messages=({"role": "user", "content": "one, two, and then?"},), info={"answer": "three"}).model_dump(
    mode="json"
)


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


async def plain(policy: Policy, verifier: Verifier, templates: dict[str, Template]) -> Json:
    """Run the episode as a loop, and return its state as the graphs do."""
    tree = Trajectory(task=Task.model_validate(TASK))

    def prompt(name: str, tried: Span, reflection: str = "") -> str:
        answer, verdict = Answer.of(tried.message), tried.verdict
        return templates[name].render(
            task={"messages": tree.task.messages, "tools": tree.task.tools},
            answer=str(answer),
            thinking=answer.thinking,
            feedback=(verdict and verdict.feedback) or "",
            attempt=1,
            reflection=reflection,
        )

    async def grow(parent: Span | None, label: Label, prompt: str, n: int = 1) -> list[Span]:
        request: tuple[Json, ...] = ({"role": "user", "content": prompt},) if parent else ()
        above = [*tree.prompt(parent), parent.turn] if parent else list(tree.task.messages)
        place: Json = {"label": label, "parent_id": parent and parent.span_id, "request": request}
        drawn = await policy.sample([*above, *request], n=n)
        return [Span.model_validate({**dict(one), **place}) for one in drawn]

    async def judged(tries: list[Span]) -> tuple[Span, ...]:
        verdicts = await judge(verifier, tree.task, tries)
        return tuple(t.model_copy(update={"verdict": v}) for t, v in zip(tries, verdicts, strict=True))

    [failed] = await judged(await grow(None, "attempt", ""))
    tree = tree.changed(spans=(failed,))
    reflections = await grow(failed, "reflect", prompt("reflect_prompt", failed), REFLECTIONS)
    tree = tree.changed(spans=(failed, *reflections))
    retries = await asyncio.gather(
        grow(failed, "retry", prompt("blind_retry_prompt", failed)),
        *(grow(one, "retry", prompt("retry_prompt", failed, str(Answer.of(one.message)))) for one in reflections),
    )
    tries = await judged([retry for [retry] in retries])
    return {"trajectory": tree.changed(spans=(failed, *reflections, *tries)).model_dump(mode="json")}


async def cpu_ms(run: Callable[[], Awaitable[Json]], episodes: int) -> float:
    start = time.process_time()
    for _ in range(episodes):
        await run()
    return (time.process_time() - start) / episodes * 1e3


async def measure(episodes: int, turns: int) -> dict[str, float]:
    policy = ScriptedPolicy(GENERATION)
    limits: Any = {"reflections": REFLECTIONS, "retries": 1, "blind_retries": 1}
    frontier = build_graph(policy=policy, verifier=exact, **limits).compile()
    send = build_send_graph(policy, exact).compile()
    nodes, own = (assemble(policy=policy, verifier=verifier, **limits) for verifier in (exact, never))
    task = Task.model_validate(TASK)

    async def collecting(nodes: Nodes = nodes) -> Json:
        return {"trajectory": (await run_episode(nodes, task)).episode.model_dump(mode="json")}

    runs: dict[str, Callable[[], Awaitable[Json]]] = {
        "frontier_ms": lambda: frontier.ainvoke({"task": TASK}),
        "send_ms": lambda: send.ainvoke({"task": TASK}),
        "collecting_ms": collecting,
        "own_verifier_ms": lambda: collecting(own),
        "plain_ms": lambda: plain(policy, exact, nodes.templates),
    }
    asked: dict[str, list[str]] = {}
    for name, run in runs.items():
        grown = (await run())["trajectory"]["spans"]
        asked[name] = sorted(json.dumps(span["request"]) for span in grown)
        assert len(grown) == 2 + 2 * REFLECTIONS, f"{name}: {len(grown)} spans"
    assert asked["plain_ms"] == asked["collecting_ms"] == asked["frontier_ms"]
    times = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            times[name].append(await cpu_ms(run, episodes))
    return {name: min(of_turns) for name, of_turns in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    times = asyncio.run(measure(options.episodes, options.turns))
    ratios = {
        "ratio": times["send_ms"] / times["frontier_ms"],
        "vs_plain": times["collecting_ms"] / times["plain_ms"],
        "frontier_vs_plain": times["frontier_ms"] / times["plain_ms"],
    }
    print(json.dumps({name: round(value, 2) for name, value in {**times, **ratios}.items()}))


if __name__ == "__main__":
    main()
