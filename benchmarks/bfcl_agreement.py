"""Compare the verifier `function_call` with bfcl-eval's own checker, on all gold answers and on mutated ones.

    python benchmarks/bfcl_agreement.py [--mutations 4] [--seed 0] [--calls native text] [--categories parallel]

For each category of `bfcl:CATEGORY`, every task's gold answer and `--mutations` different wrong or right variants are
written as a model would (`tool_calls`; as text, alternately in JSON and in Python) and judged here. `ast_checker` of
bfcl-eval gets the same calls as objects, and the possible answers from its file. If there is no gold answer (see
`r3agent/tasks/bfcl.py`), the nearest substitute is used and counted as mutated. For tasks without possible answers the
leaderboard's rule applies: any readable call fails an irrelevance task and passes a relevance task. Empty replies are
not compared: they pass an irrelevance task in BFCL, but not here.

Every disagreement is printed with its reason, which is verified on that answer. The last line is one JSON object.

Needs `pip install --no-deps bfcl-eval`: its checker otherwise imports only a table of model handlers, and with it the
clients of every vendor. The checker only looks up if a model's names have `_` for dots, so a table with our two formats
replaces it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, permutations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks
from r3agent.tasks.bfcl import CATEGORIES, data_directory
from r3agent.tasks.calling import arguments_of
from r3agent.verifiers import Answer
from r3agent.verifiers.function_call import function_call

sys.path.insert(0, str(Path(__file__).parent))
from bfcl_mutations import Calls, mutated

MAX_ORDERS = 5040


def load_checker() -> Callable[..., dict[str, Any]]:
    table = ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {  # type: ignore[attr-defined]
        "native": SimpleNamespace(underscore_to_dot=True),
        "text": SimpleNamespace(underscore_to_dot=False),
    }
    sys.modules[table.__name__] = table
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    return ast_checker


def written(calls: Calls, way: str) -> Answer:
    """Write the calls as a model would."""
    if way == "native":
        functions = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
        tool_calls = [{"id": str(i), "type": "function", "function": f} for i, f in enumerate(functions)]
        words = "" if calls else "None of the functions fits."
        return Answer.of({"role": "assistant", "content": words, "tool_calls": tool_calls})
    if way == "json":
        return Answer(json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls]))
    parts = [f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls]
    return Answer(f"[{', '.join(parts)}]")


def ways_of(calls: Calls, calling: str) -> Iterator[str]:
    """Yield the formats of the answer; calls in Python need names that are Python identifiers."""
    if calling == "native":
        yield "native"
        return
    yield "json"
    names = [part for name, arguments in calls for part in (*name.split("."), *arguments)]
    if all(name.isidentifier() and name not in RESERVED for name in names):
        yield "python"


RESERVED = {"from", "class", "in", "is", "for", "import", "global", "lambda", "not", "or", "and", "if", "as", "with"}


class Theirs:
    """Verdict of bfcl-eval."""

    def __init__(self, category: str) -> None:
        directory = data_directory()
        self.category = category
        self.checker = load_checker()
        self.functions = {f"bfcl:{row['id']}": row["function"] for row in rows(directory, category)}
        answers = [] if category.endswith("relevance") else rows(directory / "possible_answer", category)
        self.answers = {f"bfcl:{row['id']}": row["ground_truth"] for row in answers}

    def passes(self, task: Task, calls: Calls, calling: str) -> bool:
        """Return True if the calls pass.

        Raises:
            Exception: the checker raised it.
        """
        if self.category.endswith("irrelevance"):
            return not calls
        if self.category.endswith("relevance"):
            return bool(calls)
        decoded = [{name: arguments} for name, arguments in calls]
        functions, answers = self.functions[task.id], self.answers[task.id]
        # The language is compared by identity with a member of an enumeration.
        from bfcl_eval.constants.enums import Language

        return self.checker(functions, decoded, answers, Language.PYTHON, self.category, calling)["valid"]


def rows(directory: Path, category: str) -> list[dict[str, Any]]:
    [path] = [p for p in directory.glob(f"BFCL_v*_{category}.json") if p.stem.split("_", 2)[2] == category]
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def nearest_gold(task: Task) -> Calls:
    """Make the expected calls with their first accepted values, even if no such answer can pass."""
    return [(c["name"], arguments_of(c, task.info["functions"][c["name"]])) for c in task.info["calls"]]


def reason(task: Task, calls: Calls, ours: bool, theirs: bool | Exception, judge: Theirs, calling: str) -> str | None:
    """Return the known reason for the disagreement on this answer, or `None`."""
    if isinstance(theirs, Exception):
        return None if ours else f"bfcl-eval's checker breaks with {type(theirs).__name__}, the answer is wrong here"
    if ours and not theirs and len(calls) > 1:
        orders = islice(permutations(calls), MAX_ORDERS)
        if any(judge.passes(task, [*order], calling) for order in orders):
            return "bfcl-eval gives each expected call the first that fits; in another order it passes the same calls"
    if task.info["expect"] == "some_call" and theirs and any(name not in task.info["functions"] for name, _ in calls):
        return "a relevance task passes in bfcl-eval with a call of a function that was not offered"
    return None


def compare(category: str, calling: str, n_mutations: int, seed: int) -> Iterator[dict[str, Any]]:
    judge = Theirs(category)
    for task in find_tasks(f"bfcl:{category}", split="all", calls=calling):
        rng = random.Random(f"{seed}:{calling}:{task.id}")
        gold = nearest_gold(task)
        answers = [("gold" if task.gold else "no_gold", gold), *mutated(gold, task, rng, n_mutations)]
        for turn, (mutation, calls) in enumerate(answers):
            ways = [*ways_of(calls, calling)]
            way = ways[turn % len(ways)]
            if way != "python":  # JSON has no tuples
                calls = json.loads(json.dumps(calls))
            ours = function_call(task, written(calls, way)).passed
            try:
                theirs: bool | Exception = judge.passes(task, calls, calling)
            except Exception as error:  # the checker may raise anything
                theirs = error
            row = {"task": task.id, "way": way, "answer": mutation, "ours": ours, "agree": ours is theirs}
            if ours is not theirs:
                row |= {"reason": reason(task, calls, ours, theirs, judge, calling), "calls": calls}
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=4, help="variants of each task and format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", nargs="+", choices=("native", "text"), default=["native", "text"])
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=CATEGORIES)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for category in args.categories:
        found = [row for calling in args.calls for row in compare(category, calling, args.mutations, args.seed)]
        golds = [row for row in found if row["answer"] == "gold"]
        passed = sum(row["ours"] for row in golds)
        others = [row["ours"] for row in found if row["answer"] != "gold"]
        print(f"{category}: gold {passed}/{len(golds)} pass; mutated {sum(others)}/{len(others)} pass")
        results += found
    print("\nanswer: agreed passes / agreed failures / disagreements")
    for mutation, n in sorted(Counter(row["answer"] for row in results).items()):
        same = [row["ours"] for row in results if row["answer"] == mutation and row["agree"]]
        print(f"  {mutation}: {sum(same)} / {len(same) - sum(same)} / {n - len(same)}")
    disagreements = [row for row in results if not row["agree"]]
    print("\ndisagreements")
    for row in disagreements:
        verdict = "passes" if row["ours"] else "fails"
        shown = json.dumps(row["calls"])[:200]
        print(
            f"  {row['task']} ({row['way']}, {row['answer']}) {verdict} here: {row['reason'] or 'UNEXPLAINED'}: {shown}"
        )
    n_gold = sum(row["answer"] == "gold" for row in results)
    summary = {
        "gold": n_gold,
        "mutated": len(results) - n_gold,
        "disagreements": len(disagreements),
        "unexplained": sum(row["reason"] is None for row in disagreements),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
