"""Local servers: `VLLMProcess` runs real vLLM, `ServerProcess` a small embedded server for machines without vLLM.

The embedded server serves one causal language model and any number of LoRA adapters, through the part of vLLM's HTTP
API that r3agent uses: chat completions (`n`, logprobs, token ids, streaming), text completions with prompt logprobs,
loading adapters and reloading weights while it runs. The same client code works with both.

It does not support several machines or GPUs, models whose attention does not cover all earlier tokens, images and
audio, structured output, parsing of tool calls, penalties, beam search, or prefix sharing between requests; use vLLM
for these.

    from r3agent.serve import ServerProcess

    with ServerProcess("bundled") as server:
        policy = OpenAIPolicy(server.base_url, "bundled")
"""

import os
from typing import TYPE_CHECKING

from r3agent._util.imports import require_extra
from r3agent._util.lazy import lazy_names


def _prepare(name: str) -> None:
    """Check that the needed packages are installed, and set variables that torch reads on import."""
    if name in ("ServerProcess", "VLLMProcess"):
        return
    if name == "serve":
        # OpenMP threads that spin while waiting starve clients on the same cores, and so the server.
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
