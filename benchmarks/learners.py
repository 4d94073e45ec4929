"""Compare learners: what each makes of the same number of sampled tokens, at its own best learning rate.

    python -m benchmarks.learners [--game equation] [--seeds 5] [--rounds 4] [--tokens 15000] [--steps 36] [--arms ...]

Each arm trains a bundled policy for some rounds, in two epochs of each. The learning rate is that of the best sum of
success in the first try and after a reflection on the gate split, with a seed of its own, and lies between two others
that were tried, unless the table says that it is the last of `RATES`. Then all arms are measured on problems of the
test split, of which there are 667 in the range that they learned from, so that seeds share many; and on those with
larger numbers or targets, on which the policy was pretrained and no arm is trained. Beyond these it solves none.

The tables go to benchmarks/RESULTS.md: means over the seeds with 95 % t-intervals, and paired differences from plain
GRPO on first tries, from the same on more tasks and all rounds so far, and from the paper's arm. The p-values are of
paired t-tests over the seeds, with Holm's correction over all arms that were compared in a column, those that are not
kept (benchmarks/finished/learners_not_kept.jsonl) among them. Finished runs are in benchmarks/finished and not
repeated; several processes may run if each has other --arms and --results, and one without --arms then makes the whole
table. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from benchmarks.arms import REFLECTION, Results, add_sizes, differences, interval, levels, train_arm
from benchmarks.results import FINISHED, RESULTS, Finished, digest, replace_section, surroundings
from r3agent.records.trajectory import Task
from r3agent.run.demo import GAMES
from r3agent.tasks import countdown, countdown_steps
from r3agent.tasks.splits import Split

ATTEMPT = {"attempt": "success"}
FIRST: dict[str, Any] = {"collect.max_attempts": 1, "collect.samples": 16, "train.credit": ATTEMPT}
FEW: dict[str, Any] = {**FIRST, "collect.samples": 4}
TREE: dict[str, Any] = {"collect.retries": 1, "train.credit": REFLECTION}
WIDE: dict[str, Any] = {**TREE, "collect.reflections": 8}
BROAD: dict[str, Any] = {**TREE, "collect.samples": 4, "collect.reflections": 4}
REPLAYED: dict[str, Any] = {"train.max_staleness": 99, "train.min_ess": 0.0}
"""Rows of all rounds are trained on again, with truncated importance weights, which the default guard may refuse for
reflections of four rounds before; rows that are imitated need none."""
IMITATED: dict[str, Any] = {"train.credit": {}, "train.imitate": 1.0}

BASE, BASELINE, BROADER, PAPER = "before", "first try", "4 first tries, replayed", "reflection"
"""The base model, plain GRPO on first tries, the same on the data of the best arm, and Reflect, Retry, Reward."""
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: FIRST,
    "first try, 12 steps": FIRST,
    BROADER: {**FEW, **REPLAYED},
    PAPER: WIDE,
    "reflection, 12 steps": WIDE,
    "reflection and imitate": {**WIDE, "train.imitate": 1.0},
    "distill": {**BROAD, "train.distill": 1.0},
    "imitate 4 first tries, replayed": {**FEW, **IMITATED, **REPLAYED},
    "imitate the paper's tree, replayed": {**WIDE, **IMITATED, **REPLAYED},
    "imitate and distill, replayed": {**BROAD, **IMITATED, **REPLAYED, "train.distill": 1.0},
}
"""Settings in addition to the game's: 16 first tries of a task, or 4 of four times as many tasks, 8 reflections on one
failure, or 4 reflections on each failure among 4 first tries."""
STEPS = {"first try, 12 steps": 12, "reflection, 12 steps": 12}
"""Optimizer steps in each epoch of a round, of arms that have others than --steps."""
LARGER = "benchmarks.learners:larger"
ELSEWHERE: dict[str, dict[str, Any]] = {
    game: {
        "task.source": LARGER,
        "task.verifier": settings["task.source"],
        "task.params.game": game,
    }
    for game, settings in GAMES.items()
}
"""Settings of the larger problems, by game."""

SIZE = {"rounds": 4, "tokens": 15_000, "steps": 36, "problems": 400}
NOT_KEPT = FINISHED / "learners_not_kept.jsonl"
TUNING_SEED = 1000
EPOCHS = 2
"""One learns less from the same tokens."""

RATES = ("2.5e-4", "5e-4", "1e-3", "2e-3", "4e-3", "8e-3")
MIDDLE = (1, 4)
"""Range of the rates that are tried in any case; one beyond them, only next to the best so far."""


def larger(n: int, *, seed: int, split: Split, game: str) -> Iterator[Task]:
    """Yield problems that the policy was pretrained on, and that training does not draw, as a task source."""
    source = {"equation": countdown, "steps": countdown_steps}[game]
    drawn = source.generate(10 * n, seed=seed, split=split, max_number=15, max_target=100)
    return islice((task for task in drawn if max(task.info["numbers"]) > 10 or task.info["target"] > 60), n)


class Bench(NamedTuple):
    """Sizes of the comparison, the directory of its runs, and the file of those that are finished."""

    game: str
    size: Mapping[str, int]
    out: Path
    finished: Path = FINISHED / "learners.jsonl"

    def result(self, arm: str, rate: str, seed: int) -> dict[str, Any]:
        """Train an arm, or return its finished result."""
        settings = {**GAMES[self.game], **ARMS[arm], "train.learning_rate": float(rate), "train.epochs": EPOCHS}
        size = {**self.size, "steps": STEPS.get(arm, self.size["steps"])}
        result = self._find_or_train(arm, seed, settings, **size, rate=rate)
        after = {cell: round(success, 1) for cell, success in result["cells"].items()}
        print(f"seed {seed} {arm:<35} rate {rate} {json.dumps(after)}", flush=True)
        return result

    def before(self, seed: int) -> dict[str, Any]:
        """Measure the base model, or return its finished result."""
        return self._find_or_train(BASE, seed, GAMES[self.game], **{**self.size, "rounds": 0})

    def _find_or_train(self, arm: str, seed: int, settings: Mapping[str, Any], *, rate: str = "0", **size: int) -> Any:
        own: dict[str, Any] = {"eval.split": "gate"} if seed == TUNING_SEED else {}
        there = ELSEWHERE[self.game] if seed != TUNING_SEED else None
        settings = {**settings, **own}
        made_with = digest([settings, size, there, surroundings(settings.get("policy.model", "bundled"))])
        key = {"game": self.game, "arm": arm, "rate": rate, "seed": seed, "made_with": made_with}
        finished, out = Finished(self.finished), self.out / self.game / made_with
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock"):  # all processes need the base model
            if (result := finished.find(key)) is None:
                result = train_arm(arm, seed, settings, **size, out=out, elsewhere=there)
                del result["made_with"]  # the key has its digest
                finished.add(key, result)
        return result

    def best_rate(self, arm: str) -> str:
        """Choose by two cells, because one alone is noisier."""

        @cache
        def score(rate: str) -> float:
            after = self.result(arm, rate, TUNING_SEED)["cells"]
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


def change(results: Results, before: list[dict[str, Any]]) -> dict[str, str]:
    """Return each arm's change of success after a reflection on the larger problems, in points."""
    cell = "after_reflection"
    starts = [run["elsewhere"][cell] for run in before]
    return {
        arm: interval([run["elsewhere"][cell] - start for run, start in zip(runs, starts, strict=True)])
        for arm, runs in results.items()
    }


