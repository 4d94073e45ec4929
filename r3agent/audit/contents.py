"""Checks of the prompts: duplicates, prompts in several splits, and conversations that end with a reply."""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from r3agent.audit.records import Check, check_of, some
from r3agent.records.trajectory import Task

Drawn = Mapping[str, Sequence[Task]]
"""Tasks by split."""


def content_checks(drawn: Drawn) -> list[Check]:
    """Run the checks that need neither the verifier nor a model."""
    return [_ids(drawn), _prompts(drawn), _splits(drawn), _ends(drawn)]


def prompt_key(task: Task) -> str:
    """Return the prompt without case, spacing, invisible characters and closing punctuation, equal for duplicates."""
    parts = [f"{m['role']} {plain(_text(m.get('content'))).rstrip('.?!: ')}" for m in task.messages]
    tools = json.dumps(task.tools, sort_keys=True, default=str) if task.tools else ""
    return " ".join([*parts, plain(tools)])


def plain(text: str) -> str:
    """Return a text without case, spacing and invisible characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def _text(content: object) -> str:
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
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
        "failed" if leaks or "train" in empty else "warning" if empty else "ok",
        f"{len(leaks)} tasks or prompts in more than one of {sizes}",
        wrong=leaks,
        n=n,
        remedy="drop all but one task of each prompt: what is trained on must not be what is measured"
        if leaks
        else f"no task in {' and '.join(empty)}: give the source more of them; a hash of its id gives a task its split"
        if empty
        else "",
    )


def _ends(drawn: Drawn) -> Check:
    tasks = [task for tasks in drawn.values() for task in tasks]
    found = [
        f"task {task.id!r} ends with the {task.messages[-1].get('role')}: {_text(task.messages[-1].get('content'))!r}"
        for task in tasks
        if task.messages[-1].get("role") not in ("user", "tool", "function")
    ]
    return check_of(
        "prompts end with the user",
        "failed" if found else "ok",
        f"{len(found)} of {len(tasks)} prompts end with a reply of the assistant or with the system message",
        wrong=found,
        n=len(tasks),
        remedy="move the reply into the task's gold: the policy would see it, and answer nobody" if found else "",
    )


def _few(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
