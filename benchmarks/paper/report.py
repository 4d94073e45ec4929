"""Results of the protocol: the comparison of each seed, the rounds, and reflections before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any

from benchmarks.paper.commands import seconds_of
from r3agent.evaluate import Comparison, table
from r3agent.records.summary import summarise
from r3agent.records.trajectory import Span, Trajectory
from r3agent.records.versions import BASE
from r3agent.store.registry import Registry
from r3agent.store.trajectories import load
from r3agent.train.lineage import STEPS_FILE

N_TASKS = 5
"""Number of tasks whose reflections are shown."""
RULE = f"the {N_TASKS} test tasks with the smallest SHA-256 of their id among those that both versions fail at first"
CHARACTERS = 300
"""Length of a text that is shown."""
OF_STEPS = {"kl": "KL", "clip_ratio/region_mean": "share clipped"}
"""Keys of a step's log, of which the table has the largest of each round."""
CHANGES = ("first_try", "after_reflection", "blind_retry", "lift_over_blind", "lift_over_generic", "lift_over_donor")


def result_of(folder: Path) -> dict[str, Any]:
    """Return the result of one seed, from its run and its commands."""
    run, commands, warm_up = folder / "run", folder / "commands", folder / "warm-up-commands"
    comparison = comparison_of(report_of(commands, "eval"))
    result: dict[str, Any] = {
        "rounds": rounds_of(run, commands),
        "tokens": {
            "failures": report_of(commands, "collect")["tokens_sampled"],
            "reflections": sum(
                report_of(commands, file.stem)["summary"]["tokens_sampled"] for file in commands.glob("branch-*.json")
            ),
            "evaluation": sum(summarise(load(store)).tokens_sampled for store in stores_of_evaluations(run)),
        },
        "minutes": minutes(commands, run),
        "comparison": comparison.model_dump(mode="json"),
        "reflections": reflections(*(load(run / "eval" / side.policy) for side in sides(comparison))),
    }
    if warm_up.is_dir():
        card = Registry(folder / "warm-up").card("v0001").metrics
        result["warm_up"] = {
            "base": {key: report_of(warm_up, "eval")[key] for key in ("first_try", "after_reflection", "blind_retry")},
            "rows": card["rows"]["rows"],
            "tokens": report_of(warm_up, "collect")["tokens_sampled"],
            "minutes": minutes(warm_up, folder / "warm-up"),
        }
    return result


def minutes(commands: Path, run: Path) -> float:
    """Return the duration of all commands in a folder, those of calls that were stopped included."""
    seconds = sum(json.loads(file.read_text())["seconds"] for file in commands.glob("*.json"))
    registry = Registry(run)
    for number, version in enumerate(registry.versions()[1:], start=1):  # the first is the base
        if not (commands / f"train-{number}.json").exists():  # stopped between the version and its report
            trained = registry.card(version).metrics.get("seconds", 0.0)
            seconds += max(seconds_of(commands, f"train-{number}"), trained)
    return round(seconds / 60, 1)


def report_of(commands: Path, name: str) -> dict[str, Any]:
    """Return the report of a command."""
    return json.loads((commands / f"{name}.json").read_text())["report"]


def comparison_of(report: Mapping[str, Any]) -> Comparison:
    """Return the comparison of the last version with the first, from a report of `eval` or a result."""
    return Comparison.model_validate({key: report[key] for key in Comparison.model_fields if key in report})


def sides(comparison: Comparison) -> tuple[Any, Any]:
    return comparison.baseline, comparison.candidate


def stores_of_evaluations(run: Path) -> list[Path]:
    return [folder for folder in [*run.glob("eval/v*/"), *run.glob("eval/forgetting/*/v*/")] if folder.is_dir()]


def rounds_of(run: Path, commands: Path) -> list[dict[str, Any]]:
    """Describe each round: its failures and groups, and its training."""
    found: list[dict[str, Any]] = []
    registry = Registry(run)
    for version in registry.versions()[1:]:  # the first is the base
        branched, card = report_of(commands, f"branch-{len(found) + 1}"), registry.card(version).metrics
        drift = card["drift"] or {}
        steps = [json.loads(line) for line in (registry.version_dir(version) / STEPS_FILE).read_text().splitlines()]
        found.append(
            {
                "failures": branched["branches"],
                "groups_with_variance": branched["summary"]["groups_with_variance"],
                "retry_success": branched["summary"]["retry_after_reflection"],
                "tokens": branched["summary"]["tokens_sampled"],
                "rows": card["rows"]["rows"],
                "steps": card["steps"],
                "kl_to_base": drift.get("kl"),
                **{
                    f"largest_{key}": max((step[key] for step in steps if step.get(key) is not None), default=None)
                    for key in OF_STEPS
                },
            }
        )
    return found


