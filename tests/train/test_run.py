"""Training from trajectories to a policy version."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from r3agent.records.trajectory import Trajectory
from r3agent.store.registry import PolicyCard
from r3agent.train import PolicyStart, TrainConfig, build_rows, train
from tests.train import recorded
from tests.train.versions import OUTCOMES, run, settings, trained

Record = Callable[..., list[Trajectory]]


# ---- what training does ----


@pytest.mark.parametrize("method", ["lora", "full"])
def test_rewarded_siblings_become_likelier_than_the_others(
    record: Record, start: PolicyStart, tmp_path: Path, method: str
) -> None:
    trajectories = record([[1, 0], [0, 1]])
    run(trajectories, start, tmp_path / "v0001", method=method, batch_size=4)
    model = trained(start, tmp_path / "v0001")
    rows, _ = build_rows(trajectories, config=TrainConfig(recipe="paper"), version="v0000")
    for row in rows:
        change = sum(recorded.logprobs(model, row.prompt_ids_P, row.completion_ids_T)) - sum(row.logprobs_T or ())
        assert change * row.advantage > 0


def test_an_adapter_goes_on_from_itself(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = run(record(OUTCOMES), start, tmp_path / "v0001")
    then = PolicyStart.of(first, tmp_path / "v0001")
    sampled = recorded.record(trained(start, tmp_path / "v0001"), tokenizer, OUTCOMES, policy_version="v0001")
    second = run(sampled, then, tmp_path / "v0002", version="v0002")
    assert (second.parent, second.base_model, second.kind) == ("v0001", start.model, "lora")
    assert second.metrics["mismatch"]["gap"]["max"] < 1e-4
    assert second.metrics["mismatch"]["ess"] == pytest.approx(1.0, abs=1e-4)


def test_full_weights_go_on_from_adapters_and_full_weights(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001")
    for version in ("v0002", "v0003"):
        parent = PolicyStart.of(card, tmp_path / card.version)
        model = trained(start, tmp_path / card.version)
        sampled = recorded.record(model, tokenizer, OUTCOMES, policy_version=card.version)
        card = run(sampled, parent, tmp_path / version, version=version, method="full")
        assert card.metrics["mismatch"]["gap"]["max"] < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "v0003" / "model").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_accumulating_single_rows_equals_one_batch(
    record: Record, start: PolicyStart, tmp_path: Path, loss_type: str
) -> None:
    weights = []
    for micro_batch_tokens in (1, 100, 4096):
        out_dir = tmp_path / str(micro_batch_tokens)
        values = {"method": "full", "loss_type": loss_type, "batch_size": 8, "learning_rate": 1e-3, "epochs": 1}
        values["max_row_tokens"] = 256  # the divisor of dr_grpo
        run(record(OUTCOMES), start, out_dir, micro_batch_tokens=micro_batch_tokens, **values)
        weights.append(load_file(out_dir / "model" / "model.safetensors"))
    before = load_file(Path(start.model) / "model.safetensors")
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-4)
    assert max((weights[0][name] - tensor).abs().max() for name, tensor in before.items()) > 1e-3


@pytest.fixture(scope="module")
def default(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PolicyCard:
    """The training that other settings are compared with."""
    start = PolicyStart(version="v0000", name="tiny", model=str(base))
    trajectories = recorded.record(recorded.load(base), tokenizer, OUTCOMES)
    return run(trajectories, start, tmp_path_factory.mktemp("run") / "v0001", batch_size=4)


def test_the_same_seed_learns_the_same(record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path) -> None:
    again = run(record(OUTCOMES), start, tmp_path / "v0001", batch_size=4)
    assert again.fingerprint == default.fingerprint


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "linear"},
        {"warmup_ratio": 0.9},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-9},
        {"beta": 1.0},
        {"epochs": 2},
        {"batch_size": 8},
        {"epsilon_low": 0.01},
        {"epsilon_high": 0.01},
        {"scale_rewards": "none"},
        {"loss_type": "dapo"},
        {"lora_r": 2},
        {"lora_alpha": 4},
        {"lora_dropout": 0.5},
        {"lora_target_modules": ("q_proj",)},
    ],
    ids=str,
)
def test_every_setting_changes_what_is_learnt(
    record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path, values: dict[str, Any]
) -> None:
    other = run(record(OUTCOMES), start, tmp_path / "v0001", **{"batch_size": 4, **values})
    assert other.fingerprint != default.fingerprint


@pytest.mark.parametrize(
    "values",
    [{"gradient_checkpointing": True}, {"share_prompt": False}, {"dtype": "bfloat16"}],
    ids=lambda values: next(iter(values)),
)
def test_ways_to_compute_do_not_change_what_is_learnt(
    record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path, values: dict[str, Any]
) -> None:
    other = run(record(OUTCOMES), start, tmp_path / "v0001", batch_size=4, **values)
    tolerance = 0.5 if "dtype" in values else 1e-2
    for ours, theirs in zip(default.fingerprint, other.fingerprint, strict=True):
        assert theirs.logprobs_T == pytest.approx(ours.logprobs_T, abs=tolerance)


# ---- what it writes ----


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_card_tells_how_to_recognise_the_weights(
    record: Record, start: PolicyStart, tmp_path: Path, method: str
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001", method=method)
    assert PolicyCard.model_validate_json((tmp_path / "v0001" / "card.json").read_text()) == card
    assert (card.version, card.name, card.kind, card.parent) == ("v0001", "tiny", method, "v0000")
    assert card.settings["learning_rate"] == 1e-2
    assert card.metrics["rows"]["rows"] == 8
    assert card.metrics["steps"] == 4
    assert {"loss", "grad_norm", "kl", "entropy"} <= card.metrics["train"].keys()
    assert len(card.fingerprint) == 3  # one of each group
    old, new = recorded.load(start.model), trained(start, tmp_path / "v0001")
    for sequence in card.fingerprint:
        ids = sequence.token_ids_T
        assert sequence.logprobs_T == pytest.approx([0.0, *recorded.logprobs(new, ids[:1], ids[1:])], abs=1e-4)
        assert sequence.parent_logprobs_T == pytest.approx([0.0, *recorded.logprobs(old, ids[:1], ids[1:])], abs=1e-4)
        assert sequence.logprobs_T != pytest.approx(sequence.parent_logprobs_T, abs=1e-2)


def test_the_fingerprint_measures_trained_tokens_however_long_the_prompt_is(
    record: Record, start: PolicyStart, tmp_path: Path
) -> None:
    trajectories = record([[1, 0]] * 6, prefix=[9, 14] * 160)
    card = run(trajectories, start, tmp_path / "v0001", epochs=1)
    rows, _ = build_rows(trajectories, config=TrainConfig(recipe="paper"), version="v0000")
    whole = {(*row.prompt_ids_P[-256:], *row.completion_ids_T): len(row.completion_ids_T) for row in rows}
    assert len(card.fingerprint) == 4
    for sequence in card.fingerprint:
        assert sequence.parent_logprobs_T is not None
        trained_K = range(len(sequence.token_ids_T) - whole[sequence.token_ids_T], len(sequence.token_ids_T))
        assert sequence.positions_K == tuple(trained_K)


def test_progress_is_reported_in_order_and_nothing_is_printed(
    record: Record, start: PolicyStart, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages: list[tuple[str, Mapping[str, Any]]] = []
    train(
        record(OUTCOMES),
        start=start,
        version="v0001",
        out_dir=tmp_path / "v0001",
        config=settings(),
        progress=lambda stage, values: stages.append((stage, values)),
    )
    assert [stage for stage, _ in stages] == ["rows", "mismatch", "step", "step", "step", "step", "saved"]
    assert (stages[2][1]["step"], stages[2][1]["steps"]) == (1, 4)
    json.dumps(stages)
    assert capfd.readouterr().out == ""


def test_a_failure_half_way_leaves_no_version(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    def interrupt(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "step":
            raise KeyboardInterrupt

    def attempt() -> None:
        train(record(OUTCOMES), start=start, version="v0001", out_dir=tmp_path / "v0001", progress=interrupt)

    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert list(tmp_path.glob("v*")) == []


def test_a_killed_trainings_remains_are_cleared(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    remains = tmp_path / "v0001.partial"
    remains.mkdir()
    (remains / "half").touch()
    run(record(OUTCOMES), start, tmp_path / "v0001")
    assert [path.name for path in tmp_path.glob("v*")] == ["v0001"]
    assert not (tmp_path / "v0001" / "half").exists()


def test_a_tokenizer_without_padding_will_do(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    directory = recorded.save(recorded.load(start.model), bare, tmp_path / "tiny")
    card = run(record(OUTCOMES), start.model_copy(update={"model": str(directory)}), tmp_path / "v0001")
    assert card.metrics["mismatch"]["gap"]["max"] < 1e-4


# ---- credit by label ----


def test_train_makes_credited_and_distilled_rows_likelier(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    trajectories = record([[(1, 0), (0, 0)], [], [(0, 1)]], first=[0, 1, 0], blind=[1, 0], one_task=True)
    every = {"attempt": "success", "reflect": "retry_success", "retry": "success", "blind_retry": "success"}
    values: dict[str, Any] = {"credit": every, "distill": 1.0}
    card = run(trajectories, start, tmp_path / "v0001", epochs=8, **values)
    assert card.metrics["rows"]["labels"] == {"attempt": 3, "reflect": 2, "retry": 4, "blind_retry": 4, "distill": 2}
    assert card.settings["credit"] == every
    # distilled rows have nothing recorded behind their prompt, so mismatch and ESS leave them out
    rows, _ = build_rows(trajectories, config=settings(**values), version="v0000")
    own = [row for row in rows if row.label != "distill"]
    assert card.metrics["mismatch"]["gap"]["tokens"] == sum(len(row.completion_ids_T) for row in own)
    assert card.metrics["mismatch"]["gap"]["max"] < 1e-4
    assert card.metrics["mismatch"]["ess"] == pytest.approx(1.0, abs=1e-4)

    old, new = recorded.load(start.model), trained(start, tmp_path / "v0001")
    gained: dict[str, float] = {}
    for row in rows:
        pair = (row.prompt_ids_P, row.completion_ids_T)
        change = sum(recorded.logprobs(new, *pair)) - sum(recorded.logprobs(old, *pair))
        gained[row.label] = gained.get(row.label, 0.0) + change * row.advantage
    assert gained.keys() == {*every, "distill"}
    assert min(gained.values()) > 0
