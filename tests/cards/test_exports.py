"""Exports of versions, as plain transformers and PEFT load them, and their model cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from r3agent import ConfigError, DeployError, RecordError
from r3agent.cards import describe, export_version, model_card
from r3agent.cards.readme import hub_id, public
from r3agent.cli.main import main
from r3agent.store.history import Event
from r3agent.store.registry import Registry, write_card
from tests.train import recorded

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapted(run: Path, adapter: Path) -> torch.nn.Module:
    return peft.PeftModel.from_pretrained(recorded.load(run.parent / "tiny"), adapter).eval()


def test_merged_weights_equal_the_adapter_on_its_base(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["export", "v0001", "--merged", str(out), "--run", str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["merged"]
    assert found["fingerprint"]["verdict"] == "arrived"
    assert found["fingerprint"]["gap"] < 1e-4
    merged, base = recorded.load(out), recorded.load(made.parent / "tiny")
    expected = logits(adapted(made, made / "policies/v0001/adapter"))
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, "lora" in (card.data.tags or [])) == ("transformers", True)
    assert json.loads((out / "policy_card.json").read_text())["version"] == "v0001"


def test_merged_weights_keep_the_precision_of_the_base(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made.parent, tmp_path / "copy") / "run"
    model = AutoModelForCausalLM.from_pretrained(run.parent / "tiny", dtype=torch.bfloat16)
    model.save_pretrained(run.parent / "tiny")
    registry = Registry(run)
    card = registry.card("v0001").model_copy(update={"base_model": str(run.parent / "tiny")})
    write_card(registry.version_dir("v0001"), card)
    found = export_version(run, "v0001", tmp_path / "merged", merged=True).fingerprint
    assert found is not None
    assert 0 < found.gap < 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16


def test_export_of_an_adapter_and_of_full_weights(made: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()  # an empty directory is as good as a new one
    report = export_version(made, "v0001", tmp_path / "adapter")
    assert set(report.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "policy_card.json"}
    exported, own = adapted(made, tmp_path / "adapter"), adapted(made, made / "policies/v0001/adapter")
    assert torch.equal(logits(exported), logits(own))
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert ModelCard.load(tmp_path / "adapter/README.md").data.library_name == "peft"
    report = export_version(made, "v0002", tmp_path / "full", merged=True)
    assert not report.merged
    assert torch.equal(logits(recorded.load(tmp_path / "full")), logits(recorded.load(made / "policies/v0002/model")))


def test_export_refuses_what_it_cannot_write(made: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").touch()
    with pytest.raises(ConfigError, match="full is not empty, it has kept; name a new or empty directory"):
        export_version(made, "v0001", tmp_path / "full", merged=True)
    with pytest.raises(ConfigError, match="kept is a file"):
        export_version(made, "v0001", tmp_path / "full/kept")
    with pytest.raises(ConfigError, match="v0000 is the base model"):
        export_version(made, "v0000", tmp_path / "base")
    run = shutil.copytree(made, tmp_path / "run")
    registry = Registry(run)
    card = registry.card("v0001")
    swapped = [s.model_copy(update={"logprobs_T": s.parent_logprobs_T}) for s in card.fingerprint]
    write_card(registry.version_dir("v0001"), card.model_copy(update={"fingerprint": tuple(swapped)}))
    with pytest.raises(DeployError, match=r"v0001: the logprobs of the merged weights are .* nats per token"):
        export_version(run, "v0001", tmp_path / "other", merged=True, tolerance=1e-3)
    weights = run / "policies/v0001/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"none")
    with pytest.raises(RecordError, match=r"adapter_model\.safetensors is not the file that was trained"):
        export_version(run, "v0001", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_model_card_names_facts_and_no_person_or_path(made: Path) -> None:
    event = Event(event="deployed", version="v0001", by="anna", reasons=("secret | reason",))
    gate = Event(event="passed", version="v0001", other="v0000", reasons=("met: after reflection +5.0 points",))
    rows = {"rows": 3, "last_error": "secret", "remedies": {"reflect": "secret"}}
    changes = {"base_model": "Org/Some-Model", "name": "/home/secret/tiny", "metrics": {"rows": rows}}
    report = describe(made, "v0001").model_copy(update={"history": (gate, event), **changes})
    text = model_card(report)
    assert "secret" not in public(report).model_dump_json()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": "Org/Some-Model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["r3agent", "grpo", "reinforcement-learning", "lora"],
    }
    for fact in ("+50.0 points", "met: after reflection", "torch", "lora_r", "3, SHA-256", "| deployed | person |"):
        assert fact in text
    assert "anna" not in text
    assert "secret" not in text
    base = describe(made, "v0001").base_model
    assert base not in model_card(describe(made, "v0001"))
    Path(base, "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Base\n")
    assert ModelCard(model_card(describe(made, "v0001"))).data.license == "mit"
    Path(base, "README.md").unlink()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Org/Some-Model", "Org/Some-Model"),
        ("/cache/hub/models--Org--Some-Model/snapshots/0a1b", "Org/Some-Model"),
        ("/home/anna/models/tiny", None),
        ("bundled", None),
    ],
)
def test_hub_id_of_a_base_model(model: str, expected: str | None) -> None:
    assert hub_id(model) == expected