def reflections(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return the reflections of both versions on the tasks that `RULE` chooses."""
    failed = [{t.task.id: t for t in version if is_reflected(t)} for version in (before, after)]
    common = sorted(failed[0].keys() & failed[1].keys(), key=lambda id_: sha256(id_.encode()).hexdigest())
    return [
        {
            "task": cut(str(failed[0][id_].task.messages[-1]["content"])),
            **{name: excerpt(version[id_]) for name, version in zip(("before", "after"), failed, strict=True)},
        }
        for id_ in common[:N_TASKS]
    ]


def is_reflected(trajectory: Trajectory) -> bool:
    """Return True for an episode, and no control branch, with a failed first try that was reflected on."""
    attempt = trajectory.attempt
    if trajectory.control is not None or attempt is None or attempt.passed:
        return False
    return bool(trajectory.children(attempt, "reflect"))


def excerpt(trajectory: Trajectory) -> dict[str, Any]:
    attempt = trajectory.attempt
    assert attempt is not None
    reflection: Span = trajectory.children(attempt, "reflect")[0]
    retries = [retry.passed for retry in trajectory.retries(reflection)]
    return {"reflection": cut(reflection.text), "passed": any(retries)}


def cut(text: str) -> str:
    """Return the beginning of a text on one line, so that no Markdown in it is interpreted."""
    return f"`{shorten(text.replace('`', chr(39)), CHARACTERS, placeholder=' ...')}`"


def line_of(name: str, results: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures as one JSON object, with a list of those of the seeds in each place."""
    comparisons = [comparison_of(result["comparison"]) for result in results.values()]
    line: dict[str, Any] = {"config": name, "seeds": [*results], "n_tasks": [c.baseline.n_tasks for c in comparisons]}
    for cell in CHANGES:
        changes = [change for comparison in comparisons if (change := getattr(comparison, cell)) is not None]
        if changes:
            line[cell] = {"points": [round(c.points, 2) for c in changes], "p": [c.p_value for c in changes]}
    lengths = [[s.behaviour and s.behaviour.reflection_length for s in sides(c)] for c in comparisons]
    line["reflection_tokens"] = [[length and round(length.tokens, 1) for length in pair] for pair in lengths]
    line["forgetting"] = {
        check.source: [
            round(other.change.points, 2)
            for comparison in comparisons
            for other in comparison.forgetting
            if other.source == check.source and other.change
        ]
        for check in comparisons[0].forgetting
    }
    line["tokens"] = [sum(result["tokens"].values()) for result in results.values()]
    line["minutes"] = [result["minutes"] for result in results.values()]
    return line


def section(results: Mapping[int, dict[str, Any]]) -> str:
    """Render the results of seeds as Markdown, without a heading."""
    parts = list[str]()
    for seed, result in results.items():
        tokens = ", ".join(f"{count:,} for {purpose}" for purpose, count in result["tokens"].items())
        parts.append(f"Seed {seed}: {result['minutes']} minutes; tokens sampled: {tokens}.")
        if warm_up := result.get("warm_up"):
            rates = {name: f"{100 * rate['rate']:.1f} %" for name, rate in warm_up["base"].items() if rate}
            parts.append(
                f"Before it, {warm_up['minutes']} minutes of supervised training on {warm_up['rows']} passed first "
                f"tries, {warm_up['tokens']:,} tokens; the base model on the same test tasks: "
                + ", ".join(f"{name.replace('_', ' ')} {rate}" for name, rate in rates.items())
                + f". {BASE} is the version that it made."
            )
        parts += [f"```\n{table(comparison_of(result['comparison']))}\n```", "\n".join(round_lines(result["rounds"]))]
    result = next(iter(results.values()))
    parts.append(f"Reflections of seed {next(iter(results))} on {RULE}:")
    parts.append("\n".join(line for found in result["reflections"] for line in reflection_lines(found)))
    return "\n\n".join(parts)


def round_lines(rounds: Sequence[dict[str, Any]]) -> list[str]:
    head = ["round", "failures", "groups with variance", "retries that passed, %", "tokens", "rows", "steps"]
    head += ["KL to the base", *(f"a step's largest {name}" for name in OF_STEPS.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for number, found in enumerate(rounds, start=1):
        passed = found["retry_success"]
        cells = [found["failures"], found["groups_with_variance"], "" if passed is None else f"{100 * passed:.1f}"]
        figures = [found["kl_to_base"], *(found.get(f"largest_{key}") for key in OF_STEPS)]
        cells += [found["tokens"], found["rows"], found["steps"]]
        cells += ["" if figure is None else f"{figure:.3g}" for figure in figures]
        lines.append(f"| {number} | {' | '.join(map(str, cells))} |")
    return lines


def reflection_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"- Task: {found['task']}"]
    for name in ("before", "after"):
        then = "the retry passed" if found[name]["passed"] else "the retry failed"
        lines.append(f"    - {name} ({then}): {found[name]['reflection']}")
    return lines
