"""Runs for tests of the report, made without a policy: two versions, a gate, and a hostile trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from r3agent import Span, Task, Trajectory, Verdict
from r3agent.evaluate import compare
from r3agent.evaluate.comparison import write_comparison
from r3agent.store.registry import PolicyCard, Registry, create_version, write_card
from r3agent.store.shards import TrajectoryWriter

HOSTILE = (
    "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    "<a href='javascript:window.ran=3' onclick='window.ran = 4'>click</a>"
    "\u202egnp.exe\u2069 \x1b[31mred\x1b[0m line\u2028separator nul\x00 tag\U000e0041 <!--<script>"
)
"""Text that tries to run, to reorder and to hide."""


def episode(
    task: str, version: str | None, *passed: bool, sample: int = 0, text: str = "the answer", **fields: Any
) -> Trajectory:
    """Make an episode: the verdicts of the first try, then of a retry after each of the reflections."""
    spans = [_span("attempt", version, passed[0], text=text)]
    for number, outcome in enumerate(passed[1:]):
        reflection = _span(
            "reflect", version, parent=spans[0], text=f"reflection {number}", completion_tokens=4 + number
        )
        spans += [reflection, _span("retry", version, outcome, parent=reflection, text=f"retry {number}")]
    spans += [] if passed[0] else [_span("retry", version, False, parent=spans[0], text="blind")]
    problem = Task(id=task, messages=({"role": "user", "content": f"problem of {task}"},))
    metadata = {"source": "tasks.jsonl", "split": "train", **fields.pop("metadata", {})}
    return Trajectory(task=problem, sample=sample, spans=tuple(spans), verifier="exact", metadata=metadata, **fields)


def _span(
    label: Any, version: str | None, passed: bool | None = None, *, parent: Span | None = None, **fields: Any
) -> Span:
    tokens = tuple(range(11, 11 + len(str(fields["text"]).split())))
    return Span(
        label=label,
        parent_id=parent and parent.span_id,
        verdict=None if passed is None else Verdict(passed=passed, score=float(passed), feedback="as expected"),
        model="m",
        policy_version=version,
        prompt_token_ids=(1, 2),
        token_ids=tokens,
        logprobs=tuple(-0.5 * (i + 1) for i in range(len(tokens))),
        capability="trainable-exact",
        **{"prompt_tokens": 10, "completion_tokens": 5, **fields},
    )


def store(directory: Path, *trajectories: Trajectory) -> None:
    with TrajectoryWriter(directory) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)


def make_run(run: Path) -> Path:
    """Make a run whose version v0001 passed its gate: 40 tasks, of which it solves 30 more after a reflection."""
    (run / "trajectories").mkdir(parents=True)
    (run / "r3.toml").write_text('[task]\nsource = "countdown"\n[policy.prices]\nprompt = 1.0\nsampled = 2.0\n')
    registry = Registry(run)
    registry.add_base("m", "missing-model")
    steps = b"\n".join(orjson.dumps({"step": i, "loss": 1 / i, "reward": i / 9, "kl": 0.01 * i}) for i in range(1, 9))
    with create_version(registry.version_dir("v0001")) as made:
        (made / "steps.jsonl").write_bytes(steps + b'\n{"step": 9, "lo')
        metrics = {"rows": {"rows": 64}, "steps": 8}
        write_card(
            made, PolicyCard(version="v0001", name="m", kind="lora", base_model="b", parent="v0000", metrics=metrics)
        )
    store(
        run / "trajectories",
        *(episode(f"train-{i}", "v0000", False, True, False) for i in range(6)),
        *(episode(f"train-{i}", "v0001", True, sample=10_000) for i in range(5)),
        episode("train-5", "v0001", False, True, sample=10_000, text="a needle in it"),
        episode(
            "hostile\u202e<b>", "v0001", False, True, sample=10_000, text=HOSTILE, trajectory_id="f00dfeedf00dfeed"
        ),
    )
    before = [episode(f"gate-{i}", "v0000", False, i < 5) for i in range(40)]
    after = [episode(f"gate-{i}", "v0001", False, i < 35) for i in range(40)]
    for version, episodes in (("v0000", before), ("v0001", after)):
        store(run / "gate" / "v0001" / version, *episodes)
    path = run / "gate" / "v0001" / "v0000-v0001.gate.0123abcd.json"
    write_comparison(path, "settings", compare(before, after), drawn={})
    registry.set_live("v0000")
    registry.set_live("v0001", passed=True)
    return run
