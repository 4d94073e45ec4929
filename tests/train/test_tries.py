"""Tries of several steps: one row where the steps continue one another, and one weight however many rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

from r3agent.records.trajectory import Span, Trajectory, Verdict
from r3agent.train import PolicyStart, Row, RowReport, TrainConfig, build_rows, to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.report import rows_line
from r3agent.train.tokenizer import Retokeniser
from r3agent.train.weights import load_model
from tests.support import trees
from tests.train import recorded
from tests.train.tries import TASK, TryRecorder, first_tries

ATTEMPTS = {"attempt": "success"}
R = "retokenised"


def build(trajectories: Sequence[Trajectory], **values: Any) -> tuple[list[Row], RowReport]:
    config = TrainConfig.model_validate({"recipe": "paper", "credit": ATTEMPTS, "scale_rewards": "none", **values})
    return build_rows(trajectories, config=config, version="v0000")


def unmerged(rows: Sequence[Row]) -> list[Row]:
    """The same tries with a row for each step, whose prompt is all that came before."""
    found: list[Row] = []
    for row in rows:
        ids, first = [*row.prompt_ids_P, *row.completion_ids_T], len(row.prompt_ids_P)
        sampled_T = row.sampled_T or [True] * len(row.completion_ids_T)
        for is_sampled, run in groupby(range(len(row.completion_ids_T)), key=sampled_T.__getitem__):
            places = [*run]
            if is_sampled:
                kept: dict[str, Any] = {"prompt_ids_P": ids[: first + places[0]], "sampled_T": None}
                kept["completion_ids_T"] = [row.completion_ids_T[t] for t in places]
                kept["logprobs_T"] = row.logprobs_T and [row.logprobs_T[t] for t in places]
                found.append(row._replace(**kept))
    return found


@pytest.fixture
def policy(base: Path) -> Any:
    return recorded.load(base)


# ---- which steps are one row ----


def test_steps_that_continue_one_another_are_one_row(policy: Any) -> None:
    trajectories = first_tries(policy, (1, 3, 2, 3))
    rows, report = build(trajectories)
    for row, trajectory in zip(rows, trajectories, strict=True):
        steps = trajectory.spans
        last = steps[-1]
        assert tuple(row.prompt_ids_P) == steps[0].prompt_token_ids
        assert (*row.prompt_ids_P, *row.completion_ids_T) == (*(last.prompt_token_ids or ()), *(last.token_ids or ()))
        assert row.sampled(row.completion_ids_T) == [i for step in steps for i in step.token_ids or ()]
        assert row.sampled(row.logprobs_T or ()) == [x for step in steps for x in step.logprobs or ()]
        assert (row.span_id, row.step_ids or [row.span_id]) == (steps[0].span_id, [s.span_id for s in steps])
    assert (report.tries, report.steps, report.rows, report.merged_steps) == (4, 9, 4, 5)
    assert (report.spans, report.apart) == ({"attempt": 4}, {})
    assert report.completion_tokens == sum(s.completion_tokens or 0 for t in trajectories for s in t.spans)
    assert "4 tries of 9 steps, of which 5 continue a row" in rows_line(report.model_dump())


def rewritten(kind: str, recorder: TryRecorder) -> tuple[list[Span], int]:
    """A try whose third step does not continue the second, and the number of rows that it needs."""
    one, two = recorder.steps(prompt := recorder.tokens(6, 6), 2, True)
    first, second = list(one.token_ids or ()), list(two.token_ids or ())
    two = two.model_copy(update={"verdict": None})
    whole, more = [*(two.prompt_token_ids or ()), *second], recorder.tokens()
    between = whole[len(prompt) + len(first) : -len(second)]
    verdict = {"verdict": Verdict(passed=True, score=1.0)}
    third = {
        "answer_rewritten": lambda: recorder.step(two, [*whole[:-1], *more], **verdict),  # without the end of turn
        "history_rewritten": lambda: recorder.step(two, [*prompt, *between, *second, *more], **verdict),
        "fresh": lambda: recorder.step(two, recorder.tokens(), standalone=True, **verdict),
        "forked": lambda: recorder.step(one, [*prompt, *first, *more], **verdict),
        "other_version": lambda: recorder.step(two, [*whole, *more], policy_version="v0001", **verdict),
    }[kind]()
    return [one, two, third], 2


@pytest.mark.parametrize("kind", ["answer_rewritten", "history_rewritten", "fresh", "forked", "other_version"])
def test_steps_that_do_not_continue_are_rows_of_their_own(policy: Any, kind: str) -> None:
    spans, n_rows = rewritten(kind, TryRecorder(policy))
    prompt = spans[0].prompt_token_ids or ()
    failed = TryRecorder(policy, 1).steps(prompt, 2, False)
    trajectories = [Trajectory(trajectory_id=f"e{i}", task=TASK, spans=tuple(s)) for i, s in enumerate((spans, failed))]
    config = TrainConfig.model_validate({"recipe": "paper", "credit": ATTEMPTS})
    rows, report = build_rows(trajectories, config=config, version="v0001", lineage=["v0001", "v0000"])
    own = [row for row in rows if row.trajectory_id == "e0"]
    assert [row.step_ids for row in own] == [[spans[0].span_id, spans[1].span_id], [spans[2].span_id]]
    assert [row.apart for row in own] == [None, kind]
    assert (own[1].prompt_ids_P, own[1].completion_ids_T) == ([*spans[2].prompt_token_ids], [*spans[2].token_ids])
    assert len({row.advantage for row in own}) == 1
    assert (report.apart, report.apart_in) == ({kind: 1}, {kind: (f"e0/{spans[0].span_id}",)})
    assert (report.tries, report.steps, report.rows, report.merged_steps) == (2, 5, n_rows + 1, 2)
    assert f"1 row of later steps, {kind}: " in rows_line(report.model_dump())


# ---- tries that are left out ----


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"policy_version": "v0007"}, "stale"),
        ({"sampling": {"temperature": 0.7}}, "reshaped"),
        ({"capability": "eval-only"}, "eval_only"),
        ({"capability": "trainable-retokenised"}, "retokenise_refused"),
        ({"token_ids": (9,) * 5000, "logprobs": (-1.0,) * 5000}, "too_long"),
        ({"request": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},)}, "media"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_try_is_left_out_for_one_step(policy: Any, fields: dict[str, Any], reason: str) -> None:
    trajectories = first_tries(policy, (2, 2, 3))
    one, two, three = trajectories[-1].spans
    marred = trajectories[-1].changed(spans=(one, two.model_copy(update=fields), three))
    rows, report = build([*trajectories[:-1], marred])
    assert {row.trajectory_id for row in rows} == {"e0", "e1"}
    assert report.dropped == {reason: 1}


@pytest.mark.parametrize("fields", [{"purpose": "router"}, {"finish_reason": "context_overflow"}], ids=str)
def test_calls_that_sampled_nothing_of_the_policy_are_passed_over(policy: Any, fields: dict[str, Any]) -> None:
    trajectories = first_tries(policy, (2, 2))
    one, two = trajectories[0].spans
    bare = {"token_ids": None, "logprobs": None, "text": "", "parent_id": two.span_id, "span_id": "x"}
    bare["capability"] = "eval-only"
    verdict, two = two.verdict, two.model_copy(update={"verdict": None})
    further = two.model_copy(update={**bare, "verdict": verdict, **fields})
    rows, report = build([trajectories[0].changed(spans=(one, two, further)), trajectories[1]])
    assert rows[0].step_ids == [one.span_id, two.span_id]
    assert report.dropped == {}
    routed = [s.model_copy(update={"purpose": "router"}) for s in trajectories[0].spans]
    with pytest.raises(Exception, match="not_the_policy 1"):
        build([trajectories[0].changed(spans=tuple(routed)), trajectories[1]])


def test_reflections_are_paid_by_retries_of_several_steps(policy: Any) -> None:
    recorder = TryRecorder(policy)
    failed = recorder.steps(prompt := recorder.tokens(9, 9), 2, False)
    asked = [*(failed[-1].prompt_token_ids or ()), *(failed[-1].token_ids or ()), *recorder.tokens()]
    spans = list(failed)
    for passed in (True, False):
        reflection = recorder.step(failed[-1], asked, label="reflect")
        retried = recorder.steps(
            [*asked, *(reflection.token_ids or ()), *prompt], 3, passed, above=reflection, label="retry"
        )
        spans += [reflection, *retried]
    rows, report = build([Trajectory(task=TASK, spans=tuple(spans))], credit={"reflect": "retry_success"})
    assert [(row.label, row.reward, row.step_ids) for row in rows] == [("reflect", 1.0, None), ("reflect", 0.0, None)]
    assert (report.spans, report.dropped) == ({"reflect": 2}, {})


def test_retokenised_steps_are_a_row_each(tokenizer: PreTrainedTokenizerFast) -> None:
    def step(above: Span | None, text: str, passed: bool | None = None, **fields: Any) -> Span:
        asked = ({"role": "user", "content": f"after {text}"},) if above else ()
        bare = {"capability": "trainable-retokenised", "policy_version": "v0000", "request": asked}
        return trees.span("attempt", above, passed, text=text, **bare, **fields)

    one, other = step(None, "1 + 1"), step(None, "2 + 2")
    called = step(None, "", tool_calls=({"id": "1", "function": {"name": "f", "arguments": "{}"}},))
    spans = [(one, step(one, "3", True)), (other, step(other, "4", False)), (called, step(called, "5", True))]
    rows, report = build_rows(
        [trees.tree(*two).changed(trajectory_id=f"e{i}") for i, two in enumerate(spans)],
        config=TrainConfig.model_validate({"recipe": "paper", "credit": ATTEMPTS, "retokenise": "allow"}),
        version="v0000",
        retokenise=Retokeniser(tokenizer),
    )
    assert [(row.trajectory_id, row.apart) for row in rows] == [(e, why) for e in ("e0", "e1") for why in (None, R)]
    template: Any = tokenizer.apply_chat_template
    prompt = template(trees.tree(*spans[0]).prompt(spans[0][1]), tokenize=False, add_generation_prompt=True)
    assert rows[1].prompt_ids_P == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert (report.retokenised, report.apart, report.dropped) == (4, {R: 2}, {"tool_calls": 1})


# ---- the loss ----


class Steps(TrainerCallback):
    """Weights before each optimizer step, its gradients, and the losses."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = dict(kwargs["model"].named_parameters())
        self.weights.append({name: p.detach().clone() for name, p in named.items()})
        self.gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logs += [kwargs["logs"]] if "loss" in kwargs["logs"] else []


