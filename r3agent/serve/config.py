"""Server settings: the `[serve]` section of r3.toml."""

from __future__ import annotations

from typing import Literal

from r3agent.records.trajectory import Record


class ServeConfig(Record):
    """Settings of the server that `r3agent serve` starts."""

    engine: Literal["embedded", "vllm"] = "embedded"
    """Server that `r3agent serve` starts: r3agent's embedded server, or vLLM, which gets the options after `--`."""
    vllm_python: str = ""
    """Python of the environment with vLLM; if empty, `$R3AGENT_VLLM_PYTHON`, or else r3agent's own Python."""
    options: tuple[str, ...] = ()
    """More options for vLLM's command line, e.g. `["--max-num-seqs", "64"]`."""
