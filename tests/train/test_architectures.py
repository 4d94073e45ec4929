"""Logprobs of rows that are computed together, in a broad list of architectures: they are those of each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from r3agent.errors import ConfigError
from r3agent.train import to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.shared_prefix import pack, share
from r3agent.train.trial import padding_obstacle
from tests.train.test_shared_prefix import LONGEST, rows, tiny
from tests.train.versions import settings

EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "num_experts_per_tok": 2,
}
LATENT = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    "num_key_value_heads": 4,
}
WINDOW = {"sliding_window": 64}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}

PLAIN = (
    *("llama", "arcee", "bitnet", "cohere", "diffllama", "ernie4_5", "gemma", "glm", "glm4", "gpt2"),
    *("gpt_neox", "granite", "helium", "hunyuan_v1_dense", "lfm2", "nanochat", "olmo", "olmo2"),
    *("persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2", "biogpt", "jais2"),
)

SHARED: dict[str, dict[str, Any]] = {
    **{family: {} for family in PLAIN},
    **dict.fromkeys(
        ("cohere2", "exaone4", "gemma2", "gemma3_text", "ministral", "mistral", "olmo3", "vaultgemma"), WINDOW
    ),
    **dict.fromkeys(
        (
            *("afmoe", "dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "granitemoe", "granitemoeshared"),
            *("hunyuan_v1_moe", "jetmoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
        ),
        EXPERTS,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash"), EXPERTS | LATENT),
    **dict.fromkeys(("minicpm3", "youtu"), LATENT),
    "gemma4_text": {**WINDOW, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
}
"""Architectures whose siblings can share a prompt, with what their tiny models need."""

PADDED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({}, "attention implementation is 'eager'"),
    "gpt_oss": (EXPERTS, "attention implementation is 'eager'"),
    "minimax": (EXPERTS, "layers of linear_attention"),
    "llama4_text": (EXPERTS, "layers of chunked_attention"),
    "nemotron": ({}, "packed rows fail"),
    "stablelm": ({}, "packed rows fail"),
    "opt": ({}, "packed rows get other logprobs"),
    "bamba": (MAMBA, "layers of "),
    "granitemoehybrid": (EXPERTS | MAMBA, "layers of "),
}
"""Architectures that share no prompt, for this reason, and whose rows are padded."""

ALONE: dict[str, str] = {
    "rwkv": "attention implementation is 'eager'",
    "xglm": "attention implementation is 'eager'",
    "xlstm": "attention implementation is 'eager'",
}
"""Architectures whose rows are computed one at a time, because padding changes them, too."""


def alone(model: Any) -> torch.Tensor:
    """Logprobs of the completions, each row computed by itself."""
    found: list[torch.Tensor] = []
    for row in rows():
        ids = torch.tensor([[*row.prompt_ids_P, *row.completion_ids_T]])
        logits_TV = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids_P) - 1 : -1]
        found.append(chosen(logits_TV, ids[0, len(row.prompt_ids_P) :]))
    return torch.cat(found)


def chosen(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    return logits_TV.float().log_softmax(-1).gather(-1, ids_T[:, None])[:, 0]


def batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """All rows in one batch, as TRL pads them: ids, mask and the width of the completions."""
    wide, width = (max(len(ids) for ids in column) for column in zip(*((r[5], r[6]) for r in rows()), strict=True))
    ids, mask = (torch.zeros(len(rows()), wide + width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows()):
        first, end = wide - len(row.prompt_ids_P), wide + len(row.completion_ids_T)
        ids[i, first:end] = torch.tensor([*row.prompt_ids_P, *row.completion_ids_T])
        mask[i, first:end] = 1
    return ids, mask, width


@pytest.mark.parametrize("family", SHARED)
@torch.no_grad()
def test_packed_logprobs_are_those_of_each_row_alone(family: str) -> None:
    model = tiny(family, **SHARED[family])
    expected = alone(model)
    assert share(model, LONGEST) is None
    packed = pack(*batch())
    logits_KV = model(**packed._asdict(), use_cache=False).logits[0]
    torch.testing.assert_close(chosen(logits_KV, packed.shift_labels[0]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", PADDED)
@torch.no_grad()
def test_padded_logprobs_are_those_of_each_row_alone(family: str) -> None:
    values, reason = PADDED[family]
    model = tiny(family, **values)
    expected = alone(model)
    assert reason in (share(model, LONGEST) or "")
    assert padding_obstacle(model, LONGEST) is None
    ids, mask, width = batch()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width - 1 : -1]
    found = [chosen(logits[i], ids[i, -width:])[: len(row.completion_ids_T)] for i, row in enumerate(rows())]
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", *ALONE])
def test_rows_that_padding_changes_are_computed_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    model = tiny(family)
    with torch.no_grad():
        expected = alone(model)
    config = settings(method="full", epochs=1, share_prompt=family != "gpt2")
    trainer = OfflineGRPOTrainer(model, to_dataset(rows()), tokenizer, config, tmp_path)
    assert ALONE.get(family, "") in caplog.text
    assert "rows are computed one at a time: padded rows get other logprobs" in caplog.text
    scores = torch.tensor([score for score_T in trainer.score() for score in score_T])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)  # a recurrent layer rounds more


def test_a_model_whose_head_trl_computes_otherwise_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny(
        "recurrent_gemma", initializer_range=1.0, logits_soft_cap=1.0
    )  # it caps its logits, and its config has another name for that than Gemma's
    with pytest.raises(ConfigError, match=r"RecurrentGemmaForCausalLM: TRL computes other logprobs .*, by "):
        OfflineGRPOTrainer(model, to_dataset(rows()), tokenizer, settings(method="full"), tmp_path)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_share_refuses_positions_that_depend_on_the_longest_row(kind: str) -> None:
    limit = {"original_max_position_embeddings": 16} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    family = "phi3" if kind == "longrope" else "llama"
    assert f"{kind} position embeddings" in (share(tiny(family, rope_parameters=rope, **limit), LONGEST) or "")
    assert share(tiny(family, rope_parameters=rope, **limit), 16) is None
