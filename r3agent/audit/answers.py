"""Checks of the answers: prompts that contain theirs, one answer for most tasks, and numbers that lost digits."""

from __future__ import annotations

import re
from collections import defaultdict

from r3agent.audit.contents import Drawn, plain, prompt_key
from r3agent.audit.records import Check, check_of
from r3agent.records.trajectory import Task

MIN_ANSWER_CHARS = 4
"""Length below which an answer may be in a prompt by chance, unless the prompt calls it the answer."""

MIN_TASKS = 10
"""Number of answers below which one may be that of most tasks by chance."""

MAX_DIGITS = 15
"""Digits of a number that any float keeps."""

_CALLED_SO = r"(?:####|<answer>|(?:answer|solution)(?: is)?[:=]?) ?"


def answer_checks(drawn: Drawn, max_same_gold: float) -> list[Check]:
    """Run the checks of gold answers, and of `info["answer"]` where there is none.

    Args:
        max_same_gold: largest share of tasks with one answer.
    """
    tasks = [task for tasks in drawn.values() for task in tasks]
    return [_absent(tasks), _differ(tasks, max_same_gold), _digits(tasks)]


def _answer(task: Task) -> str:
    if task.gold:
        return str(task.gold.get("content") or "")
    found = task.info.get("answer")
    return str(found) if isinstance(found, str | int | float) else ""


def _absent(tasks: list[Task]) -> Check:
    answered = [(task, answer) for task in tasks if (answer := _answer(task))]
    found = [f"task {task.id!r}: {answer[:80]!r}" for task, answer in answered if _contains(prompt_key(task), answer)]
    return check_of(
        "answer not told",
        "warning" if found else "ok" if answered else "skipped",
        f"{len(found)} of {len(answered)} prompts have the whole answer in them"
        if answered
        else "no task has a gold answer",
        wrong=found,
        n=len(answered),
        remedy="fine where the answer is to be chosen or found in the text" if found else "",
    )


def _contains(prompt: str, answer: str) -> bool:
    answer = plain(answer)
    before = "" if len(answer) >= MIN_ANSWER_CHARS else _CALLED_SO
    return bool(answer) and re.search(rf"(?<!\w){before}{re.escape(answer)}(?!\w)", prompt) is not None


def _differ(tasks: list[Task], max_same_gold: float) -> Check:
    """Check that one answer is not that of most tasks; words where no function fits are not counted as one."""
    by_answer: defaultdict[str, list[str]] = defaultdict(list)
    for task in tasks:
        answer = plain(_answer(task)) or str((task.gold or {}).get("tool_calls") or "")
        if answer and task.info.get("expect") != "no_call":
            by_answer[answer].append(task.id)
    n = sum(map(len, by_answer.values()))
    if n < MIN_TASKS:
        return check_of("answers differ", "skipped", f"{n} tasks have an answer", wrong=[], n=0)
    answer, ids = max(by_answer.items(), key=lambda item: len(item[1]))
    is_over = len(ids) / n > max_same_gold
    return check_of(
        "answers differ",
        "failed" if is_over else "ok",
        f"{len(ids)} of {n} tasks have the most common answer, {answer[:80]!r}",
        wrong=[f"task {task_id!r}: {answer[:80]!r}" for task_id in ids] if is_over else [],
        n=n,
        remedy="what always gives this answer passes: correct the tasks, or raise audit.max_same_gold"
        if is_over
        else "",
    )


def _digits(tasks: list[Task]) -> Check:
    """Check for answers that a float has changed, or would change."""
    answers = [(task.id, task.info["answer"]) for task in tasks if task.info.get("answer") is not None]
    floats = [answer for _, answer in answers if isinstance(answer, float)]
    whole = bool(floats) and all(answer.is_integer() for answer in floats)
    long, padded = list[str](), list[str]()
    for task_id, answer in answers:
        if _has_many_digits(answer):
            long.append(f"task {task_id!r}: {answer}")
        elif whole and isinstance(answer, float):
            padded.append(f"task {task_id!r}: {answer}")
    remedies = [
        "the digits after the 15th are lost in a float, and to a verifier that compares floats: write and compare text"
        if long
        else "",
        "whole numbers are floats, as pandas makes them beside missing values: 72 is read with "
        "--set 'task.params.answer={{ answer | int }}'"
        if padded
        else "",
    ]
    return check_of(
        "answers exact",
        "warning" if long or padded else "ok",
        f"{len(long)} of {len(answers)} answers are numbers of more than {MAX_DIGITS} digits, {len(padded)} are whole "
        "numbers with a point",
        wrong=[*long, *padded],
        n=len(answers),
        remedy="; ".join(filter(None, remedies)),
    )


def _has_many_digits(answer: object) -> bool:
    digits = re.sub(r"[-+,._ ]|(?:e[+-]?\d+$)", "", str(answer))
    huge = isinstance(answer, float) and abs(answer) >= 10**MAX_DIGITS
    return huge or (not isinstance(answer, float) and len(digits) > MAX_DIGITS and digits.isdecimal())
