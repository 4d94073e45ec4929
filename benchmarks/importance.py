"""Effect of the server's rounding on training, with and without truncated importance sampling, on the bundled policy.

    python benchmarks/importance.py [--tasks 96] [--noise 0.04] [--epochs 4] [--seeds 3]

One collection of the demo gives the rows; the bundled server and the trainer agree to 1e-5 nats. Recorded logprobs are
then changed: by normal noise of `--noise` nats (`noise`), or to those of the same weights in bfloat16 (`bfloat16`).
`older` trains half of the rows from a version that was trained on the other half, so that they are one version old.
Each case is trained with `importance_cap` of "none" (the clipped ratio is current / recorded) and 3.0 (current / start,
with capped weights). Reported are the share of tokens that start outside the clip range, and two cosines to the same
training on rows without the change: of the first step's gradient, and of the whole update. For `older`, the reference
is the same training with importance weights and without any clipping. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from r3agent.run.demo import SETTINGS
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.models import resolve_model
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.weights import load_model, load_tokenizer

CAPS: dict[str, float | str] = {"recorded": "none", "truncated": 3.0}


class FirstGradient(TrainerCallback):
    """Callback that keeps the first step's gradient."""

    def __init__(self) -> None:
        self.gradient: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.gradient is None:
            self.gradient = flat(kwargs["model"], lambda p: p.grad)


def flat(model: Any, value: Callable[[Any], torch.Tensor | None]) -> torch.Tensor:
    """Join the trainable parameters, or their gradients, to one vector."""
    return torch.cat([value(p).detach().flatten().clone() for p in model.parameters() if p.requires_grad])


def collect(tasks: int, directory: Path) -> list[Row]:
    directory.mkdir()
    with ServerProcess("bundled", log_path=directory / "server.log") as server:
        run = Run(
            directory, {**SETTINGS, "train.recipe": "paper", "collect.n": tasks, "policy.base_url": server.base_url}
        )
        run.serve_live()
        run.collect()
    rows, _ = build_rows(run.trajectories(), config=run.config.train, version="v0000")
    return rows


class Bench:
    """Trainings of the bundled policy that differ in the rows' recorded logprobs and in the cap."""

    def __init__(self, rows: list[Row], epochs: int, directory: Path) -> None:
        self.rows, self.epochs, self.directory = rows, epochs, directory
        self.start = PolicyStart(version="v0000", name="bundled", model=resolve_model("bundled"))

    def trainer(self, rows: list[Row], weights: torch.Tensor | None = None, **values: Any) -> OfflineGRPOTrainer:
        settings = {"learning_rate": SETTINGS["train.learning_rate"], "max_grad_norm": 1e9, "micro_batch_tokens": 16384}
        config = TrainConfig.model_validate({**settings, "batch_size": 128, "epochs": self.epochs, **values})
        model = load_model(self.start, config)
        if weights is not None:
            torch.nn.utils.vector_to_parameters(weights.clone(), [p for p in model.parameters() if p.requires_grad])
        return OfflineGRPOTrainer(model, to_dataset(rows), load_tokenizer(self.start), config, self.directory)

    def train(self, rows: list[Row], **values: Any) -> dict[str, torch.Tensor]:
        trainer, seen = self.trainer(rows, **values), FirstGradient()
        scores = trainer.score()
        before = flat(trainer.model, lambda p: p)
        trainer.add_callback(seen)
        trainer.train()
        after = flat(trainer.model, lambda p: p)
        gaps = [torch.tensor(s) - torch.tensor(row.logprobs_T) for row, s in zip(rows, scores, strict=True)]
        assert seen.gradient is not None
        return {"gradient": seen.gradient, "update": after - before, "after": after, "gap": torch.cat(gaps)}

    def bfloat16(self) -> list[Row]:
        trainer = self.trainer(self.rows)
        trainer.model = trainer.model.to(torch.bfloat16)
        scores = trainer.logprobs([(row.prompt_ids_P, row.completion_ids_T) for row in self.rows])
        return [row._replace(logprobs_T=score) for row, score in zip(self.rows, scores, strict=True)]

    def noisy(self, noise: float, seed: int) -> list[Row]:
        torch.manual_seed(seed)
        return [
            row._replace(logprobs_T=(torch.tensor(row.logprobs_T) + noise * torch.randn(len(row.logprobs_T))).tolist())
            for row in self.rows
        ]


def compared(got: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], truncated: bool) -> dict[str, float]:
    ratio = got["gap"].exp()
    outside = ((ratio < 0.8) | (ratio > 1.2)).double().mean().item()
    return {
        "gap": got["gap"].abs().mean().item(),
        "outside": 0.0 if truncated else outside,
        **{key: torch.cosine_similarity(got[key], reference[key], 0).item() for key in ("gradient", "update")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--noise", type=float, default=0.04, help="standard deviation, nats")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        rows = collect(options.tasks, Path(directory) / "run")
        bench = Bench(rows, options.epochs, Path(directory) / "out")
        exact = bench.train(rows)
        groups = sorted({row.group_id for row in rows})[::2]
        halves = [[row for row in rows if (row.group_id in groups) == first] for first in (True, False)]
        newer = bench.train(halves[0])["after"]
        unclipped = bench.train(halves[1], weights=newer, importance_cap="none", epsilon_low=0.999, epsilon_high=1e9)
        cases = {
            "noise": [bench.noisy(options.noise, seed) for seed in range(options.seeds)],
            "bfloat16": [bench.bfloat16()],
            "older": [halves[1]],
        }
        results: dict[str, Any] = {"rows": len(rows), "tokens": len(exact["gap"])}
        for case, variants in cases.items():
            reference = unclipped if case == "older" else exact
            weights = newer if case == "older" else None
            for name, cap in CAPS.items():
                each = [
                    compared(bench.train(v, weights=weights, importance_cap=cap), reference, cap != "none")
                    for v in variants
                ]
                results[f"{case} {name}"] = {key: float(f"{fmean(r[key] for r in each):.4g}") for key in each[0]}
                print(f"{case} {name}: {results[f'{case} {name}']}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
