"""Shared prompts change what is computed, not what comes of it, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from r3agent.train import Row, to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.shared_prefix import share
from tests.train.versions import settings

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,  # logits far from uniform, so that wrong positions show
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LONGEST = 19


def tiny(family: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{"vocab_size": 128, **SIZE, **values})).eval()


def rows() -> list[Row]:
    """Groups of 3, 1 and 2 with prompts of 12, 5 and 1 tokens and ragged completions."""
    torch.manual_seed(1)
    groups = [(12, (7, 1, 4)), (5, (6,)), (1, (2, 5))]
    drawn: list[Row] = []
    for prompt_tokens, lengths in groups:
        prompt = torch.randint(8, 120, (prompt_tokens,)).tolist()
        for i, length in enumerate(lengths):
            completion = torch.randint(8, 120, (length,)).tolist()
            blank = dict.fromkeys(Row._fields)
            named = {"group_id": str(prompt), "span_id": str(len(drawn))}
            named |= {"prompt_ids_P": prompt, "completion_ids_T": completion}
            drawn.append(Row(**{**blank, **named, "logprobs_T": [-4.0] * length, "reward": 0.0, "advantage": 1.0 - i}))
    return drawn


class Gradients(TrainerCallback):
    """Gradients of a run's first optimizer step."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.seen = self.seen or {name: p.grad.clone() for name, p in named if p.grad is not None}


def logprobs_and_gradients(
    model: Any, tokenizer: PreTrainedTokenizerFast, directory: Path, **values: Any
) -> tuple[OfflineGRPOTrainer, list[list[float]], dict[str, torch.Tensor]]:
    config = settings(epochs=1, max_grad_norm=1e9, epsilon_low=0.9, epsilon_high=1e9, **values)
    if config.method == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    gradients = Gradients()
    trainer = OfflineGRPOTrainer(model, to_dataset(rows()), tokenizer, config, directory, callbacks=[gradients])
    scores = trainer.score()
    trainer.train()
    return trainer, scores, gradients.seen


Windowed = {"sliding_window": LONGEST}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("family", "values"),
    [("llama", {}), ("qwen2", {}), ("qwen3", {}), ("gemma", {}), ("gemma2", Windowed), ("gemma3_text", Windowed)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logprobs_and_gradients_are_those_of_single_rows(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    family: str,
    values: dict[str, Any],
    method: str,
    checkpointing: bool,
) -> None:
    compared = {"method": method, "gradient_checkpointing": checkpointing}
    stock, expected_scores, expected = logprobs_and_gradients(
        tiny(family, **values), tokenizer, tmp_path, share_prompt=False, **compared
    )
    ours, scores, gradients = logprobs_and_gradients(tiny(family, **values), tokenizer, tmp_path, **compared)
    assert (stock.packs, ours.packs) == (False, True)
    for score_T, expected_T in zip(scores, expected_scores, strict=True):
        assert score_T == pytest.approx(expected_T, abs=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-7, name
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


@pytest.mark.parametrize(
    ("family", "values", "reason"),
    [
        ("gemma2", {"sliding_window": 8}, "sliding window of 8 tokens is shorter than the longest row of 19"),
        ("gemma3_text", {"sliding_window": 8}, "sliding window of 8 tokens is shorter"),
        ("mistral", {"sliding_window": 8}, "sliding window of 8 tokens is shorter"),
        ("llama", {"attn_implementation": "eager"}, "attention implementation is 'eager'"),
    ],
)
def test_models_that_cannot_share_say_why_and_train_all_the_same(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    values: dict[str, Any],
    reason: str,
) -> None:
    model = tiny(family, **values)
    trainer, _, gradients = logprobs_and_gradients(model, tokenizer, tmp_path, method="full")
    assert not trainer.packs
    assert gradients
    assert reason in caplog.text


class Recent(torch.nn.Module):
    """A backbone that sees more than attention does: the token before, whichever branch it is of."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_NLH: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden_NLH + hidden_NLH.roll(1, dims=1))


def test_share_finds_out_a_model_that_cannot_and_leaves_it() -> None:
    model = tiny("llama")
    model.model.layers[0].mlp = Recent(model.model.layers[0].mlp)
    ids = torch.arange(1, 9)[None]
    before = model(ids).logits
    assert "packed rows get other logprobs" in (share(model, LONGEST) or "")
    assert torch.equal(model(ids).logits, before)