FAR = {"epochs": 2, "learning_rate": 1e-2, "warmup_ratio": 0.0, "max_grad_norm": 1e9, "batch_size": 16, "lora_r": 4}


@pytest.fixture
def trained(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., tuple[OfflineGRPOTrainer, Steps]]:
    def trained(rows: Sequence[Row], **values: Any) -> tuple[OfflineGRPOTrainer, Steps]:
        config, seen = TrainConfig.model_validate({"recipe": "paper", **FAR, "credit": ATTEMPTS, **values}), Steps()
        model = load_model(start, config)
        trainer = OfflineGRPOTrainer(model, to_dataset(rows), tokenizer, config, tmp_path, callbacks=[seen])
        trainer.score()
        trainer.train()
        return trainer, seen

    return trained


def older(rows: Sequence[Row]) -> list[Row]:
    """Rows that another version sampled: their logprobs are 0.3 off in every other row."""
    return [
        row._replace(logprobs_T=[x - 0.3 * (i % 2) * (x != 0) for x in row.logprobs_T or ()])
        for i, row in enumerate(rows)
    ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    largest = max(gradient.abs().max().item() for gradient in other.values())
    assert largest > 1e-4
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-3 * largest)


@pytest.mark.parametrize("share_prompt", [True, False], ids=["shared", "padded"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "values",
    [
        {"loss_type": "grpo", "beta": 0.3},
        {"loss_type": "grpo", "beta": 0.3, "importance_cap": "none"},
        {"loss_type": "dapo", "beta": 0.3},
        {"loss_type": "dr_grpo", "beta": 0.3, "max_row_tokens": 200},
        {"loss_type": "cispo"},
    ],
    ids=str,
)
def test_one_row_has_the_gradients_of_a_row_for_each_step(
    policy: Any,
    trained: Callable[..., tuple[OfflineGRPOTrainer, Steps]],
    method: str,
    share_prompt: bool,
    values: dict[str, Any],
) -> None:
    rows = older(build(first_tries(policy, (1, 3, 2, 4)))[0])
    apart = unmerged(rows)
    assert (len(rows), len(apart)) == (5, 10)
    settings = {"method": method, "share_prompt": share_prompt, **values}
    trainer, merged = trained(rows, **settings)
    _, split = trained(apart, **settings)
    _, alone = trained(apart, **settings, micro_batch_tokens=1)
    assert trainer.packs == share_prompt
    for other in (split, alone):
        for step in range(2):
            same(merged.gradients[step], other.gradients[step])
            for key in ("loss", "reward", "tokens"):
                assert merged.logs[step][key] == pytest.approx(other.logs[step][key], rel=1e-3, abs=1e-6), key
    for key in ("ratio", "kl", "entropy", *(["clip_ratio/region_mean"] if values["loss_type"] != "cispo" else [])):
        assert merged.logs[1][key] == pytest.approx(split.logs[1][key], rel=1e-3, abs=1e-5), key
    assert merged.logs[1]["kl"] > 1e-4


def plain_loss(model: Any, rows: Sequence[Row], started: Any, beta: float) -> torch.Tensor:
    """Mean over tries of the mean over their sampled tokens, with plain autograd and a forward pass for each step."""
    losses: dict[str, list[torch.Tensor]] = {}
    for row, start_T in zip(rows, started, strict=True):
        ids = torch.tensor([[*row.prompt_ids_P, *row.completion_ids_T]])
        table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        logprobs_T = table[torch.arange(len(table)), ids[0, 1:]][len(row.prompt_ids_P) - 1 :]
        old_T, start_T = torch.tensor(row.logprobs_T), torch.tensor(start_T)
        weight_T = (start_T - old_T).exp().clamp(max=3.0) * row.advantage
        ratio_T, gap_T = (logprobs_T - start_T).exp(), start_T - logprobs_T
        loss_T = -torch.min(ratio_T * weight_T, ratio_T.clamp(0.8, 1.2) * weight_T) + beta * (gap_T.exp() - gap_T - 1)
        losses.setdefault(row.trajectory_id, []).append(loss_T)
    return torch.stack([torch.cat(of_try).mean() for of_try in losses.values()]).mean()


@pytest.mark.parametrize("is_merged", [True, False], ids=["one_row", "row_for_each_step"])
def test_a_try_weighs_as_one_try(
    policy: Any, start: PolicyStart, trained: Callable[..., tuple[OfflineGRPOTrainer, Steps]], is_merged: bool
) -> None:
    rows = older(build(first_tries(policy, (1, 3, 5, 4)))[0])
    apart = unmerged(rows)
    assert (len(rows), len(apart)) == (6, 13)
    _, seen = trained(rows if is_merged else apart, method="full", beta=0.3)
    model = recorded.load(start.model)
    started = [recorded.logprobs(model, row.prompt_ids_P, row.completion_ids_T) for row in apart]
    model.load_state_dict(seen.weights[1], strict=False)
    plain_loss(model, apart, started, 0.3).backward()
    same(seen.gradients[1], {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_results_of_tools_have_no_loss(policy: Any, trained: Callable[..., tuple[OfflineGRPOTrainer, Steps]]) -> None:
    """Tokens that come after all sampled ones change nothing, whatever they are."""
    rows, _ = build(first_tries(policy))

    def followed(last: list[int]) -> list[Row]:
        return [
            row._replace(
                completion_ids_T=[*row.completion_ids_T, *last],
                sampled_T=[*(row.sampled_T or [True] * len(row.completion_ids_T)), *[False] * len(last)],
                logprobs_T=[*(row.logprobs_T or ()), *[0.0] * len(last)],
            )
            for row in rows
        ]

    for share_prompt in (True, False):
        _, expected = trained(rows, beta=0.3, share_prompt=share_prompt)
        for last in ([11, 12, 13], [90, 91, 92]):
            _, seen = trained(followed(last), beta=0.3, share_prompt=share_prompt)
            same(seen.gradients[1], expected.gradients[1])
            for key in ("loss", "ratio", "kl", "entropy", "clip_ratio/region_mean", "reward", "tokens"):
                assert seen.logs[1][key] == pytest.approx(expected.logs[1][key], rel=1e-4, abs=1e-6), key
