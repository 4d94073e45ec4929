"""Learning from one try: points gained per 1,000 verdicts with and without siblings, also if some verdicts are wrong.

    python -m benchmarks.one_try [--seeds 5] [--tuning 2] [--labels 2000] [--steps 144] [--problems 300]

The bundled policy plays Countdown once; every arm then trains once, on tasks with the same number of verdicts, those on
first tries included, in the same number of optimizer steps. `8 siblings` is GRPO on eight reflections of each failure;
the others have one reflection of each: compared with other tasks (`train.baseline = "batch"`), the same with first
tries and retries credited too, or KTO (TRL's) on whether the retry passed, with the starting policy as reference.

Noise is that of the verifier while the episodes are collected (benchmarks/noisy.py): a right first try that is called
wrong is reflected on, and a wrong one that is called right is not. So each level of it has episodes of its own, with
the same number of verdicts; held-out problems are judged without.

A seed draws its own tasks: with one reflection of a failure, 2,000 verdicts need two thirds of all training tasks. Of
its held-out problems, from the 667 of Countdown's test split, two seeds share more than half with 300. Each arm's
learning rate is the best of a grid on seeds that are not counted, without noise and on problems that the comparison
does not use, at most the 281 of the gate split; the output names arms whose rate is at the edge of the grid. A batch is
a whole number of rows, so that a training may have fewer steps than --steps.

The table goes to benchmarks/RESULTS.md: means over the seeds with 95 % t-intervals, and paired differences from
`8 siblings` under the same noise, with p-values of t-tests after Holm's correction. Finished runs are in
benchmarks/finished and not repeated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kto
from benchmarks.arms import PROBE, REFLECTION, holm, interval, p_value
from benchmarks.noisy import NOISY
from benchmarks.results import FINISHED, RESULTS, Finished, digest, replace_section, surroundings
from r3agent.records.trajectory import Trajectory
from r3agent.records.versions import BASE, version_number
from r3agent.run.demo import SETTINGS
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.registry import Registry
from r3agent.train import PolicyStart, TrainConfig, build_rows, train

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
RATES = (3e-4, 1e-3, 3e-3)
FIRST_TUNING_SEED = 100
CELLS = ("first_try", "after_reflection")
FINISHED_RUNS = Finished(FINISHED / "one_try.jsonl")


class Lab:
    """Experiments of one seed: a run for each noise and number of reflections, with what it collected and trained."""

    def __init__(self, directory: Path, seed: int, size: dict[str, int], base_url: str) -> None:
        self.directory, self.seed, self.size, self.base_url = directory, seed, size, base_url
        self.settings = settings_of(seed, size)

    def run(self, reflections: int, noise: float, **own: Any) -> Run:
        """Open a run."""
        collected = {"collect.reflections": reflections, "task.verifier_params": {"noise": noise, "seed": self.seed}}
        settings = {**self.settings, "policy.base_url": self.base_url, **collected, **own}
        return Run(self.directory / f"run-{reflections}-noise{noise:g}", settings)

    def recorded(self, reflections: int, noise: float) -> list[Trajectory]:
        """Return episodes with the wanted number of verdicts, collected if need be.

        Raises:
            SystemExit: all training tasks together have fewer.
        """
        run, wanted, n, n_before = self.run(reflections, noise), self.size["labels"], PROBE, -1
        run.serve_live()
        while True:
            stored = run.trajectories() if (run.directory / "trajectories").exists() else []
            episodes = sorted(stored, key=lambda t: t.trajectory_id)
            verdicts = np.cumsum([0, *map(labels, episodes)])
            if verdicts[-1] >= wanted:
                return episodes[: int(np.searchsorted(verdicts, wanted))]
            if len(episodes) == n_before:
                raise SystemExit(
                    f"--labels {wanted}: the {n_before} training tasks have {verdicts[-1]} verdicts with {reflections} "
                    "reflections of each failure; pass fewer"
                )
            n_before = len(episodes)
            n = max(n, ceil(1.05 * len(episodes) * wanted / max(1, verdicts[-1])))
            self.run(reflections, noise, **{"collect.n": n}).collect()

    def next_version(self) -> str:
        """Return a version that no run has: they share a server."""
        return max((Registry(run).next_version() for run in self.directory.glob("run-*")), key=version_number)

    def result(self, arm: str, noise: float, rate: float) -> dict[str, Any]:
        """Train an arm and measure it on held-out problems, in percent."""
        key = {
            "arm": arm,
            "noise": noise,
            "rate": rate,
            "seed": self.seed,
            "made_with": made_with(arm, self.settings, self.size),
        }
        if (finished := FINISHED_RUNS.find(key)) is not None:
            return finished
        reflections, own = ARMS[arm]
        episodes = self.recorded(reflections, noise)
        run, base = self.run(reflections, noise), self.directory / BASE
        config = TrainConfig.model_validate({**run.config.train.model_dump(), "learning_rate": rate, **own})
        rows, _ = build_rows(episodes, config=config, version=BASE)
        config = config.model_copy(update={"batch_size": max(2, ceil(len(rows) / self.size["steps"]))})
        registry, version = run.registry, self.next_version()
        start = PolicyStart.of(registry.card(BASE), registry.version_dir(BASE))
        out_dir = registry.version_dir(version)
        if arm == KTO:
            steps = kto.train(rows, start, config, version, out_dir)
        else:
            steps = train(episodes, start=start, version=version, out_dir=out_dir, config=config).metrics["steps"]
        own_base = run.directory / "eval" / BASE
        if base.exists():  # all runs have the same problems
            shutil.copytree(base, own_base, dirs_exist_ok=True)
        comparison = self.run(reflections, noise, **{"task.verifier_params": {}}).evaluate(BASE, version)
        if not base.exists():
            shutil.copytree(own_base, base)
        result: dict[str, Any] = {"rows": len(rows), "steps": steps, "labels": sum(map(labels, episodes))}
        for cell in CELLS:
            before, after = (getattr(side, cell).rate for side in (comparison.baseline, comparison.candidate))
            result[cell] = {"before": 100 * before, "gain": 100 * (after - before)}
        FINISHED_RUNS.add(key, result)
        return result


def settings_of(seed: int, size: dict[str, int]) -> dict[str, Any]:
    """Return the settings of a seed; those for tuning have held-out problems that the others never draw."""
    seeds = {"task.seed": seed, "train.seed": seed, "eval.seed": seed}
    held_out = {"eval.split": "gate" if seed >= FIRST_TUNING_SEED else "test", "eval.n": size["problems"]}
    return {**SETTINGS, "train.recipe": "paper", **seeds, **held_out, "eval.blind_retries": 1, "task.verifier": NOISY}


def made_with(arm: str, settings: dict[str, Any], size: dict[str, int]) -> str:
    """Return a digest of what decides a result, besides the noise and the learning rate."""
    return digest([settings, size, ARMS[arm], kto.SETTINGS if arm == KTO else None, surroundings()])


def labels(trajectory: Trajectory) -> int:
    """Count the verdicts of an episode."""
    return sum(a_try.verdict is not None for a_try in trajectory.tries)


def table(results: dict[tuple[str, float], list[dict[str, Any]]], rates: dict[str, float]) -> tuple[list[str], Any]:
    """Render the gains as Markdown, and return them as data."""
    lines = [
        "| arm | noise | rate | rows | steps | first try, points | after reflection, points | per 1,000 verdicts "
        "| minus `8 siblings` | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    gains = {key: np.array([r["after_reflection"]["gain"] for r in runs]) for key, runs in results.items()}
    change = {key: gains[key] - gains[REFERENCE, key[1]] for key in gains if key[0] != REFERENCE}
    p_values = holm({str(key): p for key, d in change.items() if (p := p_value(d.tolist())) is not None})
    data: dict[str, Any] = {}
    for (arm, noise), runs in results.items():
        key = (arm, noise)
        per_1000 = gains[key] * 1000 / np.array([r["labels"] for r in runs])
        first = interval([r["first_try"]["gain"] for r in runs])
        difference = interval(change[key].tolist()) if key in change else ""
        p = p_values.get(str(key))
        means = [f"{np.mean([r[name] for r in runs]):.0f}" for name in ("rows", "steps")]
        cells = [arm, f"{noise:.0%}", f"{rates[arm]:g}", *means, first]
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
    parser.add_argument("--labels", type=int, default=2000, help="verdicts that each arm may use")
    parser.add_argument("--steps", type=int, default=144, help="optimizer steps at most")
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
    out = options.out / digest([settings_of(0, size), size, surroundings()])

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
