"""Calibration of the gate: simulated loops of equal versions, and of versions with a known gain.

    nice python -m benchmarks.gate_calibration

Equal versions (A/A): 1,000 loops of 10 rounds for each kind of null, with levels by `spend_alpha`. Both versions draw
their outcomes from the same success rate of each task; in the skewed kinds, most tasks gain a little and a few lose
all, so that the mean difference is 0. One kind goes through the whole gate, batch by batch. In all kinds, a loop also
counts as promoted if the wealth reaches the level at any of the planned tasks, as if no test were given up.
`false_promotions` is the largest share of all kinds and both counts; that of the fixed test stands beside it.

A known gain (A/B): 400 gates of a first round for each kind, of the gain for which the test claims a power of 80 %;
`power_seen` is the mean share of all kinds, `power_seen_least` the smallest. `tasks_saved` is the share of the tasks of
a fixed test that the sequential one does not use, on average over these gates and those of the first round of equal
versions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r3agent.evaluate import Decision, compare, gate, spend_alpha
from r3agent.evaluate.comparison import Comparison, Draw
from r3agent.evaluate.sequential import log_wealth, sequential_power
from r3agent.evaluate.statistics import difference, sign_flip_test
from r3agent.records.trajectory import Span, Task, Trajectory, Verdict
from r3agent.run.config import Config

Floats = NDArray[np.float64]

CONFIG = Config.model_validate({"eval": {"n": 500}})
PLANNED, BATCH, ALPHA = CONFIG.gate_tasks, CONFIG.gate.batch, CONFIG.gate.alpha
ROUNDS, POWER_SAID = 10, 0.8
LIMITS: dict[str, Any] = {"min_lift": CONFIG.gate.min_lift, "max_regression": 100.0}


def binomial(rate: Callable[[np.random.Generator, int], Floats], samples: int) -> Callable[..., Floats]:
    """Make a null: both versions sample `samples` episodes of each task at its success rate."""

    def draw(rng: np.random.Generator, n: int, gain: float = 0.0) -> Floats:
        before = rate(rng, n)
        after = np.clip(before + gain, 0, 1)
        return (rng.binomial(samples, after) - rng.binomial(samples, before)) / samples

    return draw


def skewed(loss: float, share: float) -> Callable[..., Floats]:
    """Make a null: a share of the tasks loses `loss`, and the others gain, so that the mean is 0 (plus a gain)."""

    def draw(rng: np.random.Generator, n: int, gain: float = 0.0) -> Floats:
        small = loss * share / (1 - share) + gain / (1 - share)
        return np.where(rng.random(n) < share, -loss, np.minimum(small, 1.0))

    return draw


NULLS: dict[str, Callable[..., Floats]] = {
    "1 sample, rates of all sizes": binomial(lambda rng, n: rng.beta(1, 2, n), 1),
    "4 samples, rates of all sizes": binomial(lambda rng, n: rng.beta(1, 2, n), 4),
    "1 sample, rates near 0": binomial(lambda rng, n: rng.beta(0.2, 10, n), 1),
    "1 sample, rates near 1": binomial(lambda rng, n: rng.beta(10, 0.2, n), 1),
    "4 samples, rates near 0": binomial(lambda rng, n: rng.beta(0.2, 10, n), 4),
    "3 samples, tasks solved always or never": binomial(lambda rng, n: rng.choice([0.02, 0.98], n), 3),
    "few tasks lose all, most gain a little": skewed(1.0, 0.03),
    "few tasks gain all, most lose a little": skewed(-1.0, 0.03),
    "some tasks lose half, most gain a little": skewed(0.5, 0.1),
}
WHOLE = "1 sample, rates of all sizes"
"""Kind whose loops go through the whole gate."""
GAINING = [name for name in NULLS if "rates" in name and "near 1" not in name]


def decide(template: Comparison, gains: list[float], level: float, test: str) -> Decision:
    """Let the gate decide on the gains of the first tasks."""
    draw = Draw(planned=PLANNED, gains=(*gains,)) if test == "sequential" else None
    found = template.model_copy(update={"after_reflection": difference(gains), "draw": draw})
    return gate(found, **LIMITS, alpha=level)


def through_gate(template: Comparison, gains_N: Floats, level: float) -> tuple[bool, int]:
    """Return the gate's decision and the number of tasks that it used."""
    gains, end = gains_N.tolist(), 0
    while True:
        end += BATCH
        decision = decide(template, gains[:end], level, "sequential")
        if decision.final or end >= PLANNED:
            return decision.promote, min(end, PLANNED)


