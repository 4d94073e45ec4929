"""Drift from the base policy over rounds, and rows that an ancestor was trained on already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Categorical, kl_divergence
from transformers import PreTrainedTokenizerFast

from r3agent.errors import ConfigError, TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.store.registry import PolicyCard, Registry
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, to_dataset
from r3agent.train.drift import DriftMeter, pieces
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.report import rows_line
from r3agent.train.weights import load_model
from tests.train import recorded
from tests.train.tries import first_tries
from tests.train.versions import OUTCOMES, run, settings, trained

Record = Callable[..., list[Trajectory]]


@pytest.fixture
def policies(base: Path, tmp_path: Path) -> Path:
    """Directory of versions with the base's card."""
    Registry(tmp_path).add_base("tiny", str(base))
    return tmp_path / "policies"


@torch.no_grad()
def kl_to_base(model: Any, base: Any, rows: Iterable[Row]) -> float:
    """The mean over sampled tokens of KL(model || base), each row and position computed by itself."""
    found: list[float] = []
    for row in rows:
        ids = [*row.prompt_ids_P, *row.completion_ids_T]
        for t in range(len(row.prompt_ids_P), len(ids)):
            if row.sampled_T is None or row.sampled_T[t - len(row.prompt_ids_P)]:
                of_model, of_base = (
                    Categorical(logits=m(input_ids=torch.tensor([ids[:t]])).logits[0, -1]) for m in (model, base)
                )
                found.append(kl_divergence(of_model, of_base).item())
    return sum(found) / len(found)


def rows_of(trajectories: list[Trajectory], version: str = "v0000", **values: Any) -> list[Row]:
    config = TrainConfig.model_validate({"recipe": "paper", **values})
    return build_rows(trajectories, config=config, version=version)[0]


