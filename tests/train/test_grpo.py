"""The loss is TRL's, on recorded tokens and with recorded logprobs in the ratio."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.weights import load_model
from tests.train import recorded

GROUP = 4
OUTCOMES = [[1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]]
NO_CLIPPING = 1e9


class Steps(TrainerCallback):
    """Weights before each optimizer step, and the gradients it takes."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = dict(kwargs["model"].named_parameters())
        weights = {name: p.detach().clone() for name, p in named.items()}
        self.steps.append((weights, {name: p.grad.clone() for name, p in named.items() if p.grad is not None}))


class FirstStep(TrainerCallback):
    """Loss and gradients of a run's first optimizer step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients = self.gradients or {name: p.grad.clone() for name, p in named if p.grad is not None}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses += [kwargs["logs"]["loss"]] if "loss" in kwargs["logs"] else []


def first_step(trainer: GRPOTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    seen = FirstStep()
    trainer.add_callback(seen)
    trainer.train()
    return seen.losses[0], seen.gradients


def move(model: torch.nn.Module) -> None:
    """Move the trainable weights, the same way each time."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)


def settings(**values: Any) -> TrainConfig:
    whole = {"lora_r": 4, "lora_alpha": 8, "batch_size": 16, "max_grad_norm": NO_CLIPPING}
    return TrainConfig.model_validate({"recipe": "paper", **whole, **values})


def rows_of(trajectories: list[Trajectory], config: TrainConfig) -> list[Row]:
    return build_rows(trajectories, config=config, version="v0000")[0]


@pytest.fixture
def trainer(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[[list[Row], TrainConfig], OfflineGRPOTrainer]:
    def trainer(rows: list[Row], config: TrainConfig) -> OfflineGRPOTrainer:
        return OfflineGRPOTrainer(load_model(start, config), to_dataset(rows), tokenizer, config, tmp_path)

    return trainer


# ---- against stock TRL ----


def stock_trainer(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, config: TrainConfig, rows: list[Row], directory: Path
) -> GRPOTrainer:
    """TRL as it is, given the same tokens through `rollout_func` and the same rewards."""

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        siblings = {prompt: iter([row for row in rows if row.group_id == prompt]) for prompt in prompts}
        chosen = [next(siblings[prompt]) for prompt in prompts]
        return {
            "prompt_ids": [row.prompt_ids_P for row in chosen],
            "completion_ids": [row.completion_ids_T for row in chosen],
            "logprobs": [row.logprobs_T for row in chosen],
            "recorded": [row.reward for row in chosen],
        }

    def reward(recorded: list[float], **_: Any) -> list[float]:
        return recorded

    set_seed(config.seed)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return GRPOTrainer(
        model=recorded.load(start.model),
        peft_config=lora if config.method == "lora" else None,
        reward_funcs=reward,
        rollout_func=rollout,
        train_dataset=Dataset.from_dict({"prompt": sorted({row.group_id for row in rows})}),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(directory),
            per_device_train_batch_size=len(rows),
            num_generations=GROUP,
            loss_type=config.loss_type,
            beta=config.beta,
            epsilon_high=1.2 if config.loss_type == "cispo" else None,
            importance_sampling_level=config.importance_sampling_level,
            use_bias_correction_kl=False,
            max_completion_length=config.max_row_tokens,
            max_grad_norm=NO_CLIPPING,
            max_steps=1,
            logging_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            seed=config.seed,
        ),
    )


@pytest.mark.parametrize(
    ("method", "loss_type", "beta", "share_prompt"),
    [
        *product(("full", "lora"), ("grpo", "dr_grpo", "dapo", "bnpo", "cispo"), (0.0, 0.3), (True,)),
        ("full", "grpo", 0.3, False),
        ("lora", "dapo", 0.3, False),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_equals_stock_trl_where_recorded_logprobs_are_current(
    start: PolicyStart,
    tokenizer: PreTrainedTokenizerFast,
    trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer],
    tmp_path: Path,
    method: str,
    loss_type: str,
    beta: float,
    share_prompt: bool,
) -> None:
    config = settings(method=method, loss_type=loss_type, beta=beta, share_prompt=share_prompt, importance_cap="none")
    sampler = load_model(start, config)
    move(sampler)
    rows = rows_of(recorded.record(sampler.eval(), tokenizer, OUTCOMES), config)

    ours = trainer(rows, config)
    ours.score()  # the KL reference: the weights before they move
    stock = stock_trainer(start, tokenizer, config, rows, tmp_path)
    move(ours.model)
    move(stock.model)
    loss, gradients = first_step(ours)
    expected_loss, expected = first_step(stock)

    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-6)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * largest)
    assert largest > (1e-5 if loss_type == "dr_grpo" else 1e-3)


# ---- recorded logprobs ----