def equal_versions(template: Comparison, n_loops: int, seed: int) -> tuple[dict[str, float], float, float]:
    """Return the largest share of loops with a false promotion by kind, that of the fixed test, and the mean tasks."""
    rng = np.random.default_rng(seed)
    seen, fixed_worst, used = dict[str, float](), 0.0, list[int]()
    levels = [spend_alpha(ALPHA, [False] * k) for k in range(ROUNDS)]
    for name, draw in NULLS.items():
        ever, fixed = np.zeros(n_loops, dtype=bool), np.zeros(n_loops, dtype=bool)
        for level in levels:
            gains_RN = np.stack([draw(rng, PLANNED) for _ in range(n_loops)])
            wealth_RN = log_wealth(gains_RN, planned=PLANNED, level=level / 2)
            ever |= wealth_RN.max(axis=1) >= np.log(2 / level)
            first_RN = gains_RN[:, : CONFIG.eval.n]
            likely = first_RN.sum(axis=1) > 1.5 * np.sqrt((first_RN**2).sum(axis=1))  # others are far from any level
            fixed[likely] |= np.array([sign_flip_test(g.tolist()) < level for g in first_RN[likely]], dtype=bool)
        seen[name], fixed_worst = float(ever.mean()), max(fixed_worst, float(fixed.mean()))
        print(f"equal versions, {name}: {ever.mean():.1%} of loops promote one, with the fixed test {fixed.mean():.1%}")
    promoted_any = 0
    for _ in range(n_loops):
        promoted: list[bool] = []
        for _ in range(ROUNDS):
            decided, tasks = through_gate(template, NULLS[WHOLE](rng, PLANNED), spend_alpha(ALPHA, promoted))
            used += [tasks] if not promoted else []
            promoted.append(decided)
        promoted_any += any(promoted)
    seen["whole gate"] = promoted_any / n_loops
    print(f"equal versions, whole gate: {seen['whole gate']:.1%} of loops promote one; {fmean(used):.0f} tasks a gate")
    return seen, fixed_worst, fmean(used)


def known_gain(template: Comparison, n_gates: int, seed: int) -> tuple[list[float], list[float]]:
    """Return by kind the share of gates that find a gain with a power of 80 %, and their mean number of tasks."""
    rng = np.random.default_rng(seed)
    seen, used = list[float](), list[float]()
    for name in GAINING:
        square = float(np.mean(NULLS[name](rng, 200_000) ** 2))
        shift = next(g for g in np.arange(0.001, 0.5, 0.001) if claims(NULLS[name], float(g), square) >= POWER_SAID)
        found = [through_gate(template, NULLS[name](rng, PLANNED, shift), ALPHA) for _ in range(n_gates)]
        fixed = fmean(
            decide(template, NULLS[name](rng, CONFIG.eval.n, shift).tolist(), ALPHA, "fixed").promote
            for _ in range(n_gates)
        )
        seen.append(fmean(promoted for promoted, _ in found))
        used.append(fmean(tasks for _, tasks in found))
        print(f"known gain, {name}: found by {seen[-1]:.1%} with {used[-1]:.0f} tasks, with the fixed test {fixed:.1%}")
    return seen, used


def claims(draw: Callable[..., Floats], shift: float, square: float) -> float:
    """Return the power that the test claims for a gain."""
    gains = draw(np.random.default_rng(0), 200_000, shift)
    return sequential_power(float(gains.mean()), float(np.mean(gains**2)), planned=PLANNED, level=ALPHA / 2)


def a_comparison() -> Comparison:
    """Return a comparison of two equal versions, in which each simulation puts its gains."""
    verdict = Verdict(passed=True, score=1.0)
    task = Task(messages=({"role": "user", "content": "?"},))
    one = Trajectory(task=task, spans=(Span(label="attempt", text="", model="m", verdict=verdict),))
    return compare([one], [one])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=1000, help="loops of equal versions of each kind (default 1000)")
    parser.add_argument("--gates", type=int, default=400, help="gates with a known gain of each kind (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    template = a_comparison()
    false, fixed, tasks_equal = equal_versions(template, args.loops, args.seed)
    power_seen, tasks_gain = known_gain(template, args.gates, args.seed + 1)
    tasks = fmean([fmean(tasks_gain), tasks_equal])
    result = {
        "nominal": ALPHA,
        "false_promotions": round(max(false.values()), 4),
        "false_promotions_fixed": round(fixed, 4),
        "power_said": POWER_SAID,
        "power_seen": round(fmean(power_seen), 3),
        "power_seen_least": round(min(power_seen), 3),
        "tasks_saved": round(1 - tasks / CONFIG.eval.n, 3),
        "tasks_saved_gain": round(1 - fmean(tasks_gain) / CONFIG.eval.n, 3),
        "tasks_saved_equal": round(1 - tasks_equal / CONFIG.eval.n, 3),
    }
    print(json.dumps(result))
    return int(result["false_promotions"] > ALPHA)


if __name__ == "__main__":
    raise SystemExit(main())
