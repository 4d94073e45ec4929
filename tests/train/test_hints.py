"""First tries that learn from a hint, token by token, and retries that failed."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from r3agent.errors import ArgumentError, TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, credit_spans, to_dataset
from r3agent.train.collate import collate
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.hints import LIMIT, measure_hints
from r3agent.train.row_file import RowFile
from r3agent.train.weights import load_model
from tests.train import recorded
from tests.train.versions import run, trained

Record = Callable[..., list[Trajectory]]
ALONE: dict[str, Any] = {"credit": {}, "self_distill": 0.5}
FIRST = (0, 1, 0)
OUTCOMES = [[(0, 1), (0, 0)], [], [(1, 1), (1, 1)]]
"""Three samples of one task, of which the second passes at first."""


@pytest.fixture
def sampled(record: Record) -> list[Trajectory]:
    return told_apart(record(OUTCOMES, first=FIRST, blind=[1, 0], one_task=True))


def told_apart(trajectories: list[Trajectory]) -> list[Trajectory]:
    """The same trees with another prompt for each retry, as if the reflections differed."""
    changed: list[Trajectory] = []
    for trajectory in trajectories:
        spans = [
            s.model_copy(update={"prompt_token_ids": (*(s.prompt_token_ids or ()), 7 + 5 * i)})
            if s.verdict and i
            else s
            for i, s in enumerate(trajectory.spans)
        ]
        changed.append(trajectory.model_copy(update={"spans": tuple(spans)}))
    return changed


def build(trajectories: list[Trajectory], **settings: Any) -> list[Row]:
    return build_rows(trajectories, config=TrainConfig.model_validate(settings), version="v0000")[0]


def prompt_of(trajectory: Trajectory, span_id: str) -> list[int]:
    return next(list(s.prompt_token_ids or ()) for s in trajectory.spans if s.span_id == span_id)


# ---- rows ----


def test_failed_first_tries_get_the_prompt_of_a_passed_retry(sampled: list[Trajectory]) -> None:
    rows = build(sampled, **ALONE)
    assert [(row.trajectory_id, row.span_id, row.label) for row in rows] == [
        ("e0", "a", "self_distill"),
        ("e2", "a", "self_distill"),
    ]
    hints = [prompt_of(sampled[0], "t0b"), prompt_of(sampled[2], "t0a")]
    for row, trajectory, hint in zip(rows, (sampled[0], sampled[2]), hints, strict=True):
        assert (row.prompt_ids_P, row.hint_ids_P, row.other_ids_P) == (prompt_of(trajectory, "a"), hint, None)
        assert (row.advantage, row.logprobs_T) == (0.5, list(trajectory.spans[0].logprobs or ()))


def test_contrast_is_with_the_prompt_of_a_failed_retry(sampled: list[Trajectory]) -> None:
    [row] = build(sampled, **ALONE, self_distill_form="contrast")  # every retry of e2 passed
    assert (row.hint_ids_P, row.other_ids_P) == (prompt_of(sampled[0], "t0b"), prompt_of(sampled[0], "t0a"))


def test_weights_by_pass_rate_have_the_settings_mean(record: Record) -> None:
    trajectories = record([[0, 0, 0, 1], [1, 0], [1, 1]])
    rows = build(trajectories, **ALONE, self_distill_form="weighted")
    rare, half = sqrt(1 / 4 * 3 / 4), sqrt(1 / 2 * 1 / 2)
    mean = (rare + half) / 2
    assert [row.trajectory_id for row in rows] == ["e0", "e1"]
    assert [row.advantage for row in rows] == pytest.approx([0.5 * rare / mean, 0.5 * half / mean])


def test_first_tries_with_a_hint_are_not_compared_with_siblings(sampled: list[Trajectory]) -> None:
    settings = {"credit": {"attempt": "success"}, "scale_rewards": "none"}
    plain = build(sampled, **settings)
    config = TrainConfig.model_validate({**settings, "self_distill": 1.0})
    rows, dropped, *_ = credit_spans(sampled, config=config, version="v0000")
    assert rows[0] == plain[1]  # the one that passed, with the baseline of all
    assert [(row.trajectory_id, row.label) for row in rows[1:]] == [("e0", "self_distill"), ("e2", "self_distill")]
    assert [(drop.trajectory_id, drop.label, drop.reason) for drop in dropped] == [
        ("e0", "attempt", "self_distilled"),
        ("e2", "attempt", "self_distilled"),
    ]


def test_without_a_passed_retry_there_is_no_hint(record: Record) -> None:
    with pytest.raises(TrainingError, match="self_distill: no failed first try has a retry that passed, or none has"):
        build(record([[0, 0]], blind=[1]), **ALONE)
    with pytest.raises(TrainingError, match="self_distill: no failed first try"):
        build(record([[1, 1]]), **ALONE, self_distill_form="contrast")


def test_a_hint_that_makes_the_row_too_long_drops_it(record: Record) -> None:
    trajectories = record([[1, 0]])
    [row] = build(trajectories, **ALONE)
    longest = len(row.hint_ids_P or ()) + len(row.completion_ids_T)
    assert build(trajectories, **ALONE, max_row_tokens=longest) == [row]
    with pytest.raises(TrainingError, match="self_distill: too_long 1"):
        build(trajectories, **ALONE, max_row_tokens=longest - 1)


def test_hints_survive_the_file_of_rows(sampled: list[Trajectory]) -> None:
    rows, filed = build(sampled, **ALONE, self_distill_form="contrast"), RowFile()
    filed.extend(rows)
    assert list(filed) == rows


def test_failed_retries_have_a_negative_weight(sampled: list[Trajectory]) -> None:
    rows = build(sampled, credit={}, distill=0.5, distill_retries="all")
    passed = {("e0", "t0b"), ("e2", "t0a"), ("e2", "t0b"), ("e2", "t1a"), ("e2", "t1b")}
    failed = {("e0", "t0a"), ("e0", "t1a"), ("e0", "t1b")}
    assert {(row.trajectory_id, row.span_id) for row in rows} == passed | failed
    for row in rows:
        expected = float((row.trajectory_id, row.span_id) in passed)
        assert (row.label, row.reward) == ("distill", expected)
        assert row.advantage == pytest.approx(0.5 * (expected - 1 / 3))
    assert build(sampled, credit={}, distill=0.5) == [row for row in rows if row.advantage > 0]


def test_failed_retries_weigh_nothing_if_no_first_try_passed(record: Record) -> None:
    rows = build(record([[1, 0, 0]]), credit={}, distill=1.0, distill_retries="all")
    assert [(row.span_id, row.advantage) for row in rows] == [("t0a", 1.0)]


# ---- advantages of tokens ----


def row_of(hint: list[int] | None, other: list[int] | None = None) -> Row:
    return Row("g", "e", "s", "attempt", "v0000", [1], [7, 8, 9], [-1.0] * 3, 1.0, False, 0.0, 1.0)._replace(
        hint_ids_P=hint, other_ids_P=other
    )


def test_tokens_that_the_hint_makes_likelier_have_positive_factors() -> None:
    known = {1: [-1.0, -1.0, -1.0], 2: [-0.5, -3.0, -9.0], 3: [-0.75, -2.0, -9.0]}

    def score(pairs: Any) -> list[list[float]]:
        return [known[prompt[0]] for prompt, _ in pairs]

    gaps = measure_hints([row_of(None), row_of([2]), row_of([2], [3])], score)
    assert gaps == {1: [0.5, -2.0, -LIMIT], 2: [0.25, -1.0, 0.0]}
    assert measure_hints([row_of(None)], score) == {}


@pytest.mark.parametrize("cap", ["none", 3.0])
def test_collate_multiplies_advantages_and_factors(cap: Any) -> None:
    more = {"start_logprobs_T": [-1.0] * 3}
    rows = [{**row_of(None)._asdict(), **more, "advantage": -2.0}, {**row_of([2])._asdict(), **more, "advantage": 0.5}]
    batch = collate([rows[0], {**rows[1], "hint_gaps_T": [1.0, -1.0, 0.0]}], 0, importance_cap=cap)
    assert batch["advantages"].tolist() == [[-2.0] * 3, [0.5, -0.5, 0.0]]
    assert batch["unweighted"].tolist() == [False, False]


def test_a_hint_without_factors_is_refused(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({**ALONE, "method": "full"})
    rows = build(record([[1, 0]]), **ALONE)
    trainer = OfflineGRPOTrainer(load_model(start, config), to_dataset(rows), tokenizer, config, tmp_path)
    message = "hint_gaps lacks 1 of 1 row with a hint, the first is 0; pass what .*measure_hints computes to"
    with pytest.raises(ArgumentError, match=message):
        trainer.score()
    with pytest.raises(ArgumentError, match=message):
        trainer.start_from([None], {1: [1.0]})
    trainer.start_from([None], measure_hints(rows, trainer.logprobs))
    trainer.train()


@pytest.mark.parametrize("form", ["hint", "contrast"])
def test_training_moves_tokens_as_the_hint_does(record: Record, start: PolicyStart, tmp_path: Path, form: str) -> None:
    trajectories = told_apart(record([[0, 1], [1, 0], [0, 0, 1]]))
    settings: dict[str, Any] = {**ALONE, "self_distill_form": form}
    card = run(trajectories, start, tmp_path / "v0001", **settings)
    assert card.metrics["rows"]["labels"] == {"self_distill": 3}
    assert card.metrics["mismatch"]["gap"]["max"] < 1e-4

    old, new = recorded.load(start.model), trained(start, tmp_path / "v0001")
    gained = torch.zeros(())
    for row in build(trajectories, **settings):
        own, completion = row.prompt_ids_P, row.completion_ids_T
        prompts = (row.hint_ids_P or [], row.other_ids_P or own)
        after, other = (torch.tensor(recorded.logprobs(old, prompt, completion)) for prompt in prompts)
        before, now = (torch.tensor(recorded.logprobs(model, own, completion)) for model in (old, new))
        gained += ((now - before) * (after - other).clamp(-LIMIT, LIMIT)).sum()
    assert gained > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"self_distill": -1}, "greater than or equal to 0"),
        ({"self_distill_form": "sdpo"}, "'hint', 'weighted' or 'contrast'"),
        ({"distill_retries": "failed"}, "'passed' or 'all'"),
        ({"credit": {}}, "set distill, imitate or self_distill above 0"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TrainConfig.model_validate(settings)
