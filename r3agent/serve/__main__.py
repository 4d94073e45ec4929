"""`python -m r3agent.serve MODEL --port 8000`: what `ServerProcess` starts."""

from __future__ import annotations

import argparse
import sys

from r3agent.errors import R3Error
from r3agent.serve.process.flags import FLAGS, settings


def main(arguments: list[str] | None = None) -> int:
    """Returns: the exit code."""
    options = _parser().parse_args(arguments)
    try:
        from r3agent.serve import serve

        serve(**settings(options))
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
    for flag, meaning in FLAGS.items():
        parser.add_argument(flag, **meaning)
    return parser


if __name__ == "__main__":
    sys.exit(main())
