"""Learning from one try: points gained per 1,000 verdicts with and without siblings, also if some verdicts are wrong.

    python -m benchmarks.one_try [--seeds 5] [--tuning 2] [--labels 1000] [--steps 24] [--problems 300]

The bundled policy plays Countdown once; every arm then trains once, on tasks with the same number of verdicts, those on
first tries included, in the same number of optimizer steps. `8 siblings` is GRPO on eight reflections of each failure;
the others have one reflection of each: compared with other tasks (`train.baseline = "batch"`), the same with first
tries and retries credited too, or KTO (TRL's) on whether the retry passed, with the starting policy as reference.

Noise flips a share of the recorded verdicts, on first tries too; held-out problems are judged without. A seed draws
its own tasks and held-out problems. Each arm's learning rate is the best of a grid on seeds that are not counted,
without noise; the output names arms whose rate is at the edge of the grid. The table goes to benchmarks/RESULTS.md:
means over the seeds with 95 % t-intervals, and paired differences from `8 siblings` under the same noise, with p-values
of t-tests after Holm's correction. Finished runs are in benchmarks/finished and not repeated. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from benchmarks.arms import PROBE, REFLECTION, holm, interval, p_value
from benchmarks.results import FINISHED, RESULTS, Finished, digest, replace_section
from r3agent.records.trajectory import Trajectory
from r3agent.records.versions import BASE, version_number
from r3agent.run.demo import SETTINGS
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.registry import PolicyCard, create_version, write_card
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, train
from r3agent.train.weights import load_model, load_tokenizer, save_weights

ALONE: dict[str, Any] = {"credit": REFLECTION, "baseline": "batch"}
EVERY_SPAN = {**REFLECTION, "attempt": "success", "retry": "success"}
ARMS: dict[str, tuple[int, dict[str, Any]]] = {
    "8 siblings": (8, {"credit": REFLECTION}),
    "one try": (1, ALONE),
    "one try, every span": (1, {**ALONE, "credit": EVERY_SPAN}),
    "one try, KTO": (1, ALONE),
}
"""Reflections of each failure, and settings of the training."""
REFERENCE, KTO = "8 siblings", "one try, KTO"
NOISE = "0,0.1,0.2"
RATES = (1e-3, 3e-3, 1e-2)
FIRST_TUNING_SEED = 100
CELLS = ("first_try", "after_reflection")
FINISHED_RUNS = Finished(FINISHED / "one_try.jsonl")


class Recorded(KTOTrainer):
    """TRL's KTO on the tokens that were sampled, which it would otherwise make from text."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, dataset_name: str) -> Any:
        return dataset


class Lab:
    """Experiments of one seed: a run for each number of reflections, with what was recorded and trained."""

    def __init__(self, directory: Path, seed: int, size: dict[str, int], base_url: str) -> None:
        self.directory, self.seed, self.size = directory, seed, size
        seeds = {"task.seed": seed, "train.seed": seed, "eval.seed": seed}
        self.settings = {**SETTINGS, **seeds, "policy.base_url": base_url, "eval.n": size["problems"]}
        self.settings["eval.blind_retries"] = 1

    def run(self, reflections: int, **own: Any) -> Run:
        """Open a run."""
        return Run(self.directory / f"run-{reflections}", {**self.settings, "collect.reflections": reflections, **own})

    def recorded(self, reflections: int) -> list[Trajectory]:
        """Return episodes with the wanted number of verdicts, collected if need be."""
        run, wanted, n = self.run(reflections), self.size["labels"], PROBE
        run.serve_live()
        while True:
            stored = run.trajectories() if (run.directory / "trajectories").exists() else []
            episodes = sorted(stored, key=lambda t: t.trajectory_id)
            verdicts = np.cumsum([0, *(sum(a_try.verdict is not None for a_try in t.tries) for t in episodes)])
            if verdicts[-1] >= wanted:
                return episodes[: int(np.searchsorted(verdicts, wanted))]
            n = max(n, ceil(1.05 * len(episodes) * wanted / max(1, verdicts[-1])))
            self.run(reflections, **{"collect.n": n}).collect()

    def next_version(self) -> str:
        """Return a version that neither run has: they share a server."""
        return max((run.registry.next_version() for run in map(self.run, (1, 8))), key=version_number)

    def result(self, arm: str, noise: float, rate: float) -> dict[str, Any]:
        """Train an arm and measure it on held-out problems, in percent."""
        reflections, own = ARMS[arm]
        made_with = digest([SETTINGS, self.size, reflections, own])
        key = {"arm": arm, "noise": noise, "rate": rate, "seed": self.seed, "made_with": made_with}
        if (finished := FINISHED_RUNS.find(key)) is not None:
            return finished
        episodes = [flipped(t, noise, self.seed) for t in self.recorded(reflections)]
        run, base = self.run(reflections), self.directory / BASE
        config = TrainConfig.model_validate({**run.config.train.model_dump(), "learning_rate": rate, **own})
        rows, _ = build_rows(episodes, config=config, version=BASE)
        config = config.model_copy(update={"batch_size": ceil(len(rows) / self.size["steps"])})
        registry, version = run.registry, self.next_version()
        start = PolicyStart.of(registry.card(BASE), registry.version_dir(BASE))
        if arm == KTO:
            train_kto(rows, start, config, version, registry.version_dir(version))
        else:
            train(episodes, start=start, version=version, out_dir=registry.version_dir(version), config=config)
        own_base = run.directory / "eval" / BASE
        if base.exists():  # both runs have the same problems
            shutil.copytree(base, own_base, dirs_exist_ok=True)
        comparison = run.evaluate(BASE, version)
        if not base.exists():
            shutil.copytree(own_base, base)
        result: dict[str, Any] = {"rows": len(rows), "labels": self.size["labels"]}
        for cell in CELLS:
            before, after = (getattr(side, cell).rate for side in (comparison.baseline, comparison.candidate))
            result[cell] = {"before": 100 * before, "gain": 100 * (after - before)}
        FINISHED_RUNS.add(key, result)
        return result


