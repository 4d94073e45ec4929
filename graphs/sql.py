"""SQL queries on the shop in `examples/shop.sql`, verified by the rows that they return.

Input: `{"question": "...", "gold": "SELECT ..."}`, where `gold` is a right query. The bundled policy cannot write SQL:
select a model that can with `R3AGENT_BASE_URL` and `R3AGENT_MODEL`, and its key with `OPENAI_API_KEY`.
"""

import os
from typing import Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict  # typing.TypedDict has no JSON Schema before Python 3.12

from examples.shop import make_task
from r3agent import EpisodeContext, OpenAIPolicy, build_graph
from r3agent.episodes.state import EpisodeOutput
from r3agent.records.prompts import PROMPTS
from r3agent.run.config import PolicyConfig
from r3agent.verifiers import find_verifier


class Question(TypedDict):
    question: str
    gold: str


class State(Question, EpisodeOutput):
    task: dict[str, Any]


def pose(question: Question) -> Any:
    task = make_task(question["question"], question["gold"], task_id=question["question"])
    return {"task": task.model_dump(mode="json")}


default = PolicyConfig()
policy = OpenAIPolicy(
    os.environ.get("R3AGENT_BASE_URL", default.base_url),
    os.environ.get("R3AGENT_MODEL", default.model),
    registry=os.environ.get("R3AGENT_RUN"),
)
solve = build_graph(policy=policy, verifier=find_verifier("sql"), **PROMPTS["code"].model_dump(), stream=True)

graph = StateGraph(State, context_schema=EpisodeContext, input_schema=Question, output_schema=EpisodeOutput)
graph.add_sequence([("pose", pose), ("solve", solve.compile())])
graph.add_edge(START, "pose")
graph = graph.compile(name="sql")
