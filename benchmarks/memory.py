"""Memory of reflections that worked, put into the prompt of the first try: what it gives without any training.

    python -m benchmarks.memory [--seeds 5] [--n 400] [--problems 400] [--out DIR]

The bundled policy collects 8 reflections of each failure on --n tasks; the reflections whose retry passed are
remembered. Then it plays held-out problems three times: as they are, with the reflection on the nearest remembered task
in the prompt, and with that on a random one. A seed draws its own tasks and held-out problems. The last line is one
JSON object: success in the first try and after a reflection in percent, and its difference from that of the plain
prompt with its p-value, paired over the seeds; the intervals are 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.arms import interval, p_value
from benchmarks.results import FINISHED, Finished, digest, surroundings
from r3agent.records.trajectory import Task
from r3agent.records.versions import BASE
from r3agent.run.demo import SETTINGS
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.tasks import countdown
from r3agent.tasks.splits import Split

ADVICE = (
    "{problem}\n\nOn another problem, with the numbers {numbers} and the target {target}, this helped: {reflection}"
)
CHOICES = ("plain", "nearest", "random")
CELLS = ("first_try", "after_reflection")


def remembering(n: int | None, *, seed: int, split: Split, memory: str, choice: str) -> Iterator[Task]:
    """Yield Countdown's problems with a remembered reflection, as a task source.

    Args:
        memory: JSON file of remembered reflections.
        choice: `nearest` by numbers and target, or `random`.
    """
    remembered: list[dict[str, Any]] = json.loads(Path(memory).read_text())
    for task in countdown.generate(n, seed=seed, split=split):
        if choice == "random":
            found = random.Random(task.id).choice(remembered)
        else:
            found = min(remembered, key=lambda entry: distance(entry, task.info))
        prompt = ADVICE.format(problem=task.messages[0]["content"], **found)
        yield task.model_copy(update={"messages": ({"role": "user", "content": prompt},)})


def distance(entry: dict[str, Any], info: dict[str, Any]) -> int:
    """Sum the distances of the sorted numbers and of the targets."""
    pairs = zip(sorted(entry["numbers"]), sorted(info["numbers"]), strict=True)
    return sum(abs(a - b) for a, b in pairs) + abs(entry["target"] - info["target"])


def remember(run: Run, file: Path) -> int:
    """Write the reflections of a run whose retry passed, one of each failure; return their number."""
    entries: list[dict[str, Any]] = []
    for trajectory in run.trajectories():
        helped = (a_try.first for a_try in trajectory.tries if a_try.label == "retry" and a_try.passed)
        reflections = (trajectory.parent(first) for first in helped)
        if (found := next((span for span in reflections if span and span.label == "reflect"), None)) is not None:
            info = trajectory.task.info
            entries.append({"numbers": info["numbers"], "target": info["target"], "reflection": found.text})
    file.write_text(json.dumps(entries))
    return len(entries)


def settings_of(seed: int, problems: int) -> dict[str, Any]:
    return {**SETTINGS, "task.seed": seed, "eval.seed": seed, "eval.n": problems}


def result_of(seed: int, n: int, problems: int, out: Path) -> dict[str, Any]:
    """Remember, play, and return success in percent by choice of the memory; a finished seed is not repeated."""
    finished = Finished(FINISHED / "memory.jsonl")
    key = {"seed": seed, "made_with": digest([settings_of(seed, problems), n, ADVICE, surroundings()])}
    if (found := finished.find(key)) is not None:
        return found
    directory = out / f"{key['made_with']}-{seed}"
    with ServerProcess("bundled") as server:
        settings = {**settings_of(seed, problems), "policy.base_url": server.base_url}
        run = Run(directory / "remembered", {**settings, "collect.n": n})
        run.collect()
        memory = directory / "memory.json"
        result: dict[str, Any] = {"remembered": remember(run, memory)}
        for choice in CHOICES:
            params = {"memory": str(memory.absolute()), "choice": choice}
            source = {"task.source": "benchmarks.memory:remembering", "task.verifier": "countdown"}
            own = {} if choice == "plain" else {**source, "task.params": params}
            found = Run(directory / choice, {**settings, **own}).measure(BASE)
            result[choice] = {cell: 100 * getattr(found, cell).rate for cell in CELLS}
    finished.add(key, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=400, help="tasks to remember")
    parser.add_argument("--problems", type=int, default=400, help="held out")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="directory of the runs")
    options = parser.parse_args()
    results = [result_of(seed, options.n, options.problems, options.out) for seed in range(options.seeds)]
    line: dict[str, Any] = {"seeds": options.seeds, "remembered": [result["remembered"] for result in results]}
    for choice in CHOICES:
        for cell in CELLS:
            changes = [result[choice][cell] - result["plain"][cell] for result in results]
            rates = [result[choice][cell] for result in results]
            line[f"{choice}_{cell}"] = {"percent": interval(rates)}
            if choice != "plain":
                line[f"{choice}_{cell}"] |= {"points": interval(changes), "p_value": p_value(changes)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
