"""`python -m r3agent.serve MODEL --port 8000`: what `r3agent serve` and `ServerProcess` start."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time

from r3agent.errors import R3Error
from r3agent.serve.process import API_KEY_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    """Returns: the exit code."""
    options = vars(_parser().parse_args(arguments))
    if (parent := options.pop("parent_pid")) is not None:
        threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
    try:
        from r3agent.serve import serve

        serve(**options)
    except R3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m r3agent.serve",
        description="A small OpenAI-compatible server for one machine without vLLM.",
        epilog="Example: python -m r3agent.serve bundled --port 8000",
    )
    add = parser.add_argument
    add("model", nargs="?", default="bundled", help="checkpoint directory, hub id, or `bundled` (default)")
    add("--host", default="127.0.0.1", help="default %(default)s")
    add("--port", type=int, default=8000, help="0 takes a free one; default %(default)s")
    add("--name", help="what the model is served as; default the directory's name")
    add("--api-key", help=f"clients must send it; default ${API_KEY_VARIABLE}, which other users cannot see")
    add("--dtype", help="e.g. bfloat16; default float32 on a CPU, else the checkpoint's")
    add("--device", help="default cuda where there is one")
    add("--max-model-len", type=int, help="tokens of prompt and completion; default the model's limit")
    add("--max-batch", type=int, default=256, help="completions at the same time; default %(default)s")
    add("--max-waiting", type=int, default=4096, help="completions in the queue; default %(default)s")
    add("--kv-cache-gib", type=float, default=4.0, help="memory for keys and values; default %(default)s")
    add("--threads", type=int, help="of torch; default all but one of torch's own choice")
    add("--parent-pid", type=int, help=argparse.SUPPRESS)
    return parser


def _stop_with(parent: int) -> None:
    """Stop when the process that started the server is gone, however it went: an orphan has another parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
