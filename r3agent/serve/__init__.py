"""Servers of this machine: `VLLMProcess` is real vLLM, `ServerProcess` a small one of our own where there is no vLLM.

The embedded server serves one causal language model with any number of LoRA adapters beside it through the part of
vLLM's HTTP API that r3agent uses: chat completions (`n`, logprobs, token ids, streaming), text completions with prompt
logprobs, loading adapters and reloading weights while it runs. The same client code works on both.

What it refuses to do: many machines or GPUs, models whose attention is not over all earlier tokens, images and
audio, structured output, parsing tool calls, penalties and beam search, sharing a prefix between requests. For those
there is vLLM.

    from r3agent.serve import ServerProcess

    with ServerProcess("bundled") as server:
        policy = OpenAIPolicy(server.base_url, "bundled")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from r3agent.serve.process.embedded import ServerProcess
from r3agent.serve.process.vllm import VLLMProcess

if TYPE_CHECKING:
    from r3agent.serve.engine.engine import Engine
    from r3agent.serve.engine.model import load_model
    from r3agent.serve.http.app import create_app
    from r3agent.serve.http.server import serve

__all__ = ["Engine", "ServerProcess", "VLLMProcess", "create_app", "load_model", "serve"]

_MODULES = {"Engine": "engine.engine", "create_app": "http.app", "load_model": "engine.model", "serve": "http.server"}


def __getattr__(name: str) -> Any:
    """Names that need torch are imported when they are used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from r3agent._util.imports import require_extra

    if name == "serve":
        # OpenMP threads that spin while they wait starve the clients on the same cores, and so the server.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for module in ("torch", "transformers", "starlette", "uvicorn"):
        require_extra(module, "serve")
    return getattr(import_module(f"r3agent.serve.{_MODULES[name]}"), name)
