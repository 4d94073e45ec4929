"""Settings of serving: the section `[serve]` of r3.toml."""

from __future__ import annotations

from typing import Literal

from r3agent.records.trajectory import Record


class ServeConfig(Record):
    """Choice of the server that `r3agent serve` starts."""

    engine: Literal["embedded", "vllm"] = "embedded"
    """Server that `r3agent serve` starts: a small one of r3agent's own, or vLLM, whose own options come after `--`."""
    vllm_python: str = ""
    """Python of the environment that has vLLM; empty means `$R3AGENT_VLLM_PYTHON`, then r3agent's own."""
    options: tuple[str, ...] = ()
    """Further options of vLLM's command line, e.g. `["--max-num-seqs", "64"]`."""
