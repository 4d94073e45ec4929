"""The command line of the servers: `r3agent serve` has all flags, `python -m r3agent.serve` the embedded server's."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

API_KEY_VARIABLE = "R3AGENT_SERVE_API_KEY"
"""Where the server finds its key: a command line can be read by everybody on the machine."""

SHARED: dict[str, dict[str, Any]] = {
    "model": {"nargs": "?", "default": "bundled", "help": "checkpoint directory, hub id, or `bundled` (default)"},
    "--host": {"default": "127.0.0.1", "help": "default %(default)s: this machine only"},
    "--port": {"type": int, "default": 8000, "help": "0 takes a free one; default %(default)s"},
    "--name": {"help": "what the model is served as; default the directory's name"},
    "--api-key": {"help": f"clients must send it; default ${API_KEY_VARIABLE}, which other users cannot see"},
    "--dtype": {"help": "e.g. bfloat16; embedded: default float32 on a CPU, else the checkpoint's"},
    "--max-model-len": {"type": int, "help": "tokens of prompt and completion; default the model's limit"},
}
"""What every engine understands."""

EMBEDDED: dict[str, dict[str, Any]] = {
    "--device": {"help": "default cuda where there is one"},
    "--max-batch": {"type": int, "help": "completions at the same time; default 256"},
    "--max-waiting": {"type": int, "help": "completions in the queue; default 4096"},
    "--kv-cache-gib": {"type": float, "help": "memory for keys and values; default 4"},
    "--threads": {"type": int, "help": "of torch; default all but one of torch's own choice"},
}
"""What only the embedded server understands. Their defaults are those of `serve`, so that a given one can be told."""

FLAGS: dict[str, dict[str, Any]] = {
    **SHARED,
    **{flag: {**meaning, "default": argparse.SUPPRESS} for flag, meaning in EMBEDDED.items()},
}


CLI: dict[str, dict[str, Any]] = {
    "--engine": {
        "choices": ("embedded", "vllm"),
        "dest": "serve.engine",
        "help": "a small server of r3agent's own (default), or vLLM; vLLM's own options come after --",
    },
    "--vllm-python": {
        "metavar": "PYTHON",
        "dest": "serve.vllm_python",
        "help": "has vLLM; default $R3AGENT_VLLM_PYTHON, then this one",
    },
    "--log": {
        "metavar": "FILE",
        "help": "where the server's output goes; vllm: default in the run or a temporary file",
    },
    "--run": {"metavar": "DIR", "help": "take [serve] of its r3.toml, and say in servers/ where the server is"},
}
"""What only `r3agent serve` has. A destination with a dot is a setting of r3.toml."""


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `serve` among parsed options."""
    return {name: getattr(options, name) for name in map(_name, FLAGS) if hasattr(options, name)}


def words(options: argparse.Namespace, flags: Collection[str]) -> list[str]:
    """Those of the flags that have a value, as a command line has them."""
    values = ((flag, getattr(options, CLI.get(flag, {}).get("dest", _name(flag)), None)) for flag in flags)
    return [word for flag, value in values if value is not None for word in (flag, str(value))]


def _name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")
