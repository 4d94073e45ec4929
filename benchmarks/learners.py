"""Compare learners: what each makes of the same number of sampled tokens, at its own best learning rate.

    python -m benchmarks.learners [--game equation] [--seeds 5] [--rounds 4] [--tokens 15000] [--steps 12] [--arms ...]

Each arm trains a bundled policy for some rounds, in two epochs of each. The learning rate is that of the best sum of
success in the first try and after a reflection on a seed that the comparison does not use, and lies between two others
that were tried, unless the table says that it is the last of `RATES`. Then all arms are measured on held-out problems
of the tasks that they learned from, and of another distribution, with larger numbers and targets.

The tables go to benchmarks/RESULTS.md: means over the seeds with 95 % t-intervals, and paired differences from plain
GRPO on first tries and from the paper's arm. The p-values are of paired t-tests over the seeds, with Holm's correction
over the arms. Finished runs are in benchmarks/finished and not repeated; several processes may run if each has other
--arms and --results, and one without --arms then makes the whole table. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.arms import REFLECTION, Results, add_sizes, differences, interval, levels, trained
from benchmarks.credit import BASELINE, PAPER
from benchmarks.results import FINISHED, RESULTS, Finished, digest, replace_section
from r3agent.run.demo import GAMES

ATTEMPT = {"attempt": "success"}
FIRST: dict[str, Any] = {"collect.max_attempts": 1, "collect.samples": 16, "train.credit": ATTEMPT}
WIDE: dict[str, Any] = {"collect.reflections": 8, "train.credit": REFLECTION}
BROAD: dict[str, Any] = {**WIDE, "collect.samples": 4, "collect.reflections": 4}
REPLAYED: dict[str, Any] = {"train.max_staleness": 99, "train.min_ess": 0.0}
"""Rows of all rounds are trained on again, with truncated importance weights, which the default guard may refuse for
reflections of four rounds before; rows that are imitated need none."""
IMITATED: dict[str, Any] = {"train.credit": {}, "train.imitate": 1.0}
BOTH: dict[str, Any] = {"train.credit": {**ATTEMPT, **REFLECTION}}

ARMS: dict[str, dict[str, Any]] = {
    "first try": FIRST,
    "first try, replayed": {**FIRST, **REPLAYED},
    "reflection": WIDE,
    "reflection, replayed": {**WIDE, **REPLAYED},
    "distill": {**WIDE, "train.distill": 1.0},
    "distill, replayed": {**WIDE, **REPLAYED, "train.distill": 1.0},
    "both": {**BROAD, **BOTH},
    "both, replayed": {**BROAD, **BOTH, **REPLAYED},
    "both and distill, replayed": {**BROAD, **BOTH, **REPLAYED, "train.distill": 1.0},
    "imitate first tries, replayed": {**FIRST, **IMITATED, **REPLAYED},
    "imitate and distill, replayed": {**BROAD, **IMITATED, **REPLAYED, "train.distill": 1.0},
    "imitate, reflection and distill, replayed": {
        **BROAD,
        **IMITATED,
        **REPLAYED,
        "train.credit": REFLECTION,
        "train.distill": 1.0,
    },
    "RLTF-SD": {**BROAD, "train.distill": 1.0, "train.distill_retries": "all"},
    "SDPO": {**WIDE, "train.self_distill": 1.0},
    "SC-SDPO": {**WIDE, "train.self_distill": 1.0, "train.self_distill_form": "weighted"},
    "RLCSD": {**WIDE, "train.self_distill": 1.0, "train.self_distill_form": "contrast"},
    "SRPO": {**BROAD, "train.credit": ATTEMPT, "train.self_distill": 1.0},
    "PODS": {**WIDE, "collect.reflections": 16, "train.max_siblings": 8},
    "MaxRL": {**FIRST, "train.scale_rewards": "mean"},
}
"""Settings in addition to the game's: 16 first tries of a task, 8 reflections on one failure, or 4 reflections on each
failure among 4 first tries (`both`, of which first tries and reflections are credited). Those named by a paper have its
advantages on these trees; `TrainConfig` has the references."""
ELSEWHERE: dict[str, dict[str, Any]] = {
    "equation": {"task.params.max_number": 15, "task.params.max_target": 99},
    "steps": {"task.params.max_number": 15, "task.params.max_target": 99},
}
"""Settings of the other distribution, by game."""

TUNING_SEED = 1000
EPOCHS = 2
"""One learns less from the same tokens."""

RATES = ("2.5e-4", "5e-4", "1e-3", "2e-3", "4e-3", "8e-3")
MIDDLE = (1, 4)
"""Range of the rates that are tried in any case; one beyond them, only next to the best so far."""


class Bench(NamedTuple):
    """Sizes of the comparison, the directory of its runs, and the file of those that are finished."""

    game: str
    size: Mapping[str, int]
    out: Path
    finished: Path = FINISHED / "learners.jsonl"

    def result(self, arm: str, rate: str, seed: int) -> dict[str, Any]:
        """Train an arm, or return its finished result."""
        settings = {**GAMES[self.game], **ARMS[arm], "train.learning_rate": float(rate), "train.epochs": EPOCHS}
        there = ELSEWHERE[self.game] if seed != TUNING_SEED else None
        key = {
            "game": self.game,
            "arm": arm,
            "rate": rate,
            "seed": seed,
            "made_with": digest([settings, self.size, there]),
        }
        finished = Finished(self.finished)
        if (result := finished.find(key)) is None:
            sizes = "-".join(f"{name}{value}" for name, value in self.size.items())
            out = self.out / f"{self.game}-{sizes}" / f"rate{rate}"
            result = trained(arm, seed, settings, **self.size, out=out, shared=out.parent, elsewhere=there)
            del result["made_with"]  # the key has its digest
            finished.add(key, result)
        after = {cell: round(rate, 1) for cell, rate in result["candidate"].items()}
        print(f"seed {seed} {arm:<30} rate {rate} {json.dumps(after)}", flush=True)
        return result

    def best_rate(self, arm: str) -> str:
        """Choose by two cells, because one alone is noisier."""

        @cache
        def score(rate: str) -> float:
            after = self.result(arm, rate, TUNING_SEED)["candidate"]
            return after["first_try"] + after["after_reflection"]

        low, high = MIDDLE
        while True:
            best = max(RATES[low:high], key=score)
            if best == RATES[low] and low > 0:
                low -= 1
            elif best == RATES[high - 1] and high < len(RATES):
                high += 1
            else:
                return best


def abroad(results: Results) -> Results:
    """Return the results on the other distribution."""
    return {arm: [{**run, **run["elsewhere"]} for run in runs] for arm, runs in results.items()}


def change(results: Results) -> dict[str, str]:
    """Return each arm's change of success after a reflection on the other distribution, in points."""
    cell = "after_reflection"
    there = abroad(results)
    return {arm: interval([r["candidate"][cell] - r["baseline"][cell] for r in runs]) for arm, runs in there.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.set_defaults(tokens=15_000, problems=400)
    parser.add_argument("--game", choices=ELSEWHERE, default="equation")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--out", type=Path, default=Path("runs/learners"), help="directory of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    size = {key: getattr(options, key) for key in ("rounds", "tokens", "steps", "problems")}
    bench = Bench(options.game, size, options.out)
    rates = {arm: bench.best_rate(arm) for arm in options.arms}
    results: Results = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        for arm, rate in rates.items():
            results[arm].append(bench.result(arm, rate, seed))

    at_edge = {RATES[0], RATES[-1]}
    chosen = "; ".join(f"{arm} {rate}{' (the last tried)' * (rate in at_edge)}" for arm, rate in rates.items())
    lines = [f"Learning rates: {chosen}.", "", *levels(results)]
    data: dict[str, Any] = {}
    for reference in (BASELINE, PAPER):
        if reference in results:
            rendered, data[reference] = differences(results, reference)
            lines += ["", *rendered]
    lines += ["", "Larger numbers and targets:", "", *levels(abroad(results))]
    if BASELINE in results:
        rendered, data["elsewhere"] = differences(abroad(results), BASELINE)
        lines += ["", *rendered]
    words = [f"--{key} {value}" for key, value in {"game": bench.game, "seeds": options.seeds, **size}.items()]
    if options.arms != [*ARMS]:
        words.append(f"--arms {shlex.join(options.arms)}")
    command = " ".join(words)
    replace_section(
        options.results, f"Learners: {bench.game}", f"python -m benchmarks.learners {command}", "\n".join(lines)
    )
    print("\n".join(lines))
    print(json.dumps({"game": bench.game, "seeds": options.seeds, **size, "minus": data, "elsewhere": change(results)}))


if __name__ == "__main__":
    main()
