from __future__ import annotations

import math
from collections.abc import Callable
from statistics import stdev
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from r3agent.errors import TrainingError
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import EpisodeError, Span, Trajectory
from r3agent.train import Row, RowReport, TrainConfig, build_rows, to_dataset
from r3agent.train.remedies import REMEDIES
from r3agent.train.report import rows_line
from r3agent.train.tokenizer import Retokeniser
from tests.support import trees

Record = Callable[..., list[Trajectory]]


def build(trajectories: list[Trajectory], *, version: str = "v0000", **settings: Any) -> tuple[list[Row], RowReport]:
    return build_rows(trajectories, config=TrainConfig.model_validate({"recipe": "paper", **settings}), version=version)


def by_group(rows: list[Row]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.group_id, []).append(row.advantage)
    return groups


def test_advantages_are_relative_to_siblings_only(record: Record) -> None:
    rows, _ = build(record([[1, 0, 0, 0], [1, 1, 0]]), scale_rewards="none")
    assert by_group(rows) == {
        "e0/a/reflect/r0": pytest.approx([0.75, -0.25, -0.25, -0.25]),
        "e1/a/reflect/r0": pytest.approx([1 / 3, 1 / 3, -2 / 3]),
    }


def test_group_scaling_divides_by_the_siblings_sample_deviation(record: Record) -> None:
    rows, _ = build(record([[1, 0, 0, 0], [1, 1, 0]]), scale_rewards="group")
    assert by_group(rows) == {
        "e0/a/reflect/r0": pytest.approx([0.75 / (0.5 + 1e-4), *[-0.25 / (0.5 + 1e-4)] * 3]),
        "e1/a/reflect/r0": pytest.approx(
            [(1 / 3) / (math.sqrt(1 / 3) + 1e-4)] * 2 + [(-2 / 3) / (math.sqrt(1 / 3) + 1e-4)]
        ),
    }


def test_batch_scaling_divides_by_the_deviation_of_all_siblings(record: Record) -> None:
    rows, _ = build(record([[1, 0], [1, 0, 0, 0], [0, 0, 0], [1]]), scale_rewards="batch")
    deviation = stdev([1, 0, 1, 0, 0, 0, 0, 0, 0])  # as TRL: of groups of equal rewards too
    assert by_group(rows).keys() == {"e0/a/reflect/r0", "e1/a/reflect/r0"}
    assert by_group(rows)["e0/a/reflect/r0"] == pytest.approx([0.5 / (deviation + 1e-4), -0.5 / (deviation + 1e-4)])


def test_rows_are_the_recorded_tokens(record: Record) -> None:
    trajectories = record([[1, 0]])
    rows, _ = build(trajectories)
    reflections = [span for span in trajectories[0].spans if span.label == "reflect"]
    for row, span in zip(rows, reflections, strict=True):
        assert tuple(row.prompt_ids_P) == span.prompt_token_ids
        assert tuple(row.completion_ids_T) == span.token_ids
        assert tuple(row.logprobs_T or ()) == span.logprobs
        assert (row.trajectory_id, row.span_id, row.policy_version) == ("e0", span.span_id, "v0000")


def test_lift_subtracts_the_blind_retries_and_needs_them(record: Record) -> None:
    rows, _ = build(record([[1, 0]], blind=[1, 0]), credit={"reflect": "lift"})
    assert [row.reward for row in rows] == [0.5, -0.5]
    with pytest.raises(TrainingError, match=r"no_reward 2\).*blind_retries of at least 1"):
        build(record([[1, 0]]), credit={"reflect": "lift"})


