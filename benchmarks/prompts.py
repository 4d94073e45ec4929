"""Compare wordings of the prompts by first tries of a served model.

    python benchmarks/prompts.py --url http://127.0.0.1:8000/v1 --model coder --out coder.jsonl --n 24
    python benchmarks/prompts.py --out coder.jsonl smollm2.jsonl

All wordings get the same tasks, one first try each at temperature 0.7. Replies are appended to the file, so that a run
that was stopped goes on; without `--url` only the tables are printed. Verdicts are made anew for each table. Parts:

- `bfcl:CATEGORY`: function calls. `text`, `bfcl` and `native` are values of `task.params.calls`; the others are
  alternatives for `text`.
- `countdown`, `reasoning-gym:gsm_symbolic` (mathematics), `code`, `sql` (`prompt_tasks.py`): how the form is asked for.
- `reflect:SOURCE`: the prompts of the loop, on the tasks whose first try failed: the retry after a reflection, and the
  blind retry.

The last line is one JSON object. Models: `benchmarks/models.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r3agent.audit.served import fault_of
from r3agent.episodes.assembly import assemble
from r3agent.episodes.run_episode import run_episode
from r3agent.evaluate import wilson
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.records.prompts import PROMPTS, Kind
from r3agent.records.trajectory import Span, Task
from r3agent.tasks import find_tasks
from r3agent.tasks.calling import SYSTEM
from r3agent.tasks.countdown import PROMPT
from r3agent.verifiers import find_verifier, judge

sys.path.insert(0, str(Path(__file__).parent))
from prompt_tasks import code_tasks, sql_tasks

NONE = "If no function fits the request, or the request lacks what the function needs, call none and say so in words."
HEAD = "You can call these functions:\n{functions}\n\n"
OBJECT = '{"name": "function_name", "arguments": {"parameter": "value"}}'
CALLS = {
    "text": SYSTEM,
    "only a list": f"{HEAD}If they are needed, reply with nothing but a JSON list of the calls: "
    '[{"name": "...", "arguments": {...}}, ...]. If none of them fits, or the request lacks what they need, reply in '
    "words.",
    "one object": f"{HEAD}To call a function, reply with a JSON object of this form: {OBJECT}\nIf several calls are "
    f"needed, write one object per line. {NONE}",
    "a list": f"{HEAD}To call functions, reply with a JSON list that has one object for each call:\n[{OBJECT}]\n{NONE}",
    "tags": "You may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{functions}\n</tools>\n\nFor each function call, return a "
    "json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    f'{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>\n{NONE}',
    "bfcl": "",
    "native": "",
}
"""Wordings of the system prompt of function calls; the empty ones are settings of the source."""

STEPS = "Think step by step. At the end, write the final answer alone between <answer> and </answer> tags."
ANSWER = {
    "reasoning-gym:gsm_symbolic": {
        "shipped": None,
        "example": "Reply with the number alone in tags, such as <answer>12</answer>.",
        "steps": STEPS,
    },
    "countdown": {
        "shipped": None,
        "example": PROMPT + " For example, with the numbers [1, 2, 3] and 9: <answer> (1 + 2) * 3 </answer>",
        "steps": PROMPT.replace("Return the expression in", "Think step by step, then return the expression in"),
    },
    "code": {"bare": "", "fence": "\n\nReply with the function in one ```python block."},
    "sql": {"bare": "\n\nWrite the query.", "fence": "\n\nReply with one SQLite query in a ```sql block."},
}
FORM = "Now try the task again, using your reflection. Reply with the answer alone, in the form that the task asks for."
LOOP: dict[str, dict[str, str]] = {
    "shipped": {},
    "form": {
        "retry_prompt": FORM,
        "blind_retry_prompt": "Your answer is wrong. Reply again with the answer alone, in "
        "the form that the task asks for.",
    },
}
"""Wordings of the loop, beside the defaults of the kind of task."""

BFCL = ("simple_python", "parallel", "irrelevance")
PARTS: dict[str, tuple[str, ...]] = {
    **{f"bfcl:{category}": tuple(CALLS) for category in BFCL},
    **{part: tuple(wordings) for part, wordings in ANSWER.items()},
    **{f"reflect:{source}": tuple(LOOP) for source in ("bfcl:simple_python", "countdown")},
}
"""Wordings of each part."""
VERIFIERS = {"bfcl": "function_call", "reasoning-gym": "reasoning_gym"}
MAX_TOKENS = 256
MAX_TASKS = 200

Row = dict[str, Any]


def tasks_of(part: str, wording: str, n: int = MAX_TASKS) -> list[Task]:
    """Return the tasks of a part in one wording; the train split, so that the held-out tasks stay unseen."""
    source, kind = part.removeprefix("reflect:"), part.partition(":")[0]
    if kind == "bfcl":
        calls = wording if wording in ("bfcl", "native") else "text"
        tasks = find_tasks(source, n, seed=0, split="train", calls=calls)
        return tasks if wording in ("text", "bfcl", "native") else [_reworded(t, CALLS[wording]) for t in tasks]
    if kind == "reflect":
        return find_tasks(source, n, seed=0, split="train", **({"calls": "text"} if "bfcl" in source else {}))
    text = ANSWER[part][wording]
    if kind == "reasoning-gym":
        return find_tasks(source, n, seed=0, split="train", **({} if text is None else {"suffix": text}))
    if kind == "countdown":
        tasks = find_tasks(source, n, seed=0, split="train")
        return tasks if text is None else [_asking(t, text.format(**t.info)) for t in tasks]
    tasks = code_tasks() if kind == "code" else sql_tasks()
    return [_asking(t, f"{t.messages[0]['content']}{text}") for t in tasks]


def _asking(task: Task, text: str) -> Task:
    return task.model_copy(update={"messages": ({"role": "user", "content": text},)})


def _reworded(task: Task, wording: str) -> Task:
    before, after = SYSTEM.split("{functions}")
    functions, _, own = task.messages[0]["content"].removeprefix(before).partition(after)
    system = {"role": "system", "content": wording.replace("{functions}", functions) + own}
    return task.model_copy(update={"messages": (system, *task.messages[1:])})


def verifier_of(part: str) -> Any:
    kind = part.removeprefix("reflect:").partition(":")[0]
    return find_verifier(VERIFIERS.get(kind, kind))


async def sample(
    url: str, model: str, out: Path, parts: Iterable[str], n: int, concurrency: int, stop: list[str]
) -> None:
    done = {(row["part"], row["wording"], row["task"]) for row in read(out)}
    cells = [(part, wording, tasks_of(part, wording, n)[:n]) for part in parts for wording in PARTS[part]]
    # Round by round, so that all cells have the same tasks whenever the run is stopped.
    jobs = [(p, w, tasks[i]) for i in range(n) for p, w, tasks in cells if i < len(tasks)]
    queue = iter([(p, w, task) for p, w, task in jobs if (p, w, task.id) not in done])
    sampling = Sampling(temperature=0.7, max_tokens=MAX_TOKENS, stop=tuple(stop))
    async with OpenAIPolicy(url, model, timeout_s=3600) as policy:
        with out.open("a") as file:

            async def work() -> None:
                for part, wording, task in queue:
                    row = {"part": part, "wording": wording, "task": task.id, **await tried(part, wording, task)}
                    file.write(json.dumps(row) + "\n")
                    file.flush()

            async def tried(part: str, wording: str, task: Task) -> Row:
                loop: dict[str, Any] = {"max_attempts": 1}
                if part.startswith("reflect:"):
                    kind: Kind = "function_call" if "bfcl" in part else "general"
                    loop = {"blind_retries": 1, **PROMPTS[kind].model_dump(), **LOOP[wording]}
                nodes = assemble(policy=policy, verifier=verifier_of(part), sampling=sampling, **loop)
                episode, cause = await run_episode(nodes, task)
                if cause is not None:
                    raise cause
                spans = [span for span in episode.spans if span.label != "reflect"]
                replies = [
                    {"text": s.text, "tool_calls": s.tool_calls, "finish": s.finish_reason, "model": s.model}
                    for s in spans
                ]
                return {"replies": replies, "stages": [_stage(span, episode.spans) for span in spans]}

            await asyncio.gather(*(work() for _ in range(concurrency)))


def _stage(span: Span, spans: Iterable[Span]) -> str:
    labels = {s.span_id: s.label for s in spans}
    if span.label == "attempt":
        return "first try"
    return "after reflection" if labels.get(span.parent_id or "") == "reflect" else "blind retry"


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def judged(path: Path) -> list[Row]:
    """Return a row with counts for each part, wording and stage of a file."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in read(path):
        groups[row["part"], row["wording"]].append(row)
    cells: list[Row] = []
    for part, wording in ((p, w) for p, wordings in PARTS.items() for w in wordings):
        tasks = {task.id: task for task in tasks_of(part, wording)} if (part, wording) in groups else {}
        stages: dict[str, list[tuple[bool, str]]] = defaultdict(list)
        for row in groups[part, wording]:
            for reply, stage in zip(row["replies"], row["stages"], strict=True):
                span = Span(
                    label="attempt",
                    model=reply["model"],
                    text=reply["text"],
                    tool_calls=tuple(reply["tool_calls"]),
                    finish_reason=reply["finish"],
                )
                [verdict] = await judge(verifier_of(part), tasks[row["task"]], [span])
                assert verdict is not None
                fault = "" if verdict.passed else fault_of(span.model_copy(update={"verdict": verdict}))
                stages[stage].append((verdict.passed, fault))
        for stage, results in stages.items():
            faults = [fault for _, fault in results]
            cells.append(
                {
                    "model": path.stem,
                    "part": part,
                    "wording": wording,
                    "stage": stage,
                    "n": len(results),
                    "passed": sum(passed for passed, _ in results),
                    "read": sum(fault in ("", "wrong") for fault in faults),
                    "cut_off": faults.count("cut off"),
                }
            )
    return cells


def show(cells: list[Row]) -> None:
    print("| model | part | wording | stage | n | read, % | pass, % |\n|---|---|---|---|---|---|---|")
    for c in cells:
        low, high = wilson(c["passed"], c["n"])
        rate = f"{100 * c['passed'] / c['n']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
        read_share = f"{100 * c['read'] / c['n']:.0f}"
        print(f"| {c['model']} | {c['part']} | {c['wording']} | {c['stage']} | {c['n']} | {read_share} | {rate} |")
    print(json.dumps({"cells": cells}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="files of replies, one for each model")
    parser.add_argument("--url", help="server; without it only tables are printed")
    parser.add_argument("--model", default="", help="served name")
    parser.add_argument("--n", type=int, default=24, help="tasks of each part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--stop", nargs="*", default=[], help="texts that end a reply, for a model without a template")
    args = parser.parse_args()
    if args.url:
        [out] = args.out
        asyncio.run(sample(args.url, args.model, out, args.parts, args.n, args.concurrency, args.stop))

    async def all_cells() -> list[Row]:
        return [cell for path in args.out for cell in await judged(path)]

    show(asyncio.run(all_cells()))


if __name__ == "__main__":
    main()
