"""The whole loop on a game of several steps: `r3agent demo --game steps`, on the embedded server or on vLLM.

    python -m benchmarks.agent_loop --seed 0 [--engine vllm] [--out DIR]

A try is up to `max_steps` calls of the model and the tool. The last line is one JSON object: success after a reflection
before and after the training, on the same held-out problems, with the p-value of an exact paired test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from r3agent.cli.progress import ConsoleReporter
from r3agent.run.demo import GAMES, run_demo
from r3agent.serve.process.vllm import VLLMProcess

VLLM_OPTIONS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "128", "--enforce-eager"),
    *("--max-lora-rank", "16"),
)
"""The highest rank is that of the adapters: most of a token's time on a CPU is LoRA, and more with a higher rank."""

ON_VLLM: dict[str, Any] = {"loop.rounds": 4, "loop.evaluate_every": 4, "eval.n": 300}
"""Fewer rounds and tasks, because vLLM on a CPU takes several times as long for a policy this small."""


def main(seed: int, engine: str, out: Path) -> None:
    settings = GAMES["steps"] | (ON_VLLM if engine == "vllm" else {})
    server = None
    if engine == "vllm":
        out.mkdir(parents=True, exist_ok=True)
        server = VLLMProcess("bundled-steps", log_path=out / "server.log", options=VLLM_OPTIONS)
    with ConsoleReporter() as reporter:
        summary, text = run_demo(out, seed, reporter, settings=settings, server=server)
    print(text)
    line = {
        "before": summary.before.after_reflection,
        "after": summary.after.after_reflection,
        "lift_points": round(summary.lift_points, 2),
        "p_value": summary.p_value,
        "steps_mean": summary.steps_per_try,
        "seconds": summary.seconds,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("embedded", "vllm"), default="embedded")
    parser.add_argument("--out", type=Path, help="run directory, which stays; default: a temporary one")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="agent-loop-") as temporary:
        main(options.seed, options.engine, options.out or Path(temporary))
