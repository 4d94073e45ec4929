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

import os
from typing import TYPE_CHECKING

from r3agent._util.imports import require_extra
from r3agent._util.lazy import lazy_names


def _prepare(name: str) -> None:
    """Check that what runs in this process has its packages, and set what torch reads when it is imported."""
    if name in ("ServerProcess", "VLLMProcess"):
        return
    if name == "serve":
        # OpenMP threads that spin while they wait starve the clients on the same cores, and so the server.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for module in ("torch", "transformers", "starlette", "uvicorn"):
        require_extra(module, "serve")


if TYPE_CHECKING:
    from r3agent.serve.engine.engine import Engine as Engine
    from r3agent.serve.engine.model import load_model as load_model
    from r3agent.serve.http.app import create_app as create_app
    from r3agent.serve.http.server import serve as serve
    from r3agent.serve.process.embedded import ServerProcess as ServerProcess
    from r3agent.serve.process.vllm import VLLMProcess as VLLMProcess
else:
    __getattr__, __dir__ = lazy_names(__name__, _prepare)