def flipped(trajectory: Trajectory, noise: float, seed: int) -> Trajectory:
    """Turn a share of the verdicts round; those that a small noise turns, a larger one turns too."""
    spans = list(trajectory.spans)
    for i, span in enumerate(spans):
        if span.verdict and random.Random(f"{seed}/{trajectory.trajectory_id}/{span.span_id}").random() < noise:
            passed = not span.verdict.passed
            wrong = span.verdict.model_copy(update={"passed": passed, "score": float(passed)})
            spans[i] = span.model_copy(update={"verdict": wrong})
    return trajectory.model_copy(update={"spans": tuple(spans)})


def kto_columns(rows: Sequence[Row], batch_size: int) -> dict[str, list[Any]]:
    """Return the columns of KTO's data; the label is the reward, since an advantage also depends on the baseline."""
    completions = [row.completion_ids_T for row in rows]
    shifted: list[list[int]] = []  # of another prompt in the same batch, for the KL
    for first in range(0, len(rows), batch_size):
        batch = completions[first : first + batch_size]
        shifted += [batch[-1], *batch[:-1]]
    return {
        "prompt_ids": [row.prompt_ids_P for row in rows],
        "completion_ids": completions,
        "KL_completion_ids": shifted,
        "label": [row.reward > 0 for row in rows],
    }