@pytest.mark.parametrize(("first", "second"), [("lora", "lora"), ("lora", "full"), ("full", "full"), ("full", "lora")])
def test_drift_is_the_kl_to_the_base_and_not_to_the_start(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, policies: Path, first: str, second: str
) -> None:
    base, trajectories = recorded.load(start.model), record(OUTCOMES)
    card = run(trajectories, start, policies / "v0001", method=first)
    model = trained(start, policies / "v0001")
    assert card.metrics["drift"]["kl"] == pytest.approx(kl_to_base(model, base, rows_of(trajectories)), rel=1e-3)
    assert card.metrics["drift"]["rows"] == 8

    then = PolicyStart.of(card, policies / "v0001")
    sampled = recorded.record(model, tokenizer, OUTCOMES, policy_version="v0001", seed=1)
    card = run(sampled, then, policies / "v0002", version="v0002", method=second)
    model = trained(then if second == "lora" else start, policies / "v0002")
    assert card.metrics["drift"]["kl"] == pytest.approx(kl_to_base(model, base, rows_of(sampled, "v0001")), rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("share_prompt", [True, False])
def test_drift_counts_sampled_tokens_in_any_batches(
    start: PolicyStart, policies: Path, method: str, share_prompt: bool
) -> None:
    trajectories = first_tries(recorded.load(start.model), (1, 3, 2, 4))
    values: dict[str, Any] = {"credit": {"attempt": "success"}, "micro_batch_tokens": 40}
    card = run(trajectories, start, policies / "v0001", method=method, share_prompt=share_prompt, **values)
    models = trained(start, policies / "v0001"), recorded.load(start.model)
    rows = rows_of(trajectories, **values)
    assert any(row.sampled_T for row in rows)
    assert card.metrics["drift"]["kl"] == pytest.approx(kl_to_base(*models, rows), rel=1e-3)
    assert card.metrics["drift"]["tokens"] == card.metrics["rows"]["completion_tokens"]


def test_drift_of_long_rows_is_measured_in_pieces(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config, rows = settings(method="full"), rows_of(record(OUTCOMES))
    model: Any = load_model(start, config)
    trainer = OfflineGRPOTrainer(model, to_dataset(rows), tokenizer, config, tmp_path)
    meter = DriftMeter(trainer, rows, start=start, base=start.model, limit=None, logits=3 * len(tokenizer))
    assert max(len(piece.completion_ids_T) for piece in meter.pieces) == 3
    same = meter.measure()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    drift = meter.measure()
    assert same
    assert drift
    assert same.kl == pytest.approx(0, abs=1e-6)
    other = recorded.load(start.model)
    other.load_state_dict(model.state_dict())
    assert drift.kl == pytest.approx(kl_to_base(other, recorded.load(start.model), rows), rel=1e-3)


def test_pieces_have_every_sampled_token_once(start: PolicyStart) -> None:
    rows = rows_of(first_tries(recorded.load(start.model), (4, 3)), credit={"attempt": "success"})
    for row in rows:
        cut = [*pieces(row, 2)]
        assert all(len(piece.completion_ids_T) <= 2 for piece in cut)
        ids = [*row.prompt_ids_P, *row.completion_ids_T]
        assert all(ids[: len(piece[0]) + len(piece[1])] == [*piece[0], *piece[1]] for piece in cut)
        sampled = [i for piece in cut for i in compress(piece.completion_ids_T, piece.sampled_T)]
        assert sampled == [*row.sampled(row.completion_ids_T)]


def test_a_drift_above_the_limit_makes_no_version(record: Record, start: PolicyStart, policies: Path) -> None:
    trajectories = record(OUTCOMES)
    message = r"KL to v0000 = \d\S+ nats per token over 8 rows, max_drift = 1e-06: v0001 is not written; lower learning"
    with pytest.raises(TrainingError, match=message):
        run(trajectories, start, policies / "v0001", max_drift=1e-6)
    assert Registry(policies.parent).versions() == ["v0000"]
    assert run(trajectories, start, policies / "v0001", max_drift=100.0).metrics["drift"]["kl"] < 100


def test_a_refused_drift_leaves_nothing_to_resume(record: Record, start: PolicyStart, policies: Path) -> None:
    """A loop resumes whatever checkpoint there is, and must be able to train with the settings of the remedy."""
    registry = Registry(policies.parent)
    with pytest.raises(TrainingError, match="max_drift = 1e-06"):
        run(record(OUTCOMES), start, policies / "v0001", max_drift=1e-6, save_steps=1)
    assert not registry.has_checkpoint(registry.next_version())


def test_a_limit_may_change_when_a_training_resumes(record: Record, start: PolicyStart, policies: Path) -> None:
    def stop(stage: str, report: Mapping[str, Any]) -> None:
        if report.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(record(OUTCOMES), start, policies / "v0001", max_drift=1e-6, save_steps=1, progress=stop)
    limits = {"max_drift": 100.0, "max_mismatch": 0.2, "min_ess": 0.4}
    card = run(record(OUTCOMES), start, policies / "v0001", resume=True, **limits)
    assert card.settings["max_drift"] == 100.0


def test_a_limit_of_drift_needs_the_base(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    other, rows = start.model_copy(update={"version": "v0007"}), record(OUTCOMES, policy_version="v0007")
    card = run(rows, other, tmp_path / "v0008", version="v0008", method="full")
    assert card.metrics["drift"] is None
    with pytest.raises(
        ConfigError, match=r"max_drift = 1.0: KL to v0000, the base of v0007, cannot be measured: no .*remove max"
    ):
        run(rows, other, tmp_path / "v0009", version="v0009", method="full", max_drift=1.0)


def test_a_base_that_is_gone_is_named(record: Record, start: PolicyStart, base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "tiny")
    Registry(tmp_path).add_base("tiny", str(own))
    policies, rows = tmp_path / "policies", record(OUTCOMES)
    first = run(rows, start.model_copy(update={"model": str(own)}), policies / "v0001", method="full", epochs=1)
    shutil.rmtree(own)
    then, values = PolicyStart.of(first, policies / "v0001"), {"method": "full", "max_mismatch": 9, "min_ess": 0}
    with pytest.raises(ConfigError, match=r"max_drift = 1.0: KL to v0000.* model '\S+tiny' cannot be loaded: "):
        run(rows, then, policies / "v0002", version="v0002", max_drift=1.0, **values)
    assert run(rows, then, policies / "v0002", version="v0002", **values).metrics["drift"] is None


def test_rows_that_an_ancestor_was_trained_on_are_counted(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, policies: Path
) -> None:
    old = record(OUTCOMES)
    lines: list[str] = []

    def listen(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "rows":
            lines.append(rows_line(values))

    def after(card: PolicyCard) -> PolicyStart:
        return PolicyStart.of(card, policies / card.version)

    easy: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3, "progress": listen}
    first = run(old, start, policies / "v0001", **easy)
    new = [
        t.model_copy(update={"trajectory_id": f"new-{t.trajectory_id}"})
        for t in recorded.record(trained(start, policies / "v0001"), tokenizer, OUTCOMES, policy_version="v0001")
    ]
    second = run([*old, *new], after(first), policies / "v0002", version="v0002", **easy)
    sibling = run(old, start, policies / "v0003", version="v0003", **easy)  # v0002 is no ancestor of it
    third = run([*old, *new], after(second), policies / "v0004", version="v0004", max_staleness=9, **easy)
    assert [card.metrics["rows"]["repeated"] for card in (first, second, sibling, third)] == [0, 8, 0, 16]
    assert lines[1].endswith("; 8 rows trained on before")
    assert "before" not in lines[0]


def test_rows_of_ancestors_alone_are_trained_on(record: Record, start: PolicyStart, policies: Path) -> None:
    card = run(record(OUTCOMES), start, policies / "v0005", version="v0005", epochs=1)
    by_version = [
        t.model_copy(update={"trajectory_id": f"{version}-{t.trajectory_id}"})
        for version in ("v0000", "v0001", "v0004", "v0005")
        for t in record(OUTCOMES, policy_version=version)
    ]
    easy: dict[str, Any] = {"epochs": 1, "max_mismatch": 9, "min_ess": 0}
    after = run(by_version, PolicyStart.of(card, policies / "v0005"), policies / "v0006", version="v0006", **easy)
    assert after.metrics["rows"]["ages"] == {"1": 8, "0": 8}  # v0000 is the parent of v0005
    beside = run(by_version, start, policies / "v0007", version="v0007", max_staleness=9, **easy)
    assert beside.metrics["rows"]["ages"] == {"0": 8}
    assert beside.metrics["rows"]["dropped"]["stale"] == 24


# ---- resuming ----


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
def test_a_resumed_training_ends_with_the_very_same_weights(
    record: Record, start: PolicyStart, tmp_path: Path, loss_type: str
) -> None:
    values: dict[str, Any] = {"loss_type": loss_type, "batch_size": 4, "epochs": 3, "micro_batch_tokens": 100}
    values |= {"lora_dropout": 0.1, "beta": 0.1}
    run(record(OUTCOMES), start, tmp_path / "v0001", **values)

    def stop(stage: str, report: Mapping[str, Any]) -> None:
        if report.get("step") == 4:  # within the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(record(OUTCOMES), start, tmp_path / "v0002", version="v0002", save_steps=1, progress=stop, **values)
    if loss_type == "bnpo":
        changed = {**values, "micro_batch_tokens": 400}
        with pytest.raises(ConfigError, match="other rows or other settings"):
            run(record(OUTCOMES), start, tmp_path / "v0002", version="v0002", resume=True, **changed)
    run(record(OUTCOMES), start, tmp_path / "v0002", version="v0002", resume=True, **values)
    whole, resumed = (load_file(tmp_path / v / "adapter" / "adapter_model.safetensors") for v in ("v0001", "v0002"))
    assert all(whole[name].equal(resumed[name]) for name in whole)
