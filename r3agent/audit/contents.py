"""Checks of the tasks alone: duplicates, tasks in several splits, and prompts that contain their answer."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from r3agent.audit.records import Check, check_of, some
from r3agent.records.trajectory import Task

MIN_ANSWER_CHARS = 4
"""Length below which an answer may be in a prompt by chance."""

Drawn = Mapping[str, Sequence[Task]]
"""Tasks by split."""


def content_checks(drawn: Drawn) -> list[Check]:
    """Run the checks that need neither the verifier nor a model."""
    return [_ids(drawn), _prompts(drawn), _splits(drawn), _answers_in_prompts(drawn)]


def prompt_key(task: Task) -> str:
    """Return the prompt without case and spacing, equal for duplicate tasks."""
    parts = [f"{m['role']} {_text(m.get('content'))}" for m in task.messages]
    tools = json.dumps(task.tools, sort_keys=True, default=str) if task.tools else ""
    return " ".join(unicodedata.normalize("NFKC", " ".join([*parts, tools])).casefold().split())


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str)


def _ids(drawn: Drawn) -> Check:
    by_id: defaultdict[tuple[str, str], list[Task]] = defaultdict(list)
    for split, tasks in drawn.items():
        for task in tasks:
            by_id[split, task.id].append(task)
    repeated = {task_id: tasks for (_, task_id), tasks in by_id.items() if len(tasks) > 1}
    differing = [f"task {i!r}: {len(tasks)} tasks, not all the same" for i, tasks in repeated.items() if _differ(tasks)]
    same = [f"task {i!r}: {len(tasks)} times the same" for i, tasks in repeated.items() if not _differ(tasks)]
    n = sum(map(len, drawn.values()))
    return Check(
        name="unique ids",
        status="failed" if differing else "warning" if same else "ok",
        detail=f"{len(differing)} ids of {n} tasks stand for tasks that differ, {len(same)} for the same one repeated",
        counts={"tried": n, "wrong": len(differing), "repeated": len(same)},
        rate=len(differing) / n if n else None,
        examples=some(differing + same),
        remedy="drop all but one of each, or name a column of ids that tells them apart" if differing else "",
    )


def _differ(tasks: Sequence[Task]) -> bool:
    return any(task != tasks[0] for task in tasks)


def _prompts(drawn: Drawn) -> Check:
    found: list[str] = []
    for tasks in drawn.values():
        by_prompt: defaultdict[str, list[str]] = defaultdict(list)
        for task in tasks:
            by_prompt[prompt_key(task)].append(task.id)
        alike = ((prompt, list(dict.fromkeys(ids))) for prompt, ids in by_prompt.items())
        found += [f"tasks {_few(ids)}: {prompt[:100]!r}" for prompt, ids in alike if len(ids) > 1]
    n = sum(map(len, drawn.values()))
    return check_of(
        "unique prompts",
        "failed" if found else "ok",
        f"{len(found)} prompts of {n} tasks have several ids in one split",
        wrong=found,
        n=n,
        remedy="drop all but one task of each prompt" if found else "",
    )


def _splits(drawn: Drawn) -> Check:
    ids: defaultdict[str, set[str]] = defaultdict(set)
    prompts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for split, tasks in drawn.items():
        for task in tasks:
            ids[task.id].add(split)
            prompts[prompt_key(task)].setdefault(split, task.id)
    leaks = [f"task {i!r} is in {' and '.join(sorted(splits))}" for i, splits in ids.items() if len(splits) > 1]
    alike = {prompt: of for prompt, of in prompts.items() if len(of) > 1 and len(set(of.values())) > 1}
    leaks += [f"{' = '.join(f'{s} {i!r}' for s, i in of.items())}: {prompt[:100]!r}" for prompt, of in alike.items()]
    empty = [split for split, tasks in drawn.items() if not tasks]
    n = sum(map(len, drawn.values()))
    sizes = ", ".join(f"{split} {len(tasks)}" for split, tasks in drawn.items())
    return check_of(
        "splits apart",
        "failed" if leaks else "warning" if empty else "ok",
        f"{len(leaks)} tasks or prompts in more than one of {sizes}",
        wrong=leaks,
        n=n,
        remedy="drop all but one task of each prompt: what is trained on must not be what is measured"
        if leaks
        else f"no task in {' and '.join(empty)}: give the source more of them"
        if empty
        else "",
    )


def _answers_in_prompts(drawn: Drawn) -> Check:
    golden = [(task, str(task.gold.get("content") or "")) for ts in drawn.values() for task in ts if task.gold]
    found = [f"task {task.id!r}: {gold[:80]!r}" for task, gold in golden if _contains(prompt_key(task), gold)]
    return check_of(
        "answer not told",
        "warning" if found else "ok" if golden else "skipped",
        f"{len(found)} of {len(golden)} prompts have the whole gold answer in them"
        if golden
        else "no task has a gold answer",
        wrong=found,
        n=len(golden),
        remedy="fine where the answer is to be chosen or found in the text" if found else "",
    )


def _contains(prompt: str, gold: str) -> bool:
    gold = " ".join(unicodedata.normalize("NFKC", gold).casefold().split())
    return len(gold) >= MIN_ANSWER_CHARS and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", prompt) is not None


def _few(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
