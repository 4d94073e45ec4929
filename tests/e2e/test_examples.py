"""Every example runs as it stands, in a process of its own; the service has `test_service.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.shop import tasks
from r3agent.run.stages import Run
from r3agent.testing import ScriptedEndpoint

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))
SAYS = {
    "01_one_episode.py": "attempt  ",
    "02_your_own_verifier.py": "True",
    "03_collect_and_look.py": "groups to learn from",
    "05_in_an_application.py": "A colleague will answer you.",
    "06_train_and_redeploy.py": "back to v0000",
    "07_production.py": "8 recorded, 8 labelled",
    "08_sql_agent.py": "5 rows, not 6",
    "09_your_langgraph_agent.py": "retry    trainable-exact: ",
    "10_a_black_box_program.py": "steps, all exact: ",
    "11_a_world_per_try.py": "retry in 3 steps: right",
    "12_learn_from_production.py": "groups to learn from, prompts: {'same': ",
}
SERVICE = "04_in_a_service.py"


def test_every_example_is_run_somewhere() -> None:
    assert [example.name for example in EXAMPLES] == sorted([*SAYS, SERVICE])


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name != SERVICE], ids=lambda path: path.name)
def test_example(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(example)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[example.name] in done.stdout


def test_the_shop_is_a_task_source_whose_own_queries_are_right(tmp_path: Path) -> None:
    gold = {task.messages[-1]["content"]: task.info["answer"] for task in tasks(None)}
    # A new run first checks the model with a prompt of its own.
    knows = ScriptedEndpoint(lambda body, choice: f"```sql\n{gold.get(body['messages'][-1]['content'])}\n```")
    with knows as endpoint:
        settings = {"task.source": "examples.shop:tasks", "task.verifier": "sql", "collect.n": len(gold)}
        run = Run(tmp_path, {**settings, "policy.base_url": endpoint.url, "policy.model": endpoint.model})
        summary = run.collect()
    assert (summary.first_try, summary.errors) == (1.0, {})