@pytest.mark.parametrize("gap", [-0.5, -0.05, 0.0, 0.05, 0.5])
def test_recorded_logprobs_are_the_old_ones_of_the_ratio(
    record: Callable[..., list[Trajectory]],
    trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer],
    gap: float,
) -> None:
    config = settings(method="full", beta=0.0, importance_cap="none", epsilon_low=0.1, epsilon_high=0.3)
    rows = [
        row._replace(logprobs_T=[logprob - gap for logprob in row.logprobs_T or ()])
        for row in rows_of(record(OUTCOMES), config)
    ]
    ours = trainer(rows, config)
    ours.score()
    loss, gradients = first_step(ours)

    ratio = math.exp(gap)
    clipped = min(max(ratio, 0.9), 1.3)
    losses = [-min(ratio * row.advantage, clipped * row.advantage) for row in rows]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-3, abs=1e-5)
    flows = [ratio * row.advantage <= clipped * row.advantage for row in rows]
    assert all(flows) == (abs(gap) < 0.1)
    assert gradients["model.norm.weight"].abs().max() > 1e-4


def plain_loss(model: Any, rows: list[Row], started: list[list[float]], config: TrainConfig) -> torch.Tensor:
    """Loss of the documented settings with plain autograd, row by row."""
    losses, lengths = [], []
    for row, start_T in zip(rows, map(torch.tensor, started), strict=True):
        ids = torch.tensor([[*row.prompt_ids_P, *row.completion_ids_T]])
        table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        logprobs_T = table[torch.arange(len(table)), ids[0, 1:]][len(row.prompt_ids_P) - 1 :]
        old_T, weight_T = torch.tensor(row.logprobs_T or start_T.tolist()), torch.tensor(1.0)
        if config.importance_cap != "none":
            level, limit = config.importance_mode.split("_")
            gap_T, old_T = start_T - old_T, start_T
            weight_T = (gap_T if level == "token" else gap_T.sum()).exp()
            kept = weight_T <= config.importance_cap
            weight_T = torch.where(kept, weight_T, config.importance_cap if limit == "truncate" else 0.0)
        if row.label == "distill":
            old_T = logprobs_T.detach()
        log_ratio_T = logprobs_T - old_T
        if config.importance_sampling_level == "sequence":
            log_ratio_T = log_ratio_T.mean()
        ratio_T, advantage_T = log_ratio_T.exp(), weight_T * row.advantage
        if config.loss_type == "cispo":
            loss_T = -ratio_T.detach().clamp(max=1 + config.epsilon_high) * advantage_T * logprobs_T
        else:
            clipped_T = ratio_T.clamp(1 - config.epsilon_low, 1 + config.epsilon_high)
            loss_T = -torch.min(ratio_T * advantage_T, clipped_T * advantage_T) * torch.ones_like(logprobs_T)
        if row.label != "distill":
            gap_T = start_T - logprobs_T
            loss_T = loss_T + config.beta * (gap_T.exp() - gap_T - 1)
        losses.append(loss_T.sum())
        lengths.append(len(loss_T))
    if config.loss_type == "grpo":
        return sum(loss / n for loss, n in zip(losses, lengths, strict=True)) / len(rows)
    return sum(losses) / (len(rows) * config.max_row_tokens if config.loss_type == "dr_grpo" else sum(lengths))


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize(
    "values",
    [
        {"importance_cap": "none"},
        {"importance_cap": "none", "epsilon_high": 0.4},
        *({"importance_cap": 1.5, "importance_mode": mode} for mode in MODES),
        {"importance_cap": "none", "beta": 0.05},
        {"importance_cap": "none", "beta": 0.05, "distill": 0.7},
        {"importance_cap": 3.0, "beta": 0.05, "distill": 0.7, "loss_type": "dapo"},
        {"importance_cap": "none", "importance_sampling_level": "sequence", "distill": 0.7},
        {"importance_cap": 1.5, "importance_sampling_level": "sequence"},
        {"importance_cap": "none", "loss_type": "cispo", "beta": 0.05, "distill": 0.7},
        {"importance_cap": 1.5, "loss_type": "cispo"},
        {"importance_cap": "none", "loss_type": "dr_grpo", "max_row_tokens": 300, "beta": 0.05},
    ],
    ids=str,
)
def test_gradients_are_those_of_plain_autograd_in_later_epochs(
    record: Callable[..., list[Trajectory]],
    trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer],
    start: PolicyStart,
    values: dict[str, Any],
) -> None:
    far = {"learning_rate": 1e-2, "warmup_ratio": 0.0}
    config = settings(**{"method": "full", "beta": 0.0, "epochs": 2, "batch_size": 32, **far, **values})
    older = [
        row._replace(logprobs_T=row.logprobs_T and [x - 0.3 * (i % 3) for x in row.logprobs_T])
        for i, row in enumerate(rows_of(record(OUTCOMES), config))
    ]
    assert ("distill" in {row.label for row in older}) == bool(config.distill)
    ours = trainer(older, config)
    started = ours.score()
    seen = Steps()
    ours.add_callback(seen)
    ours.train()

    model = recorded.load(start.model)
    weights, gradients = seen.steps[1]
    model.load_state_dict(weights, strict=False)
    plain_loss(model, older, started, config).backward()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-3 * largest)
    assert largest > 1e-5


