"""Sampling by need against uniform drawing: tokens per useful group, and what the same tokens teach.

    python -m benchmarks.sampling_budget [--seeds 5] [--rounds 4] [--tokens 30000] [--steps 12] [--problems 500]

Both arms collect with the bundled policy for the same number of sampled tokens, and train in the same number of
optimizer steps. One draws 8 reflections of each failure; the other 2 at a time, up to 8, until the retries after them
differ. A group is useful if its rewards differ. Finished arms are stored in --out and not repeated. The last line is
one JSON object: the ratio of tokens per useful group, in parts to whole, and the difference of success after a
reflection in points, with its 95 % t-interval and p-value over the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import REFLECTION, add_sizes, interval, p_value, train_arm
from r3agent.run.demo import SETTINGS

WHOLE: dict[str, Any] = {"collect.reflections": 8, "train.credit": REFLECTION}
ARMS = {"whole": WHOLE, "in parts": {**WHOLE, "collect.reflections_at_once": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/sampling"), help="finished arms")
    options = parser.parse_args()
    size = {key: getattr(options, key) for key in ("rounds", "tokens", "steps", "problems")}
    out = options.out / "-".join(f"{key}{value}" for key, value in size.items())

    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm, own in ARMS.items():
            results[arm].append(result := train_arm(arm, seed, {**SETTINGS, **own}, **size, out=out))
            print(f"seed {seed} {arm:<9} {json.dumps(result)}", flush=True)
    per_group = {arm: sum(r["tokens"] for r in runs) / sum(r["groups"] for r in runs) for arm, runs in results.items()}
    after = {arm: np.array([r["cells"]["after_reflection"] for r in runs]) for arm, runs in results.items()}
    change = (after["in parts"] - after["whole"]).tolist()
    line = {
        "tokens_per_group_ratio": round(per_group["in parts"] / per_group["whole"], 3),
        "lift_points_equal_tokens": round(float(np.mean(change)), 2),
        "interval": interval(change),
        "p_value": p_value(change),
        "tokens_per_group": {arm: round(tokens, 1) for arm, tokens in per_group.items()},
        "after_reflection": {arm: interval(values.tolist()) for arm, values in after.items()},
        "seeds": options.seeds,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
