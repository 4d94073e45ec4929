"""Arms of a comparison: train a bundled policy in several ways with the same number of sampled tokens, and tabulate.

A round samples the tree that suits the arm, on as many tasks as its tokens allow, and trains on all rows that it
credits in a fixed number of optimizer steps, or that number for each of its epochs: the batch size differs. A seed sets
the tasks of training, the held-out ones, the weights of new adapters and the order of rows; sampling differs between
runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from r3agent.records.summary import CollectSummary
from r3agent.records.versions import version_name
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.train import build_rows
from r3agent.train.report import labels_of

REFLECTION = {"reflect": "retry_success"}
"""Credit of the paper."""
PROBE = 32
"""Number of tasks for the first estimate of a round's size from its tokens."""
CELLS = ("first_try", "after_reflection", "blind_retry")
Results: TypeAlias = dict[str, list[dict[str, Any]]]
"""Results of each arm, one per seed."""


def train_arm(
    arm: str,
    seed: int,
    settings: Mapping[str, Any],
    *,
    rounds: int,
    tokens: int,
    steps: int,
    problems: int,
    out: Path,
    elsewhere: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one arm with one seed; return its success in each cell, in percent, and the cost.

    Args:
        settings: settings of the arm, in addition to the defaults and the paper's recipe.
        rounds: versions to train; with 0, the base model is measured.
        out: directory where finished arms are stored; one with other settings is trained anew.
        elsewhere: settings of tasks of another distribution, on which the last version is measured too.

    Raises:
        SystemExit: a round's probe of `PROBE` tasks takes more tokens than `tokens`, or nothing is trained of what a
            setting names.
    """
    directory = out / f"{arm.replace(' ', '')}-{seed}"
    seeds = {"eval.seed": seed, "task.seed": seed, "train.seed": seed}
    settings = {"train.recipe": "paper", **settings, **seeds, "eval.n": problems}
    made_with = {"settings": dict(settings), "rounds": rounds, "tokens": tokens, "steps": steps, "elsewhere": elsewhere}
    done = directory / "result.json"
    if done.exists() and (stored := json.loads(done.read_text())).get("made_with") == made_with:
        return stored
    sampled, rows, updates, useful = 0, 0, 0, 0
    began = time.monotonic()
    shutil.rmtree(directory, ignore_errors=True)  # left by an interrupted arm, which starts again
    directory.mkdir(parents=True)
    with ServerProcess(settings.get("policy.model", "bundled"), log_path=directory / "server.log") as server:
        settings["policy.base_url"] = server.base_url
        run = Run(directory, settings)
        run.serve_live()
        for _ in range(rounds):
            summary = collect_tokens(directory, settings, tokens)
            sampled, useful = sampled + summary.tokens_sampled, useful + summary.groups_with_variance
            card = Run(directory, {**settings, "train.batch_size": batch_size(run, steps)}).train()
            if missing := set(labels_of(run.config.train)) - card.metrics["rows"]["labels"].keys():
                raise SystemExit(f"{arm}: {card.version} was trained on no row of {', '.join(sorted(missing))}")
            rows, updates = rows + card.metrics["rows"]["rows"], updates + card.metrics["steps"]
            run.deploy(card.version)
        result: dict[str, Any] = {"tokens": sampled, "rows": rows, "steps": updates, "groups": useful}
        result["cells"] = _cells(run, rounds)
        if elsewhere:
            other = directory / "elsewhere"  # a run has one task source
            other.mkdir()
            for part in {"policies", "trajectories"} & {path.name for path in directory.iterdir()}:
                (other / part).symlink_to(f"../{part}")
            result["elsewhere"] = _cells(Run(other, {**settings, **elsewhere}), rounds)
    result |= {"seconds": round(time.monotonic() - began), "made_with": made_with}
    done.write_text(json.dumps(result))
    return result


def _cells(run: Run, number: int) -> dict[str, float]:
    """Measure a version."""
    found = run.measure(version_name(number))
    return {cell: 100 * getattr(found, cell).rate for cell in CELLS}


def collect_tokens(directory: Path, settings: dict[str, Any], tokens: int) -> CollectSummary:
    """Collect as many tasks as `tokens` allow."""
    n = PROBE
    summary = Run(directory, {**settings, "collect.n": n}).collect()
    if summary.tokens_sampled > tokens:
        raise SystemExit(f"{PROBE} tasks take {summary.tokens_sampled} tokens, more than the {tokens} of a round")
    for share in (0.8, 1.0):  # stored tasks are not sampled again, and give the tokens per task
        n = max(n, round(share * tokens * n / summary.tokens_sampled))
        summary = Run(directory, {**settings, "collect.n": n}).collect()
    return summary


def batch_size(run: Run, steps: int) -> int:
    """Return the batch size that makes `steps` optimizer steps of the rows collected for the next version."""
    rows, _ = build_rows(run.trajectories(), config=run.config.train, version=run.ensure_live().version)
    return max(1, ceil(len(rows) / steps))


def interval(values: Sequence[float]) -> str:
    """Render the mean and its 95 % t-interval."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.1f} [{np.mean(values) - half:.1f}, {np.mean(values) + half:.1f}]"


def p_value(differences: Sequence[float]) -> float | None:
    """Compute the p-value of a t-test over the seeds; `None` if they do not differ, or for a single one."""
    if len(set(differences)) < 2:
        return None
    test: Any = stats.ttest_1samp(differences, 0)
    return float(test.pvalue)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjust p-values of several comparisons by Holm's method, so that the family's level holds."""
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        adjusted[name] = least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
    return adjusted


def levels(results: Results, before: Sequence[dict[str, Any]], *, cells: str = "cells") -> list[str]:
    """Render the cost and the success of each arm as Markdown.

    Args:
        before: the base model's results.
        cells: key of the success to render.
    """
    lines = ["| arm | tokens | rows | steps | first try, % | after reflection, % | blind retry, % |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines.append("| before | | | | " + " | ".join(interval([r[cells][c] for r in before]) for c in CELLS) + " |")
    for arm, runs in results.items():
        means = [f"{np.mean([r[key] for r in runs]):.0f}" for key in ("tokens", "rows", "steps")]
        success = [interval([r[cells][cell] for r in runs]) for cell in CELLS]
        lines.append(f"| {arm} | {' | '.join([*means, *success])} |")
    return lines


def differences(
    results: Results, reference: str, *, cells: str = "cells", others: Results | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Render each arm's paired differences from the reference as Markdown, and return them as data.

    Args:
        cells: key of the success to compare.
        others: arms that were compared too and are not rendered; Holm's correction counts them.
    """
    lines = [f"| arm minus `{reference}` | first try | p | after reflection | p | blind retry | p |"]
    lines.append("|---|---|---|---|---|---|---|")
    data: dict[str, Any] = {arm: {} for arm in results if arm != reference}
    compared = {arm: runs for arm, runs in {**(others or {}), **results}.items() if arm != reference}
    for cell in CELLS:
        against = [r[cells][cell] for r in results[reference]]
        change = {arm: np.subtract([r[cells][cell] for r in runs], against).tolist() for arm, runs in compared.items()}
        adjusted = holm({arm: p for arm, values in change.items() if (p := p_value(values)) is not None})
        for arm, found in data.items():
            found[cell] = {"points": round(float(np.mean(change[arm])), 2), "p": adjusted.get(arm)}
            found[cell]["text"] = interval(change[arm])
    for arm, found in data.items():
        texts = [(c.pop("text"), "" if c["p"] is None else f"{c['p']:.2g}") for c in found.values()]
        lines.append(f"| {arm} | {' | '.join(text for pair in texts for text in pair)} |")
    return lines, data


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of a comparison of arms at equal tokens and steps."""
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=30_000, help="tokens to sample in each round")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps in each round")
    parser.add_argument("--problems", type=int, default=500, help="held out")
