"""Compare rewards: arms that credit different labels with the same number of sampled tokens, on the bundled policy.

    python benchmarks/credit.py [--seeds 5] [--rounds 4] [--tokens 40000] [--problems 600] [--arms reflection,distill]

Every arm collects the tree that suits it, on as many tasks as its tokens allow, and trains on the spans it credits;
this determines the number of rows and optimizer steps. After the last round it is compared with its start on held-out
problems; the start is measured once per seed. A seed sets tasks, weights of new adapters and the order of rows;
sampling differs between runs. The table goes to benchmarks/RESULTS.md: means over the seeds with 95 % t-intervals, and
each arm's paired difference from `reflection`, the paper's arm. Finished arms are stored in --out and not repeated. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from r3agent.records.versions import BASE, version_name
from r3agent.run.demo import SETTINGS
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess

REFLECTION = {"reflect": "retry_success"}
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
"""Settings in addition to the demo's. `blind retry` and `first try` are controls that train no reflection."""

PROBE = 32
"""Number of tasks for the first estimate of a round's size from its tokens."""
CELLS = ("first_try", "after_reflection", "blind_retry")


def trained(arm: str, seed: int, rounds: int, tokens: int, problems: int, out: Path) -> dict[str, Any]:
    """Train one arm with one seed; return success in each cell before and after, in percent, and the cost."""
    directory = out / f"{arm.replace(' ', '')}-{seed}"
    done = directory / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    settings = {**SETTINGS, **ARMS[arm], "task.seed": seed, "train.seed": seed, "eval.n": problems}
    sampled, rows, steps = 0, 0, 0
    shutil.rmtree(directory, ignore_errors=True)  # left by an interrupted arm, which starts again
    directory.mkdir(parents=True)
    before, own_before = out / f"before-{seed}", directory / "eval" / BASE
    if before.exists():
        shutil.copytree(before, own_before, dirs_exist_ok=True)
    with ServerProcess("bundled", log_path=directory / "server.log") as server:
        settings["policy.base_url"] = server.base_url
        run = Run(directory, settings)
        run.serve_live()
        for _ in range(rounds):
            sampled += collected(directory, settings, tokens)
            card = run.train()
            rows, steps = rows + card.metrics["rows"]["rows"], steps + card.metrics["steps"]
            run.deploy(card.version)
        comparison = run.evaluate(BASE, version_name(rounds))
    shutil.copytree(own_before, before, dirs_exist_ok=True)
    result: dict[str, Any] = {"tokens": sampled, "rows": rows, "steps": steps}
    for side in ("baseline", "candidate"):
        result[side] = {cell: 100 * getattr(getattr(comparison, side), cell).rate for cell in CELLS}
    done.write_text(json.dumps(result))
    return result


def collected(directory: Path, settings: dict[str, Any], tokens: int) -> int:
    """Collect as many tasks as `tokens` allow, and return the number of tokens used."""
    n, sampled = PROBE, 0
    for share in (0.0, 0.8, 1.0):  # stored tasks are not sampled again, and give the tokens per task
        n = max(n, round(share * tokens * n / sampled)) if sampled else n
        sampled = Run(directory, {**settings, "collect.n": n}).collect().tokens_sampled
    return sampled


def interval(values: Sequence[float]) -> str:
    """Render the mean and its 95 % t-interval."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.1f} [{np.mean(values) - half:.1f}, {np.mean(values) + half:.1f}]"


def compared(values: Sequence[float], paper: Sequence[float]) -> tuple[str, float | None]:
    """Render the paired difference from the paper's arm, and return it with the p-value of a t-test."""
    differences = np.subtract(values, paper)
    if len(differences) < 2 or not differences.any():
        return interval([float(d) for d in differences]), None
    return interval([float(d) for d in differences]), float(stats.ttest_1samp(differences, 0).pvalue)


def table(results: dict[str, list[dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """Render the results as Markdown, and return them with the same numbers as data."""
    lines = ["| arm | tokens | rows | steps | first try, % | after reflection, % | minus `reflection` | p |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    start = [r["baseline"] for r in next(iter(results.values()))]
    lines.append("| before | | | | " + " | ".join(interval([s[c] for s in start]) for c in CELLS[:2]) + " | | |")
    data: dict[str, Any] = {}
    paper = [r["candidate"]["after_reflection"] for r in results.get("reflection", [])]
    for arm, runs in results.items():
        after = [r["candidate"]["after_reflection"] for r in runs]
        difference, p = compared(after, paper) if paper and arm != "reflection" else ("", None)
        means = {key: round(float(np.mean([r[key] for r in runs]))) for key in ("tokens", "rows", "steps")}
        cells = [interval([r["candidate"][cell] for r in runs]) for cell in CELLS[:2]]
        numbers = " | ".join(map(str, [*means.values(), *cells, difference]))
        lines.append(f"| {arm} | {numbers} | {'' if p is None else f'{p:.2g}'} |")
        rates = {cell: round(float(np.mean([r["candidate"][cell] for r in runs])), 2) for cell in CELLS}
        data[arm] = {**means, **rates, "p": p}
    return "\n".join(lines), data


def store(file: Path, command: str, text: str) -> None:
    """Write this benchmark's section of the results, replacing the old one."""
    text_before = file.read_text() if file.exists() else "# Results\n"
    kept = re.sub(r"\n## Credit by label\n.*?(?=\n## |\Z)", "", text_before, flags=re.DOTALL).rstrip("\n")
    file.write_text(f"{kept}\n\n## Credit by label\n\n`{command}`\n\n{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens to sample in each round")
    parser.add_argument("--problems", type=int, default=600, help="held out")
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/credit"), help="finished arms; delete it to start again")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args()
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms {', '.join(unknown)}: known are {', '.join(ARMS)}")
    out = options.out / f"{options.rounds}x{options.tokens}-{options.problems}"

    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(options.seeds):
        for arm in arms:
            result = trained(arm, seed, options.rounds, options.tokens, options.problems, out)
            results[arm].append(result)
            print(f"seed {seed} {arm:<20} {json.dumps(result)}", flush=True)
    text, data = table(results)
    settings = (
        f"--seeds {options.seeds} --rounds {options.rounds} --tokens {options.tokens} --problems {options.problems}"
        + (f' --arms "{options.arms}"' if arms != list(ARMS) else "")
    )
    store(options.results, f"python benchmarks/credit.py {settings}", text)
    print(text)
    print(json.dumps({"seeds": options.seeds, "rounds": options.rounds, "tokens": options.tokens, "arms": data}))


if __name__ == "__main__":
    main()
