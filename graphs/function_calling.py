"""Function calling with tools of your own, verified against the right calls.

Input: `{"task": {"messages": [...], "tools": [...], "info": {...}}}`; the form of the right calls in `info` is
documented in `r3agent/verifiers/function_call/verdict.py`. The bundled policy cannot call functions:
`R3AGENT_BASE_URL` and `R3AGENT_MODEL` name one that can, `OPENAI_API_KEY` has its key.
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
