"""Function calling with your own tools, verified against the expected calls.

Input: `{"task": {"messages": [...], "tools": [...], "info": {...}}}`; `r3agent/verifiers/function_call/verdict.py`
documents the format of the expected calls in `info`. The bundled policy cannot call functions: select a model that can
with `R3AGENT_BASE_URL` and `R3AGENT_MODEL`, and its key with `OPENAI_API_KEY`.
"""

import os

from r3agent import OpenAIPolicy, build_graph
from r3agent.records.prompts import PROMPTS
from r3agent.run.config import PolicyConfig
from r3agent.verifiers import find_verifier

default = PolicyConfig()
policy = OpenAIPolicy(
    os.environ.get("R3AGENT_BASE_URL", default.base_url),
    os.environ.get("R3AGENT_MODEL", default.model),
    registry=os.environ.get("R3AGENT_RUN"),
)

graph = build_graph(
    policy=policy, verifier=find_verifier("function_call"), **PROMPTS["function_call"].model_dump(), stream=True
).compile(name="function_calling")