def test_report_counts_what_was_kept_and_why_the_rest_was_not(record: Record) -> None:
    errored = EpisodeError(kind="VerifierError", message="boom")
    kinds = [
        record([[1, 0], [1, 1, 1]], policy_version="v0009"),
        record([[1, 0]], policy_version="v0007"),
        record([[1, 0]], policy_version="v0009", capability="eval-only"),
        record([[0, 1]], policy_version="v0008", finish_reason="length", sampling={"temperature": None}),
        record([[0, 1]], policy_version="v0009", sampling={"temperature": 0.7}),
        record([[0, 1]], policy_version="v0009", sampling={"temperature": 1.0, "extra": {"top_k": 20}}),
        [t.model_copy(update={"error": errored}) for t in record([[1, 0]])],
    ]
    episodes = [
        t.model_copy(update={"trajectory_id": f"{kind}-{t.trajectory_id}"}) for kind, ts in enumerate(kinds) for t in ts
    ]
    rows, report = build(episodes, version="v0009")
    assert report == RowReport(
        trajectories=8,
        errored=1,
        last_error="VerifierError: boom",
        failures=7,
        spans={"reflect": 17},
        rows=4,
        tries=4,
        steps=4,
        labels={"reflect": 4},
        groups=2,
        zero_variance_groups=1,
        dropped={"zero_variance": 3, "stale": 2, "eval_only": 2, "reshaped": 4, "errored": 2},
        remedies={},
        leaked=0,
        retokenised=0,
        truncated=2,
        ages={"0": 2, "1": 2},
        settings={"None": 4},
        temperatures={"1.0": 2, "None": 2},
        reward_means={"reflect": 9 / 15},
        prompt_tokens=sum(len(row.prompt_ids_P) for row in rows),
        completion_tokens=sum(len(row.completion_ids_T) for row in rows),
    )
    assert report.dropped.keys() <= REMEDIES.keys()
    assert RowReport.model_validate_json(report.model_dump_json()) == report


def test_baseline_leaves_out_siblings_that_are_dropped(record: Record) -> None:
    (trajectory,) = record([[1, 0, 1]])
    spans = [
        span.model_copy(update={"capability": "eval-only"}) if span.span_id == "r2" else span
        for span in trajectory.spans
    ]
    rows, report = build([trajectory.model_copy(update={"spans": tuple(spans)})], scale_rewards="none")
    assert [row.advantage for row in rows] == [0.5, -0.5]
    assert report.dropped == {"eval_only": 1}


def test_an_unknown_sampler_is_kept_and_counted(record: Record) -> None:
    assert build(record([[1, 0]], policy_version=None))[1].ages == {"None": 2}


@pytest.mark.parametrize(
    ("trajectories", "settings", "message"),
    [
        (
            {"outcomes": [[1, 1], [0, 0]]},
            {},
            r"0 of 4 reflect spans .*mean reward 0.500 reflect; dropped: zero_variance 4\).*more",
        ),
        ({"outcomes": [[1, 0]], "policy_version": "v0009"}, {}, r"stale 2\).*max_staleness"),
        ({"outcomes": [[1, 0]]}, {"max_row_tokens": 4}, r"too_long 2\).*max_row_tokens"),
        ({"outcomes": [[1, 0]], "capability": "eval-only"}, {}, r"eval_only 2\).*capability_note"),
        ({"outcomes": [[1, 0]], "capability": "trainable-retokenised"}, {}, r"retokenise_refused 2\).*'allow'"),
        ({"outcomes": [[]]}, {}, r"0 of 0 reflect spans .*1 failures.*--reflections 8"),
        ({"outcomes": []}, {}, r"there are no episodes; collect some first"),
    ],
)
def test_nothing_to_train_on_says_why_and_what_to_do(
    record: Record, trajectories: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        build(record(**trajectories), **settings)


def test_episodes_that_errored_are_no_first_attempts_that_passed(record: Record) -> None:
    errored = EpisodeError(kind="VerifierError", message="boom")
    some, every = record([[1, 0]]), record([[1, 0]], first=[True])
    lost = [t.model_copy(update={"error": errored, "trajectory_id": "lost"}) for t in some]
    with pytest.raises(TrainingError, match=r"^1 of 1 episode errored \(VerifierError: boom\); mend that and collect"):
        build(lost)
    passed = [t.model_copy(update={"spans": t.spans[:1]}) for t in every]
    with pytest.raises(TrainingError, match=r"^0 of 1 first attempts failed: .*; 1 of 2 episodes errored \(Verifier"):
        build([*passed, *lost])
    waiting = [t.model_copy(update={"spans": (t.spans[0].model_copy(update={"verdict": None}),)}) for t in every]
    with pytest.raises(
        TrainingError, match=r"^0 of 1 first attempts failed: .*; 1 have no verdict yet: .* r3agent label"
    ):
        build(waiting)


def test_retokeniser_uses_the_policys_template_when_allowed(record: Record, tokenizer: PreTrainedTokenizerFast) -> None:
    exact, _ = build(record([[1, 0]]))
    text_only = {"capability": "trainable-retokenised", "token_ids": None, "logprobs": None, "prompt_token_ids": None}
    rows, report = build_rows(
        record([[1, 0]], **text_only),
        config=TrainConfig(recipe="paper"),
        version="v0000",
        retokenise=Retokeniser(tokenizer),
    )
    words = tokenizer("Start with 1 + 2 <|end|>", add_special_tokens=False)["input_ids"]
    assert report.retokenised == 2
    assert [row.prompt_ids_P for row in rows] == [row.prompt_ids_P for row in exact]
    assert [row.completion_ids_T for row in rows] == [words, words]
    assert [row.logprobs_T for row in rows] == [None, None]


def test_retokeniser_refuses_tool_calls_and_broken_templates(
    record: Record, tokenizer: PreTrainedTokenizerFast
) -> None:
    config, calls = TrainConfig(recipe="paper"), ({"id": "1", "function": {"name": "f", "arguments": "{}"}},)
    with pytest.raises(TrainingError, match=r"tool_calls 2\)"):
        build_rows(
            record([[1, 0]], capability="trainable-retokenised", tool_calls=calls),
            config=config,
            version="v0000",
            retokenise=Retokeniser(tokenizer),
        )
    picky = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    picky.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TrainingError, match=r"span r0 of trajectory e0: .*roles must alternate.*'refuse'"):
        build_rows(
            record([[1, 0]], capability="trainable-retokenised"),
            config=config,
            version="v0000",
            retokenise=Retokeniser(picky),
        )


