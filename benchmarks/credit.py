"""Compare rewards: arms that credit different labels, with equal sampled tokens and equal optimizer steps.

    python benchmarks/credit.py [--seeds 5] [--rounds 4] [--tokens 30000] [--steps 12] [--problems 500] [--arms ...]

Every arm runs on the bundled policy, collects the tree that suits it on as many tasks as its tokens allow, and trains
on all rows that it credits in --steps steps a round: the batch size differs, not the number of updates, and all arms
have one learning rate. After the last round an arm is measured on held-out problems in every cell; the start is
measured once per seed. A seed sets tasks, weights of new adapters and the order of rows; sampling differs between
runs.

The tables go to benchmarks/RESULTS.md: means over the seeds with 95 % t-intervals, and paired differences from plain
GRPO on first tries, the baseline, and from the paper's arm. The p-values are of paired t-tests over the seeds, with
Holm's correction over the arms. Finished arms are stored in --out and not repeated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.arms import REFLECTION, Results, add_sizes, differences, levels, trained
from benchmarks.results import RESULTS, replace_section
from r3agent.run.demo import SETTINGS

EVERYTHING = {**REFLECTION, "attempt": "success", "retry": "success", "blind_retry": "success"}

ARMS: dict[str, dict[str, Any]] = {
    "reflection": {"collect.reflections": 8, "train.credit": REFLECTION},
    "lift": {"collect.reflections": 8, "collect.blind_retries": 4, "train.credit": {"reflect": "lift"}},
    "reflection + retry": {
        "collect.reflections": 4,
        "collect.retries": 3,
        "train.credit": {**REFLECTION, "retry": "success"},
    },
    "everything": {
        "collect.samples": 4,
        "collect.reflections": 4,
        "collect.retries": 2,
        "collect.blind_retries": 4,
        "train.credit": EVERYTHING,
        "train.distill": 1.0,
    },
    "blind retry": {
        "collect.reflections": 0,
        "collect.blind_retries": 16,
        "train.credit": {"blind_retry": "success"},
    },
    "first try": {"collect.max_attempts": 1, "collect.samples": 16, "train.credit": {"attempt": "success"}},
    "distill": {"collect.reflections": 8, "train.credit": REFLECTION, "train.distill": 1.0},
}
"""Settings in addition to the demo's. `blind retry` trains no reflection either: it is the control of reflecting."""
BASELINE, PAPER = "first try", "reflection"
"""Plain GRPO on first tries, and the arm of Reflect, Retry, Reward."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/credit"), help="finished arms; delete it to start again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms {', '.join(unknown)}: known are {', '.join(ARMS)}")
    size = {key: getattr(options, key) for key in ("rounds", "tokens", "steps", "problems")}
    out = options.out / "-".join(f"{key}{value}" for key, value in size.items())

    results: Results = {arm: [] for arm in arms}
    for seed in range(options.seeds):
        for arm in arms:
            result = trained(arm, seed, {**SETTINGS, **ARMS[arm]}, **size, out=out)
            results[arm].append(result)
            print(f"seed {seed} {arm:<20} {json.dumps(result)}", flush=True)
    lines, data = levels(results), {}
    for reference in (BASELINE, PAPER):
        if reference in results:
            rendered, data[reference] = differences(results, reference)
            lines += ["", *rendered]
    command = " ".join(f"--{key} {value}" for key, value in {"seeds": options.seeds, **size}.items())
    if arms != list(ARMS):
        command += f' --arms "{options.arms}"'
    replace_section(options.results, "Credit by label", f"python benchmarks/credit.py {command}", "\n".join(lines))
    print("\n".join(lines))
    print(json.dumps({"seeds": options.seeds, **size, "minus": data}))


if __name__ == "__main__":
    main()