def not_kept(game: str, size: Mapping[str, int], seeds: int) -> Results:
    """Return the results of arms that were compared at this size, and whose learners are gone."""
    found: Results = {}
    if size == SIZE:
        for key, result in Finished(NOT_KEPT).all():
            if key["game"] == game and key["seed"] < seeds:
                found.setdefault(key["arm"], []).append(result)
    if fewer := [arm for arm, runs in found.items() if len(runs) < seeds]:
        raise SystemExit(f"--seeds {seeds}: {', '.join(fewer)} of {NOT_KEPT.name} have fewer; pass those")
    return found


def settings_table(arms: list[str], rates: Mapping[str, str]) -> list[str]:
    """Render what each arm trains as Markdown."""
    at_edge = {RATES[0], RATES[-1]}
    lines = ["| arm | learning rate | settings |", "|---|---|---|"]
    for arm in arms:
        chosen = rates[arm] + " (the last tried)" * (rates[arm] in at_edge)
        lines.append(f"| {arm} | {chosen} | `{json.dumps(ARMS[arm])}` |")
    return lines


def arms_of(game: str) -> list[str]:
    """Return the arms of a game: its tries may have several steps, and these are not distilled."""
    return [arm for arm, own in ARMS.items() if game == "equation" or "train.distill" not in own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.set_defaults(**SIZE)
    parser.add_argument("--game", choices=GAMES, default="equation")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"{'; '.join(ARMS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/learners"), help="directory of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    size = {key: getattr(options, key) for key in ("rounds", "tokens", "steps", "problems")}
    others = not_kept(options.game, size, options.seeds)
    bench, arms = Bench(options.game, size, options.out), options.arms or arms_of(options.game)
    rates = {arm: bench.best_rate(arm) for arm in arms}
    results: Results = {arm: [] for arm in arms}
    before: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        before.append(bench.before(seed))
        for arm, rate in rates.items():
            results[arm].append(bench.result(arm, rate, seed))

    lines = [*settings_table(arms, rates), "", *levels(results, before)]
    data: dict[str, Any] = {}
    for reference in (BASELINE, BROADER, PAPER):
        if reference in results:
            rendered, data[reference] = differences(results, reference, others=others)
            lines += ["", *rendered]
    lines += ["", "Larger numbers or targets:", "", *levels(results, before, cells="elsewhere")]
    if BASELINE in results:
        rendered, data["elsewhere"] = differences(results, BASELINE, cells="elsewhere", others=others)
        lines += ["", *rendered]
    words = [f"--{key} {value}" for key, value in {"game": bench.game, "seeds": options.seeds, **size}.items()]
    if arms != arms_of(bench.game):
        words.append(f"--arms {shlex.join(arms)}")
    command = f"python -m benchmarks.learners {' '.join(words)}"
    replace_section(options.results, f"Learners: {bench.game}", command, "\n".join(lines))
    print("\n".join(lines))
    line = {"game": bench.game, "seeds": options.seeds, **size, "minus": data, "elsewhere": change(results, before)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
