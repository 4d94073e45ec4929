"""Learn from what production recorded: episodes of the bundled policy with one reflection each, then a command a step.

    python -m benchmarks.flywheel [--seed 0] [--episodes 200] [--rounds 4] [--problems 600] [--out DIR]

An application records into a run. Each round, `r3agent branch` continues the failures whose tasks are not held out with
groups of reflections of the newest version, and `r3agent train` and `deploy` make the next one; `r3agent eval` compares
it with the base on held-out problems. Reflections are trained, and retries that passed are distilled. Another run
spends the same tokens on fresh tasks, round by round, and is trained and evaluated alike. The last line is one JSON
object: success after a reflection before and after, in percent, with the p-value of an exact paired test, the tokens
that the branches sampled, and the lift of the other run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from r3agent import OpenAIPolicy, Recorder, Sampling, build_graph
from r3agent._util.aio import gather_all, run_sync
from r3agent.records.versions import version_name
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

SEED_OF_PRODUCTION = 1_000_000
"""Distance of the seeds of the tasks that people ask from those of the tasks that a run draws."""

REFLECTIONS = 8

BATCH = 32
"""Reflections in an optimizer step; the demo has four times as many, and as many more rows in a round."""


def produce(run: Path, url: str, episodes: int, seed: int) -> None:
    """Answer and record as an application does: one try, a reflection and a retry after a failure."""
    tasks = find_tasks("countdown", episodes, seed=SEED_OF_PRODUCTION + seed, split="all")
    with (
        closing(OpenAIPolicy(url, "bundled", sampling=Sampling(max_tokens=24, seed=seed))) as policy,
        Recorder(run=run, queue_size=episodes) as recorder,
    ):
        graph = build_graph(policy=policy, verifier=find_verifier("countdown")).compile()

        async def serve() -> None:
            for state in await gather_all(graph.ainvoke({"task": task.model_dump()}) for task in tasks):
                recorder.record(state["trajectory"])

        run_sync(serve())


def r3agent(*words: object) -> dict[str, Any]:
    """Run a command, as in a shell, and return what it reports."""
    command = ["r3agent", *map(str, words)]
    print("$", shlex.join(command), flush=True)
    made = subprocess.run([sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(made.stdout)


def make_run(run: Path, url: str, seed: int, problems: int) -> None:
    """Make a run with the demo's settings, which `init` knows."""
    seeds = dict.fromkeys(("task.seed", "train.seed", "sampling.seed"), seed)
    own = {
        **seeds,
        "train.recipe": "paper",
        "train.distill": 1.0,
        "train.batch_size": BATCH,
        "eval.n": problems,
        "eval.blind_retries": 1,
    }
    of_policy = ("--url", url, "--model", "bundled", "--base-model", "bundled")
    r3agent("init", "--run", run, "--task", "countdown", *of_policy, *(f"--set={key}={own[key]}" for key in own))


def next_version(run: Path) -> None:
    r3agent("train", "--run", run)
    r3agent("deploy", "--run", run)


def main(seed: int, episodes: int, rounds: int, problems: int, out: Path) -> None:
    recorded, fresh, tokens = out / "recorded", out / "fresh", list[int]()
    with ServerProcess("bundled", log_path=out / "server.log") as server:
        make_run(recorded, server.base_url, seed, problems)
        produce(recorded, server.base_url, episodes, seed)
        for _ in range(rounds):
            report = r3agent("branch", "--run", recorded, "--reflections", REFLECTIONS)
            summary = report["summary"]
            print(
                f"{report['branches']} failures of {report['read']} episodes, left out: {report['left_out']}; "
                f"{summary['groups_with_variance']} of {summary['groups']} groups with variance; "
                f"prompts: {summary['recorded_prompts']}"
            )
            tokens.append(summary["tokens_sampled"])
            next_version(recorded)
        after = r3agent("eval", "--run", recorded, "--after", version_name(rounds))
    with ServerProcess("bundled", log_path=out / "server-fresh.log") as server:
        make_run(fresh, server.base_url, seed, problems)
        shutil.copytree(recorded / "eval" / "v0000", fresh / "eval" / "v0000")  # the same base, on the same problems
        for budget in tokens:
            drawn = ("--reflections", REFLECTIONS, "--n", episodes * 10, "--max-tokens", budget)
            summary = r3agent("collect", "--run", fresh, *drawn)
            print(f"{summary['groups_with_variance']} of {summary['groups']} groups with variance")
            next_version(fresh)
        other = r3agent("eval", "--run", fresh, "--after", version_name(rounds))
    line = {
        "before": round(100 * after["baseline"]["after_reflection"]["rate"], 2),
        "after": round(100 * after["candidate"]["after_reflection"]["rate"], 2),
        "lift_points": round(after["after_reflection"]["points"], 2),
        "p_value": after["after_reflection"]["p_value"],
        "tokens_sampled": sum(tokens),
        "lift_points_fresh_same_tokens": round(other["after_reflection"]["points"], 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=200, help="recorded in production")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--problems", type=int, default=600, help="held out")
    parser.add_argument("--out", type=Path, help="directory of the two runs, which stays; default: a temporary one")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="flywheel-") as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        main(options.seed, options.episodes, options.rounds, options.problems, out)