TEMPLATE = (
    "{% for tool in tools or [] %}tool {% endfor %}"
    "{% for m in messages %}{{ m.role }} {{ m.reasoning_content }} {{ m.content }} {% endfor %}"
    "{% if enable_thinking is false %}silently{% endif %}"
)


def test_tokens_are_made_of_the_prompt_as_it_was_sampled(tokenizer: PreTrainedTokenizerFast) -> None:
    thinker: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    thinker.chat_template = TEMPLATE
    asked = {"extra": {"chat_template_kwargs": {"enable_thinking": False, "tokenize": True}}}
    failed = trees.span("attempt", text="5", reasoning="2 and 3", sampling=asked)
    reflection = trees.span("reflect", failed, text="add", request=({"role": "user", "content": "why"},), sampling={})
    task = trees.TASK.model_copy(update={"tools": ({"type": "function"},)})
    grown = trees.tree(failed, reflection).model_copy(update={"task": task})

    def prompt_of(asked_for: Span) -> list[int]:
        return Retokeniser(thinker)(grown, asked_for)[0]

    def ids(text: str) -> list[int]:
        return thinker(text, add_special_tokens=False)["input_ids"]

    assert prompt_of(failed) == ids("tool user  2 + 2? silently")
    # the thinking under the template's own name for it, and no tools: the loop offers none to a reflection
    assert prompt_of(reflection) == ids("user  2 + 2? assistant 2 and 3 5 user  why ")


def test_rows_become_a_dataset(record: Record) -> None:
    rows, _ = build(record([[1, 0]]))
    dataset = to_dataset(rows)
    assert dataset.column_names == list(Row._fields)
    assert [Row(**row) for row in dataset] == rows


# ---- episodes that are left out ----


def collected(trajectory: Trajectory, **fields: Any) -> Trajectory:
    metadata = {"source": "tasks.jsonl", "split": "train", **fields.pop("metadata", {})}
    return trajectory.changed(metadata=metadata, **fields)


