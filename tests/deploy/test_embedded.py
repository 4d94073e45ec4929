"""Deploying to the embedded server: a process of its own, real weights, canaries computed by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.errors import DeployError
from r3agent.registry import ADAPTER_DIR, MODEL_DIR, CanarySequence, Kind, PolicyCard, Registry, growing, write_card
from r3agent.serve import ServerProcess

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = (4, 16, 30, 41, 52, 7, 9, 11, 2, 5, 40, 33, 10, 2)


class Trained:
    """A registry with a tiny random Llama as its base, and versions that differ from it visibly."""

    def __init__(self, directory: Path) -> None:
        from r3agent.serve.bundled.tokenizer import build_tokenizer

        self.base = directory / "tiny"
        self.tokenizer = build_tokenizer()
        self.registry = Registry(directory / "run")
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
        self.save(transformers.LlamaForCausalLM(config), self.base)
        self.registry.add_base("tiny", str(self.base))

    def save(self, model: Any, directory: Path) -> None:
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def publish(self, kind: Kind, *, seed: int, card_seed: int | None = None) -> str:
        """A version from the base; with `card_seed`, its card describes other weights than it has."""
        version = self.registry.next_version()
        changed = self.changed(kind, seed)
        described = changed if card_seed is None else self.changed(kind, card_seed)
        canary = CanarySequence(
            token_ids_T=TOKENS, logprobs_T=logprobs_of(described), parent_logprobs_T=logprobs_of(self.load())
        )
        card = PolicyCard(
            version=version, name="tiny", kind=kind, base_model=str(self.base), parent="v0000", canary=(canary,)
        )
        with growing(self.registry.version_dir(version)) as directory:
            if kind == "lora":
                changed.save_pretrained(directory / ADAPTER_DIR)
            else:
                self.save(changed, directory / MODEL_DIR)
            write_card(directory, card)
        return version

    def load(self) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(self.base)

    def changed(self, kind: Kind, seed: int) -> Any:
        model = self.load()
        if kind == "lora":
            model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if kind == "full" or "lora_B" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model


def logprobs_of(model: Any) -> tuple[float, ...]:
    with torch.no_grad():
        logits_TV = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return (0.0, *(logits_TV[t - 1, TOKENS[t]].item() for t in range(1, len(TOKENS))))


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(tmp_path)


@pytest.fixture
def server(trained: Trained) -> Iterator[ServerProcess]:
    log = trained.base.with_name("server.log")
    with ServerProcess(trained.base, api_key="sk-test", log_path=log, options=["--threads", "1"]) as server:
        yield server


def served(server: ServerProcess) -> set[str]:
    answer = httpx.get(f"{server.base_url}/models", headers={"Authorization": "Bearer sk-test"})
    return {model["id"] for model in answer.json()["data"]}


def test_adapters_go_live_roll_back_and_are_told_from_wrong_ones(trained: Trained, server: ServerProcess):
    where = {"registry": trained.registry, "base_url": server.base_url, "api_key": "sk-test"}
    first, second = trained.publish("lora", seed=1), trained.publish("lora", seed=2)
    assert deploy("v0000", **where).strategy == "none"
    for version in (first, second):
        report = deploy(version, config=DeployConfig(keep=1), **where)
        assert report.canary is not None
        assert report.canary.verdict == "arrived"
        assert report.canary.gap < 1e-4
    assert served(server) == {"tiny", "tiny@v0002"}

    wrong = trained.publish("lora", seed=3, card_seed=4)
    with pytest.raises(DeployError, match=r"in part, or are others.*; the server is as it was; v0002 stays live"):
        deploy(wrong, **where)
    assert (trained.registry.live, served(server)) == ("v0002", {"tiny", "tiny@v0002"})

    assert load_version(first, **where).canary is not None
    assert (trained.registry.live, served(server)) == ("v0002", {"tiny", "tiny@v0001", "tiny@v0002"})
    assert rollback(**where).version == first
    assert rollback(**where).version == "v0000"


def test_full_weights_are_swapped_in_place_and_put_back(trained: Trained, server: ServerProcess):
    where = {"registry": trained.registry, "base_url": server.base_url, "api_key": "sk-test"}
    right, wrong = trained.publish("full", seed=1), trained.publish("full", seed=2, card_seed=3)
    report = deploy(right, **where)
    assert report.canary is not None
    assert report.canary.gap < 1e-4
    with pytest.raises(DeployError, match=rf"policies/{right}/model again; {right} stays live"):
        deploy(wrong, **where)
    again = deploy(right, **where)
    assert again.canary == report.canary
    assert rollback(**where).strategy == "reload"
