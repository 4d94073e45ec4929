"""Countdown: combine numbers to a target.

Input: `{"numbers": [2, 3, 4], "target": 20}`. The bundled policy plays it: `r3agent serve bundled --port 8000`.
`R3AGENT_BASE_URL` and `R3AGENT_MODEL` select another policy. If `R3AGENT_RUN` names a run directory, the model
`NAME@live` is its live version.
"""

import os
from typing import Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict  # typing.TypedDict has no JSON Schema before Python 3.12

from r3agent import EpisodeContext, OpenAIPolicy, Sampling, build_graph
from r3agent.episodes.state import EpisodeOutput
from r3agent.run.config import PolicyConfig
from r3agent.tasks.countdown import make_task
from r3agent.verifiers import find_verifier


class Puzzle(TypedDict):
    numbers: list[int]
    target: int


class State(Puzzle, EpisodeOutput):
    task: dict[str, Any]


def pose(puzzle: Puzzle) -> Any:
    return {"task": make_task(puzzle["numbers"], puzzle["target"]).model_dump(mode="json")}


default = PolicyConfig()
policy = OpenAIPolicy(
    os.environ.get("R3AGENT_BASE_URL", default.base_url),
    os.environ.get("R3AGENT_MODEL", default.model),
    registry=os.environ.get("R3AGENT_RUN"),
    sampling=Sampling(max_tokens=24),
)
solve = build_graph(policy=policy, verifier=find_verifier("countdown"), max_attempts=3, stream=True)

graph = StateGraph(State, context_schema=EpisodeContext, input_schema=Puzzle, output_schema=EpisodeOutput)
graph.add_sequence([("pose", pose), ("solve", solve.compile())])
graph.add_edge(START, "pose")
graph = graph.compile(name="countdown")
