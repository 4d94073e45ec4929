"""Check on a GPU: train steps in bfloat16 with and without shared prompts, and the mismatch against the served model.

    make gpu-check                                                     # makes dist/gpu-check, and runs the check here
    cd gpu-check && python3 -m benchmarks.gpu_check --wheels wheels    # in a copy of that folder, without a network

The machine needs torch and transformers; with --wheels, what else is missing is installed from there into a temporary
directory, and nothing of the machine is changed. The model is a Llama with the dimensions of Qwen2.5-0.5B and random
weights, with a final norm that makes its distributions sharper; without a GPU it is a tiny one, to try the script.

A case is prompt tokens / completion tokens / completions per prompt. An optimizer step trains all weights on `--groups`
such groups, one per micro-batch, with shared prompts and with padded rows, each in its own process. Its time is the
median of the steps after the first; its memory is the peak above the weights and the optimizer's state, with gradients.
Without a GPU it is the resident memory above that of the loaded model, with the optimizer's state. A server, vLLM if
it is there and else r3agent's own, samples from the same weights, and its logprobs are compared with those of the
trainer. All ends within --minutes, the installation among it: what would not is left out, and named in the last line,
which is one JSON object. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

SIDES = ("shared", "padded")

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
CASES = {"qwen2.5-0.5b": ["350/80/8", "700/60/8", "2000/200/8"], "tiny": ["96/16/4"]}
"""Cases by the shape of the model; the first one is also sampled from the server."""


# ---- all of it, within a limit of time ----


class Limit:
    """Limit of time, and the parts that it or an error left out."""

    def __init__(self, minutes: float) -> None:
        self.end, self.left_out = time.monotonic() + 60 * minutes, list[str]()
        self.failed = False
        """True if a part ended with an error; one that had no time did not."""

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def run(self, name: str, arguments: Sequence[str]) -> dict[str, Any] | None:
        """Run a part in a process of its own, in half of the time left, so that one that hangs leaves time for others.

        Returns:
            its results; `None` if it failed, or did not end in time.
        """
        command = [sys.executable, "-m", "benchmarks.gpu_parts", *arguments]
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        print(f"{name} ...", flush=True)
        try:
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=quiet, timeout=self.seconds / 2)
        except subprocess.TimeoutExpired:
            self.left_out.append(f"{name}: the time was up")
            return None
        if made.returncode:
            self.failed = True
            self.left_out.append(f"{name}: exit code {made.returncode}")
            return None
        return json.loads(made.stdout.splitlines()[-1])


def ratios(shared: dict[str, Any] | None, padded: dict[str, Any] | None) -> dict[str, Any]:
    """Put two sides beside each other; their ratios are above 1 where sharing prompts is better."""
    line = {"shared": shared, "padded": padded}
    if shared and padded:
        for name, key in (("time_ratio", "step_s"), ("memory_ratio", "peak_mib")):
            line[name] = round(padded[key] / shared[key], 3) if shared[key] > 0 else None
    return line


def check(options: argparse.Namespace, limit: Limit) -> dict[str, Any]:
    """Run all parts, the longest cases last, and return the line of results."""
    import torch
    import transformers

    began = time.monotonic()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    shape = options.shape or ("qwen2.5-0.5b" if gpu else "tiny")
    first, *others = options.cases or CASES[shape]
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        given = ["--model", f"{folder}/model", "--shape", shape]
        given += ["--groups", str(options.groups), "--steps", str(options.steps)]
        given += ["--checkpointing"] * options.checkpointing
        recorded = ["--case", first, "--file", f"{folder}/recorded.json", *given]
        served = limit.run("sample", ["sample", *recorded])  # makes the checkpoint too
        cases = {first: both(first, given, limit)}
        mismatch = limit.run("mismatch", ["mismatch", *recorded]) if served else None
        cases |= {case: both(case, given, limit) for case in others}
    if gpu is None:
        limit.left_out.append("GPU: this machine has none, and the figures are a CPU's")
    return {
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": shape,
        "dtype": "bfloat16",
        "groups": options.groups,
        "cases": cases,
        "mismatch": served and mismatch and {**served, **mismatch},
        "left_out": limit.left_out,
        "seconds": round(time.monotonic() - began, 1),
    }


def both(case: str, given: Sequence[str], limit: Limit) -> dict[str, Any]:
    """Run both sides of a case."""
    return ratios(*(limit.run(f"{case} {side}", [side, "--case", case, *given]) for side in SIDES))


# ---- packages that the machine lacks ----


def missing(report: dict[str, Any]) -> list[str]:
    """Return the URLs of the wheels that pip would install, from its report of a dry run."""
    return [entry["download_info"]["url"] for entry in report["install"]]


def install(wheels: str, target: str, limit: Limit) -> None:
    """Install r3agent, and what this Python lacks of its dependencies, into a directory without changing others.

    Raises:
        SystemExit: the time was up.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
    dry = [*pip, "--dry-run", "--report", "-", "--find-links", wheels, "r3agent[serve,train]"]
    try:
        found = subprocess.run(dry, stdout=subprocess.PIPE, check=True, timeout=limit.seconds)
        into = [*pip, "--no-deps", "--target", target, *missing(json.loads(found.stdout))]
        subprocess.run(into, check=True, timeout=limit.seconds)
    except subprocess.TimeoutExpired:
        sys.exit(f"the packages of {wheels} were not installed in time; pass more --minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", default="", help="folder with the packages that may be missing")
    parser.add_argument("--shape", choices=SHAPES, help="default: by the machine")
    parser.add_argument("--cases", nargs="+", help="prompt/completion/group; default: by the shape")
    parser.add_argument("--groups", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=4, help="measured, after one more")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--minutes", type=float, default=7.5)
    options = parser.parse_args()
    limit = Limit(options.minutes)
    if not options.wheels:
        print(json.dumps(check(options, limit)))
        sys.exit(limit.failed)
    with tempfile.TemporaryDirectory(prefix="gpu-check-site-") as site:
        install(options.wheels, site, limit)
        path = os.pathsep.join(filter(None, (site, os.environ.get("PYTHONPATH"))))
        again = [sys.executable, "-m", "benchmarks.gpu_check", *sys.argv[1:], "--wheels", ""]
        again += ["--minutes", f"{limit.seconds / 60}"]
        sys.exit(subprocess.run(again, env={**os.environ, "PYTHONPATH": path}, check=False).returncode)


if __name__ == "__main__":
    main()
