"""The command line of the embedded server: `r3agent serve` and `python -m r3agent.serve` have the same flags."""

from __future__ import annotations

import argparse
from typing import Any

API_KEY_VARIABLE = "R3AGENT_SERVE_API_KEY"
"""Where the server finds its key: a command line can be read by everybody on the machine."""

FLAGS: dict[str, dict[str, Any]] = {
    "model": {"nargs": "?", "default": "bundled", "help": "checkpoint directory, hub id, or `bundled` (default)"},
    "--host": {"default": "127.0.0.1", "help": "default %(default)s: this machine only"},
    "--port": {"type": int, "default": 8000, "help": "0 takes a free one; default %(default)s"},
    "--name": {"help": "what the model is served as; default the directory's name"},
    "--api-key": {"help": f"clients must send it; default ${API_KEY_VARIABLE}, which other users cannot see"},
    "--dtype": {"help": "e.g. bfloat16; default float32 on a CPU, else the checkpoint's"},
    "--device": {"help": "default cuda where there is one"},
    "--max-model-len": {"type": int, "help": "tokens of prompt and completion; default the model's limit"},
    "--max-batch": {"type": int, "default": 256, "help": "completions at the same time; default %(default)s"},
    "--max-waiting": {"type": int, "default": 4096, "help": "completions in the queue; default %(default)s"},
    "--kv-cache-gib": {"type": float, "default": 4.0, "help": "memory for keys and values; default %(default)s"},
    "--threads": {"type": int, "help": "of torch; default all but one of torch's own choice"},
}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `serve` among parsed options."""
    return {name: getattr(options, name) for name in (flag.lstrip("-").replace("-", "_") for flag in FLAGS)}