def test_every_setting_that_the_loss_reads_is_pinned(
    record: Callable[..., list[Trajectory]], trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer]
) -> None:
    config = settings(epsilon_low=0.1, epsilon_high=0.3)
    arguments = trainer(rows_of(record(OUTCOMES), config), config).args
    source = inspect.getsource(GRPOTrainer._compute_loss).replace("self.epsilon_low", "self.epsilon")
    read = {name for name in GRPOConfig.__dataclass_fields__ if re.search(rf"self\.(args\.)?{name}\b", source)}
    others = {name for name in read if re.match("sapo_|vespo_|entropy_(coef_|target)|vllm_", name)}  # of what is off
    assert {name: getattr(arguments, name) for name in sorted(read - others)} == {
        "beta": 0.0,
        "delta": None,
        "entropy_coef": 0.0,
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "importance_sampling_level": "token",
        "loss_type": "grpo",
        "max_completion_length": config.max_row_tokens,
        "off_policy_mask_threshold": None,
        "router_aux_loss_coef": None,
        "steps_per_generation": 2,
        "top_entropy_quantile": 1.0,
        "use_adaptive_entropy": False,
        "use_bias_correction_kl": False,
        "use_vllm": False,
    }


def test_clipped_rows_have_no_gradient(
    record: Callable[..., list[Trajectory]], trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer]
) -> None:
    config = settings(method="full", beta=0.0, importance_cap="none")
    rows = [
        row._replace(logprobs_T=[x - math.copysign(1.0, row.advantage) for x in row.logprobs_T or ()])
        for row in rows_of(record(OUTCOMES), config)
    ]
    ours = trainer(rows, config)
    ours.score()
    _, gradients = first_step(ours)
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_logprobs_are_those_of_unpadded_rows(
    base: Path,
    record: Callable[..., list[Trajectory]],
    trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer],
) -> None:
    config = settings()
    rows = rows_of(record(OUTCOMES), config)
    for row, score in zip(rows, trainer(rows, config).score(), strict=True):
        assert score == pytest.approx(row.logprobs_T, abs=1e-4)


# ---- distilled rows ----


def plain_gradients(
    start: PolicyStart, weights: dict[str, torch.Tensor], rows: list[Row], loss_type: str
) -> dict[str, torch.Tensor]:
    """Gradients of -w · log π with plain autograd, row by row, averaged over tokens and rows as the loss type says."""
    model = recorded.load(start.model)
    model.load_state_dict(weights, strict=False)
    tokens = sum(len(row.completion_ids_T) for row in rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids_P, *row.completion_ids_T]])
        table_TV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        n = len(row.completion_ids_T)
        logprobs_T = table_TV[torch.arange(len(table_TV)), ids[0, 1:]][-n:]
        scale = 1 / tokens if loss_type == "dapo" else 1 / (n * len(rows))
        (-row.advantage * logprobs_T.sum() * scale).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("label", ["distill", "imitate"])
@pytest.mark.parametrize(("loss_type", "share_prompt"), [("grpo", True), ("grpo", False), ("dapo", True)])
def test_distilling_is_the_gradient_of_weighted_log_likelihood(
    start: PolicyStart,
    record: Callable[..., list[Trajectory]],
    trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer],
    loss_type: str,
    share_prompt: bool,
    label: str,
) -> None:
    # steps so large that ratios to anything fixed would be clipped
    far = {"learning_rate": 0.05, "lr_scheduler": "constant", "warmup_ratio": 0.0, "epochs": 3}
    config = settings(
        method="full", beta=0.0, credit={}, loss_type=loss_type, share_prompt=share_prompt, **{label: 0.7}, **far
    )
    rows = rows_of(record([[1, 0, 1], [], [0, 1]], first=[0, 1, 0], one_task=True), config)
    assert {row.label for row in rows} == {label}
    ours, seen = trainer(rows, config), Steps()
    ours.score()
    ours.add_callback(seen)
    ours.train()
    assert len(seen.steps) == 3
    for weights, gradients in seen.steps:
        for name, expected in plain_gradients(start, weights, rows, loss_type).items():
            torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-5)
        assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    logged = [entry["clip_ratio/region_mean"] for entry in ours.state.log_history if "loss" in entry]
    assert logged == [0.0] * 3


def test_rows_beside_distilled_ones_keep_recorded_logprobs(
    record: Callable[..., list[Trajectory]], trainer: Callable[[list[Row], TrainConfig], OfflineGRPOTrainer]
) -> None:
    config = settings(method="full", beta=0.0, importance_cap="none", distill=0.7, batch_size=32)
    gap, rows = 0.05, []
    for row in rows_of(record(OUTCOMES), config):
        shifted = None if row.logprobs_T is None else [logprob - gap for logprob in row.logprobs_T]
        rows.append(row._replace(logprobs_T=shifted))
    ours = trainer(rows, config)
    ours.score()
    loss, _ = first_step(ours)
    losses = [-row.advantage * (1 if row.label == "distill" else math.exp(gap)) for row in rows]
    assert {row.label for row in rows} == {"reflect", "distill"}
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-3, abs=1e-5)