@pytest.mark.parametrize("split", ["gate", "test"])
def test_held_out_tasks_are_not_trained_on(record: Record, split: str) -> None:
    trained, held_out = record([[1, 0], [1, 0]])
    episodes = [collected(trained), collected(held_out, metadata={"split": split})]
    rows, report = build(episodes, distill=1.0, credit={"reflect": "retry_success", "attempt": "success"})
    assert {row.trajectory_id for row in rows} == {"e0"}
    assert report.dropped == {"held_out": 3, "attempt_alone": 1}
    with pytest.raises(TrainingError, match=r"held_out 2\).*gate or test split"):
        build(episodes[1:])


def test_a_corrected_task_is_trained_on_as_it_is_judged_last(record: Record) -> None:
    (before,) = record([[1, 0]])
    task = before.task.model_copy(update={"info": {"numbers": [1], "target": 1}})
    after = collected(before, task=task, trajectory_id="later", created_at="2999-01-01T00:00:00+00:00")
    rows, report = build([after, collected(before)])
    assert {row.trajectory_id for row in rows} == {"later"}
    assert report.dropped == {"task_changed": 2}


def test_rows_of_several_settings_are_counted(record: Record) -> None:
    one, other = record([[1, 0], [1, 0]])
    _, report = build([collected(one, metadata={"settings": "a"}), collected(other, metadata={"settings": "b"})])
    assert report.settings == {"a": 2, "b": 2}
    assert "collected with 2 different settings: a 2, b 2" in rows_line(report.model_dump())


# ---- tries of several steps ----


def test_distill_refuses_tries_of_several_steps() -> None:
    """A first try that cancelled order 1 must not learn that order 7 was cancelled."""

    def step(label: Any, parent: Span | None, said: str, passed: bool | None = None, *request: Any) -> Span:
        tokens = {"prompt_token_ids": (1,), "token_ids": (2, 3), "logprobs": (-0.1, -0.1)}
        exact = {**tokens, "capability": "trainable-exact", "policy_version": "v0000"}
        return trees.span(label, parent, passed, text=said, request=request, **exact)

    def user(said: str) -> dict[str, Any]:
        return {"role": "user", "content": said}

    def result(said: str) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": "c", "content": said}

    call = step("attempt", None, "cancel(1)")
    failed = step("attempt", call, "order 1 cancelled", False, result("cancelled 1"))
    reflection = step("reflect", failed, "it was 7", None, user("why?"))
    at_once = step("retry", reflection, "order 7 cancelled", True, user("again"))
    called = step("retry", reflection, "cancel(7)", None, user("again"))
    later = step("retry", called, "order 7 cancelled", True, result("cancelled 7"))
    single = step("attempt", None, "order 1", False)
    after_single = step("reflect", single, "it was 7", None, result(NOT_RUN), user("why?"))
    with_results = step("retry", after_single, "order 7 cancelled", True, user("again"), result("cancelled 7"))
    one_completion = step("retry", after_single, "order 7", True, user("again"))
    several = [
        trees.tree(call, failed, reflection, at_once),
        trees.tree(call, failed, reflection, called, later),
        trees.tree(single, after_single, with_results),
    ]
    good = trees.tree(single, after_single, one_completion).changed(
        task=trees.TASK.model_copy(update={"id": "u", "messages": (user("cancel my order"),)})
    )
    rows, report = build([*several, good], credit={}, distill=1.0)
    assert [row.span_id for row in rows] == [one_completion.span_id]
    assert report.not_distilled == {"several_steps": 3}
    assert "not distilled or imitated: several_steps 3" in rows_line(report.model_dump())
    with pytest.raises(TrainingError, match=r"distill: several_steps 3: .*tries of several steps"):
        build(several, credit={}, distill=1.0)
    _, report = build([*several, good], credit={"attempt": "success", "retry": "success"}, distill=1.0)
    assert report.dropped == {"zero_variance": 3, "attempt_alone": 1, "retry_alone": 4}


def test_rows_that_the_server_decided_on_are_counted(record: Record) -> None:
    note = "the server decided on top_k; r3agent doctor tests whether it samples as its logprobs say"
    rows, report = build(record([[1, 0]], capability_note=note))
    assert (len(rows), report.doubtful) == (2, 2)
    assert "in 2 rows the server decided on sampling settings" in rows_line(report.model_dump())
    assert build(record([[1, 0]]))[1].doubtful == 0
