"""Rows of any label: whom they are compared with, what they weigh, and what becomes of leaks and of passed retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from r3agent.errors import TrainingError
from r3agent.records.credit import SOURCES, credit_label
from r3agent.records.trajectory import Span, Trajectory
from r3agent.train import Row, TrainConfig, build_rows, credit_spans
from r3agent.train.remedies import COLLECT, REMEDIES
from r3agent.train.tokenizer import Retokeniser
from tests.support.trees import span, tree

Record = Callable[..., list[Trajectory]]
EVERYTHING = {"attempt": "success", "reflect": "retry_success", "retry": "success", "blind_retry": "success"}
FIRST = (0, 1, 0)
OUTCOMES = [[(1, 0), (0, 0)], [], [(1, 1), (1, 0)]]
"""Three samples of one task, of which the second passes at first."""


@pytest.fixture
def sampled(record: Record) -> list[Trajectory]:
    return record(OUTCOMES, first=FIRST, blind=[1, 0], one_task=True)


def build(trajectories: list[Trajectory], **settings: Any) -> list[Row]:
    values = {**({"scale_rewards": "none"} if settings.get("credit", True) else {}), **settings}
    config = TrainConfig.model_validate({"recipe": "paper", **values})
    return build_rows(trajectories, config=config, version="v0000")[0]


def advantages(rows: list[Row], label: str) -> dict[str, float]:
    return {f"{r.trajectory_id}/{r.span_id}": round(r.advantage, 6) for r in rows if r.label == label}


def test_every_label_is_compared_with_its_own_siblings(sampled: list[Trajectory]) -> None:
    rows = build(sampled, credit=EVERYTHING)
    assert advantages(rows, "attempt") == {"e0/a": -0.333333, "e1/a": 0.666667, "e2/a": -0.333333}
    assert advantages(rows, "reflect") == {"e0/r0": 0.25, "e0/r1": -0.25, "e2/r0": 0.25, "e2/r1": -0.25}
    # e0/r1 and e2/r0 have no variance among their retries
    assert advantages(rows, "retry") == {"e0/t0a": 0.5, "e0/t0b": -0.5, "e2/t1a": 0.5, "e2/t1b": -0.5}
    blind = {"e0/b0": 0.5, "e0/b1": -0.5, "e2/b0": 0.5, "e2/b1": -0.5}
    assert advantages(rows, "blind_retry") == blind


def test_rows_are_the_recorded_tokens_of_any_label(sampled: list[Trajectory]) -> None:
    spans = {(t.trajectory_id, s.span_id): s for t in sampled for s in t.spans}
    rows = build(sampled, credit=EVERYTHING)
    assert {row.label for row in rows} == EVERYTHING.keys()
    for row in rows:
        known = spans[row.trajectory_id, row.span_id]
        assert tuple(row.prompt_ids_P) == known.prompt_token_ids
        assert tuple(row.completion_ids_T) == known.token_ids
        assert tuple(row.logprobs_T or ()) == known.logprobs
    prompts = {row.group_id: {tuple(r.prompt_ids_P) for r in rows if r.group_id == row.group_id} for row in rows}
    assert {len(siblings) for siblings in prompts.values()} == {1}


def test_other_labels_change_nothing_for_a_label(sampled: list[Trajectory]) -> None:
    for scale in ("group", "batch", "none"):
        together = build(sampled, credit=EVERYTHING, distill=1.0, scale_rewards=scale)
        for label, source in EVERYTHING.items():
            alone = build(sampled, credit={label: source}, scale_rewards=scale)
            assert alone == [row for row in together if row.label == label]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_lift_gives_the_same_advantages_as_retry_success(record: Record, scale: str) -> None:
    trajectories = record([[(1, 0), (0, 0)], [(1, 1), (1, 0), (0, 0)]], blind=[1, 0, 0])
    success, lift = (
        build(trajectories, credit={"reflect": source}, scale_rewards=scale) for source in ("retry_success", "lift")
    )
    assert [row.advantage for row in lift] == pytest.approx([row.advantage for row in success])
    assert [row.reward for row in lift] == pytest.approx([row.reward - 1 / 3 for row in success])


@pytest.mark.parametrize("label", EVERYTHING)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_weight_scales_the_advantages_of_its_label_alone(sampled: list[Trajectory], label: str, scale: str) -> None:
    plain = build(sampled, credit=EVERYTHING, distill=1.0, scale_rewards=scale)
    weighted = build(sampled, credit=EVERYTHING, distill=1.0, scale_rewards=scale, credit_weights={label: 2.5})
    for before, after in zip(plain, weighted, strict=True):
        factor = 2.5 if before.label == label else 1
        assert after == before._replace(advantage=pytest.approx(factor * before.advantage))


def shaken(trajectory: Trajectory, verdicts: list[bool]) -> Trajectory:
    """The same tree with other verdicts below its first try."""
    values = iter(verdicts)
    spans = [s if s.verdict is None else span_with(s, next(values)) for s in trajectory.spans[1:]]
    return trajectory.model_copy(update={"spans": (*trajectory.spans[:1], *spans)})


def span_with(known: Span, passed: bool) -> Span:
    assert known.verdict is not None
    verdict = known.verdict.model_copy(update={"passed": passed, "score": float(passed)})
    return known.model_copy(update={"verdict": verdict})


def grown(trajectory_id: str) -> Trajectory:
    exact = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-1], "capability": "trainable-exact"}
    exact["policy_version"] = "v0000"
    attempt = span("attempt", None, False, span_id="a", **exact)
    reflections = [span("reflect", attempt, span_id=f"r{i}", **exact) for i in range(2)]
    retries = [span("retry", above, True, **exact) for above in (*reflections, attempt) for _ in range(2)]
    return tree(attempt, *reflections, *retries).model_copy(update={"trajectory_id": trajectory_id})


verdicts = st.lists(st.booleans(), min_size=6, max_size=6)


@given(verdicts, verdicts, verdicts, st.sampled_from([(label, s) for label in SOURCES for s in SOURCES[label]]))
def test_credit_never_depends_on_another_failure(
    own: list[bool], other: list[bool], changed: list[bool], fitting: tuple[str, str]
) -> None:
    label, source = fitting
    config = TrainConfig.model_validate({"recipe": "paper", "credit": {label: source}, "distill": 1.0})
    mine = shaken(grown("mine"), own)

    def credit(beside: Trajectory) -> list[Row]:
        rows = credit_spans([mine, beside], config=config, version="v0000").rows
        return [row for row in rows if row.trajectory_id == "mine"]

    assert credit(shaken(grown("other"), other)) == credit(shaken(grown("other"), changed))


# ---- what is missing ----


@pytest.mark.parametrize("label", EVERYTHING)
def test_a_label_without_siblings_says_which_setting_makes_them(record: Record, label: str) -> None:
    lonely = record([[1]], blind=[1])
    with pytest.raises(TrainingError, match=rf"{label}: {label}_alone 1: .*collect with {COLLECT[label]}"):
        build(lonely, credit={label: EVERYTHING[label]})
    _, report = build_rows(
        [*lonely, *record([[1, 0]])],
        config=TrainConfig.model_validate({"recipe": "paper", "credit": EVERYTHING}),
        version="v0000",
    )
    assert report.labels == {"reflect": 2}
    assert report.remedies.keys() == EVERYTHING.keys() - {"reflect"}
    assert f"collect with {COLLECT['retry']}" in report.remedies["retry"]


def test_the_report_counts_rows_by_label(sampled: list[Trajectory]) -> None:
    config = TrainConfig.model_validate({"recipe": "paper", "credit": EVERYTHING, "distill": 1.0})
    rows, report = build_rows(sampled, config=config, version="v0000")
    assert report.labels == Counter(row.label for row in rows)
    assert report.labels == {"attempt": 3, "reflect": 4, "retry": 4, "blind_retry": 4, "distill": 4}
    assert report.spans == {"attempt": 3, "reflect": 4, "retry": 8, "blind_retry": 4}
    assert report.dropped == {"zero_variance": 4}
    assert report.groups == 1 + 2 + 2 + 2
    assert report.reward_means == pytest.approx({"attempt": 1 / 3, "reflect": 0.5, "retry": 0.5, "blind_retry": 0.5})
    assert (report.remedies, report.retokenised) == ({}, 0)
    assert report.dropped.keys() <= REMEDIES.keys()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"capability": "eval-only"}, "eval_only"),
        ({"capability": "trainable-retokenised"}, "retokenise_refused"),
        ({"policy_version": "v0009"}, "stale"),
    ],
)
def test_reasons_for_dropping_a_span_hold_for_every_label(
    sampled: list[Trajectory], fields: dict[str, Any], reason: str
) -> None:
    marred = [t.model_copy(update={"spans": tuple(s.model_copy(update=fields) for s in t.spans)}) for t in sampled]
    config = TrainConfig.model_validate({"recipe": "paper", "credit": EVERYTHING, "distill": 1.0})
    rows, dropped, *_ = credit_spans(marred, config=config, version="v0000")
    assert rows == []
    assert {(drop.label, drop.reason) for drop in dropped} == {(label, reason) for label in [*EVERYTHING, "distill"]}


def test_spans_behind_an_image_are_dropped(sampled: list[Trajectory]) -> None:
    image = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]
    shown = [
        t.changed(task=t.task.model_copy(update={"messages": ({"role": "user", "content": image},)})) for t in sampled
    ]
    config = TrainConfig.model_validate({"recipe": "paper", "credit": EVERYTHING})
    rows, dropped, *_ = credit_spans(shown, config=config, version="v0000")
    assert (rows, {drop.reason for drop in dropped}) == ([], {"media"})


def test_texts_in_parts_are_tokenised_again(record: Record, tokenizer: PreTrainedTokenizerFast) -> None:
    (trajectory,) = record([[1, 0]])
    content = trajectory.task.messages[-1]["content"]
    parts = {**trajectory.task.messages[-1], "content": [{"type": "text", "text": content}]}
    listed = trajectory.changed(task=trajectory.task.model_copy(update={"messages": (parts,)}))
    retokenise = Retokeniser(tokenizer)
    assert retokenise(listed, listed.spans[0]) == retokenise(trajectory, trajectory.spans[0])


# ---- distill ----


def test_a_passed_retry_is_put_behind_the_first_trys_prompt(sampled: list[Trajectory]) -> None:
    spans = {(t.trajectory_id, s.span_id): s for t in sampled for s in t.spans}
    rows = build(sampled, credit={}, distill=0.5)
    passed = {("e0", "t0a"), ("e2", "t0a"), ("e2", "t0b"), ("e2", "t1a")}  # e1 did not fail, blind retries do not count
    assert {(row.trajectory_id, row.span_id) for row in rows} == passed
    for row in rows:
        assert tuple(row.prompt_ids_P) == spans[row.trajectory_id, "a"].prompt_token_ids
        assert tuple(row.completion_ids_T) == spans[row.trajectory_id, row.span_id].token_ids
        assert (row.label, row.logprobs_T, row.reward) == ("distill", None, 1.0)
        assert row.advantage == pytest.approx((1 - 1 / 3) * 0.5)
    assert len({row.group_id for row in rows}) == 1


def test_distilled_rows_are_beside_the_first_tries(sampled: list[Trajectory]) -> None:
    rows = build(sampled, credit={"attempt": "success"}, distill=1.0)
    assert {row.label for row in rows} == {"attempt", "distill"}
    assert len({row.group_id for row in rows}) == len({tuple(row.prompt_ids_P) for row in rows}) == 1


def test_without_a_passed_retry_there_is_nothing_to_distill(record: Record) -> None:
    with pytest.raises(TrainingError, match=r"distill: no failed first try has a retry that passed: collect more"):
        build(record([[0, 0]], blind=[1]), credit={}, distill=1.0)


def test_every_try_that_passed_is_imitated_after_its_own_prompt(sampled: list[Trajectory]) -> None:
    spans = {(t.trajectory_id, s.span_id): s for t in sampled for s in t.spans}
    tries = {(t.trajectory_id, a_try.first.span_id) for t in sampled for a_try in t.tries if a_try.passed}
    rows = build(sampled, credit={}, imitate=0.5)
    assert {(row.trajectory_id, row.span_id) for row in rows} == tries
    for row in rows:
        span = spans[row.trajectory_id, row.span_id]
        assert (tuple(row.prompt_ids_P), tuple(row.completion_ids_T)) == (span.prompt_token_ids, span.token_ids)
        assert (row.label, row.advantage, row.reward) == ("imitate", 0.5, 1.0)


def test_without_a_passed_try_there_is_nothing_to_imitate(record: Record) -> None:
    with pytest.raises(TrainingError, match=r"imitate: no try passed: collect more"):
        build(record([[0, 0]]), credit={}, imitate=1.0)


def test_distilled_text_is_tokenised_behind_the_first_try(record: Record, tokenizer: PreTrainedTokenizerFast) -> None:
    (trajectory,) = record([[1]])
    bare = {"capability": "trainable-retokenised", "token_ids": None, "logprobs": None, "prompt_token_ids": None}
    spans = [s.model_copy(update={**bare, "text": "1 + 2"}) for s in trajectory.spans]
    config = TrainConfig.model_validate({"recipe": "paper", "credit": {}, "distill": 1.0, "retokenise": "allow"})
    text_only = trajectory.model_copy(update={"spans": tuple(spans)})
    [row], _ = build_rows([text_only], config=config, version="v0000", retokenise=Retokeniser(tokenizer))
    assert tuple(row.prompt_ids_P) == trajectory.spans[0].prompt_token_ids
    assert row.completion_ids_T == tokenizer("1 + 2 <|end|>", add_special_tokens=False)["input_ids"]


# ---- leaks ----


@pytest.fixture
def leaky(record: Record) -> Trajectory:
    """Three reflections, of which the first two led to a right answer, and the first by containing it."""
    (trajectory,) = record([[1, 1, 0]], blind=[1, 0])
    answer = next(s.token_ids for s in trajectory.spans if s.span_id == "t0a") or ()
    told = tuple(range(7, 13)) if len(answer) < 4 else answer
    spans = [
        s.model_copy(update={"token_ids": told, "logprobs": (-1.0,) * len(told)}) if s.span_id in ("r0", "t0a") else s
        for s in trajectory.spans
    ]
    return trajectory.model_copy(update={"spans": tuple(spans)})


@pytest.mark.parametrize(
    ("leak", "source", "rewards"),
    [
        ("keep", "retry_success", {"r0": 1.0, "r1": 1.0, "r2": 0.0}),
        ("drop", "retry_success", {"r1": 1.0, "r2": 0.0}),
        ("penalise", "retry_success", {"r0": 0.0, "r1": 1.0, "r2": 0.0}),
        ("penalise", "retry_score", {"r0": 0.0, "r1": 1.0, "r2": 0.0}),
        ("penalise", "lift", {"r0": -0.5, "r1": 0.5, "r2": -0.5}),
    ],
)
def test_a_leak_is_counted_and_paid_as_the_config_says(
    leaky: Trajectory, leak: str, source: str, rewards: dict[str, float]
) -> None:
    config = TrainConfig.model_validate({"recipe": "paper", "credit": {"reflect": source}, "leak": leak})
    rows, report = build_rows([leaky], config=config, version="v0000")
    assert {row.span_id: row.reward for row in rows} == rewards
    assert report.leaked == 1
    assert report.dropped == ({"leaked": 1} if leak == "drop" else {})
    assert [label for t in [leaky] for s in t.spans if (label := credit_label(t, s)) == "reflect"] == ["reflect"] * 3


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"credit": {"retry": "lift"}}, "retry = 'lift': what fits retry is 'success' or 'score'"),
        ({"credit": {"reflect": "success"}}, "what fits reflect is 'retry_success' or 'retry_score' or 'lift'"),
        ({"credit": {"retries": "success"}}, "unknown label 'retries'; did you mean 'retry'"),
        ({"credit": {"zzz": "success"}}, "known are attempt, reflect, retry, blind_retry"),
        ({"credit": {}}, "nothing would be trained on; name a label, or set distill or imitate above 0"),
        ({"credit_weights": {"retry": 2}}, "credit_weights has retry: not in credit"),
        ({"credit_weights": {"reflct": 2}}, "unknown label 'reflct'; did you mean 'reflect'"),
        ({"credit_weights": {"reflect": 0}}, "greater than 0"),
        ({"distill": -0.1}, "greater than or equal to 0"),
        ({"leak": "hide"}, "'keep', 'drop' or 'penalise'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_what_does(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TrainConfig.model_validate({"recipe": "paper", **settings})
