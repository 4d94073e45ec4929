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
    "--no-enable-lora",
)

ON_VLLM: dict[str, Any] = {
    "train.method": "full",
    "train.learning_rate": 3e-4,
    "loop.rounds": 8,
    "loop.evaluate_every": 8,
}
"""All weights are trained, and reloaded in place: LoRA takes most of a token's time where vLLM runs on a CPU. It takes
several times as long as the embedded server for a policy this small, so there are fewer rounds."""


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