def train_kto(rows: Sequence[Row], start: PolicyStart, config: TrainConfig, version: str, out_dir: Path) -> None:
    """Train a version with KTO: reflections whose retry passed are the desirable ones."""
    columns = kto_columns(random.Random(config.seed).sample(rows, len(rows)), config.batch_size)
    desirable = sum(columns["label"])
    model, tokenizer = load_model(start, config), load_tokenizer(start)
    scratch = out_dir.with_suffix(".kto")
    arguments = KTOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=int(config.warmup_ratio * len(rows) / config.batch_size),
        max_grad_norm=config.max_grad_norm,
        desirable_weight=(len(rows) - desirable) / max(1, desirable),
        num_train_epochs=1,
        seed=config.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Recorded(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shutil.rmtree(scratch, ignore_errors=True)
    model.delete_adapter("ref")
    card = PolicyCard(
        version=version, name=start.name, kind="lora", base_model=start.base_model or start.model, parent=start.version
    )
    with create_version(out_dir) as directory:
        save_weights(model, tokenizer, directory, start)
        write_card(directory, card)


def table(results: dict[tuple[str, float], list[dict[str, Any]]], rates: dict[str, float]) -> tuple[list[str], Any]:
    """Render the gains as Markdown, and return them as data."""
    lines = [
        "| arm | noise | rate | rows | first try, points | after reflection, points | per 1,000 verdicts "
        "| minus `8 siblings` | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    gains = {key: np.array([r["after_reflection"]["gain"] for r in runs]) for key, runs in results.items()}
    change = {key: gains[key] - gains[REFERENCE, key[1]] for key in gains if key[0] != REFERENCE}
    p_values = holm({str(key): p for key, d in change.items() if (p := p_value(d.tolist())) is not None})
    data: dict[str, Any] = {}
    for (arm, noise), runs in results.items():
        key, labels = (arm, noise), runs[0]["labels"]
        per_1000 = gains[key] * 1000 / labels
        first = interval([r["first_try"]["gain"] for r in runs])
        difference = interval(change[key].tolist()) if key in change else ""
        p = p_values.get(str(key))
        cells = [arm, f"{noise:.0%}", f"{rates[arm]:g}", f"{np.mean([r['rows'] for r in runs]):.0f}", first]
        cells += [
            interval(gains[key].tolist()),
            interval(per_1000.tolist()),
            difference,
            "" if p is None else f"{p:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        data[f"{arm}, noise {noise:g}"] = {"points_per_1000": round(float(per_1000.mean()), 2), "p": p}
    return lines, data


def at_edge(rates: dict[str, float]) -> list[str]:
    """Return the arms whose rate is the least or the largest of the grid, beyond which there may be a better one."""
    return [arm for arm, rate in rates.items() if rate in (RATES[0], RATES[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning", type=int, default=2, help="seeds that choose the learning rate, besides these")
    parser.add_argument("--labels", type=int, default=1000, help="verdicts that each arm may use")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--problems", type=int, default=300, help="held out")
    parser.add_argument("--noise", default=NOISE, help="shares of wrong verdicts, separated by commas")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons, `8 siblings` among them")
    parser.add_argument("--out", type=Path, default=Path("runs/one_try"), help="directory of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    arms = options.arms.split(";")
    if REFERENCE not in arms or set(arms) - ARMS.keys():
        parser.error(f"--arms {options.arms}: known are {'; '.join(ARMS)}, and {REFERENCE} is needed")
    size = {key: getattr(options, key) for key in ("labels", "steps", "problems")}
    out = options.out / digest([SETTINGS, size])

    def measured(seed: int, wanted: Sequence[tuple[str, float, float]]) -> list[dict[str, Any]]:
        directory = out / f"seed-{seed}"
        directory.mkdir(parents=True, exist_ok=True)
        with ServerProcess("bundled", log_path=directory / "server.log") as server:
            lab, found = Lab(directory, seed, size, server.base_url), list[dict[str, Any]]()
            for arm, noise, rate in wanted:
                found.append(lab.result(arm, noise, rate))
                print(f"seed {seed} {arm}, noise {noise:g}, rate {rate:g}: {json.dumps(found[-1])}", flush=True)
        return found

    grid = [(arm, 0.0, rate) for arm in arms for rate in RATES]
    tuned = [
        [r["after_reflection"]["gain"] for r in measured(seed, grid)]
        for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + options.tuning)
    ]
    by_arm = np.mean(tuned, axis=0).reshape(len(arms), len(RATES))
    rates = {arm: RATES[int(gains.argmax())] for arm, gains in zip(arms, by_arm, strict=True)}
    keys = [(arm, noise) for noise in map(float, options.noise.split(",")) for arm in arms]
    found = [measured(seed, [(arm, noise, rates[arm]) for arm, noise in keys]) for seed in range(options.seeds)]
    results = {key: list(runs) for key, runs in zip(keys, zip(*found, strict=True), strict=True)}
    lines, data = table(results, rates)
    before = interval([runs[0]["after_reflection"]["before"] for runs in found])
    lines += ["", f"Success after a reflection before training: {before} %."]
    if edge := at_edge(rates):
        grid_text = ", ".join(f"{rate:g}" for rate in RATES)
        lines += ["", f"Rate at the edge of the grid ({grid_text}), so that another may be better: {', '.join(edge)}."]
    command = " ".join(
        f"--{key} {value}" for key, value in {"seeds": options.seeds, "tuning": options.tuning, **size}.items()
    )
    command += "" if options.noise == NOISE else f" --noise {options.noise}"
    if arms != list(ARMS):
        command += f' --arms "{options.arms}"'
    full = f"python -m benchmarks.one_try {command}"
    replace_section(options.results, "Learning from one try", full, "\n".join(lines))
    print("\n".join(lines))
    print(json.dumps({"seeds": options.seeds, **size, "rates": rates, "rates_at_edge": edge, "gains": data}))


if __name__ == "__main__":
    main()
