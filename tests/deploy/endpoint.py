"""A run directory with real safetensors files, and an HTTP server with vLLM's routes and faults to switch on.

The server's "logprobs" are drawn from a hash of the weight files, so it answers right only with the right weights.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file

from r3agent.store.registry import FingerprintSequence, PolicyCard, Registry, create_version, write_card
from r3agent.testing import HANG, Fault
from r3agent.testing.http import JsonServer

TOKENS = ((3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9, 7))
SIZE, RANK = 16, 4
MODULE = "model.layers.0.self_attn.q_proj"


# ---- weights ----


def save_model(directory: Path, seed: int, size: int = SIZE) -> Path:
    directory.mkdir(parents=True)
    weight = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    save_file({f"{MODULE}.weight": weight, "model.embed_tokens.weight": weight}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": size}))
    return directory


def save_adapter(directory: Path, seed: int, *, rank: int = RANK, size: int = SIZE, **config: Any) -> Path:
    directory.mkdir(parents=True)
    draw = np.random.default_rng(seed).normal
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": draw(size=(rank, size)).astype(np.float32),
        f"base_model.model.{MODULE}.lora_B.weight": draw(size=(size, rank)).astype(np.float32),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], **config}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def logprobs_of(directory: Path, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Logprobs of a sequence by the weights in a directory; position 0 has no predictor."""
    return drawn(digest_of(directory), token_ids)


def digest_of(directory: Path) -> int:
    return zlib.crc32(b"".join(p.read_bytes() for p in sorted(directory.glob("*.safetensors"))))


def drawn(seed: int, token_ids: Sequence[int]) -> tuple[float, ...]:
    said = (random.Random(f"{seed}:{list(token_ids[: t + 1])}").uniform(-5, 0) for t in range(1, len(token_ids)))
    return (0.0, *said)


def fingerprint(new: Path, old: Path | None) -> tuple[FingerprintSequence, ...]:
    return tuple(
        FingerprintSequence(
            token_ids_T=tokens,
            logprobs_T=logprobs_of(new, tokens),
            parent_logprobs_T=None if old is None else logprobs_of(old, tokens),
        )
        for tokens in TOKENS
    )


@dataclass
class Run:
    """A registry whose versions have weights."""

    registry: Registry
    base: Path

    def weights(self, version: str) -> Path:
        card = self.registry.card(version)
        kinds = {"base": self.base, "lora": "adapter", "full": "model"}
        return self.registry.version_dir(version) / kinds[card.kind]

    def train(
        self,
        kind: str,
        *,
        seed: int,
        parent: str | None = None,
        has_fingerprint: bool = True,
        hardly: bool = False,
        known: tuple[FingerprintSequence, ...] | None = None,
    ) -> str:
        """A new version; with `hardly`, its fingerprint is that of its parent, with `known` this one."""
        version = self.registry.next_version()
        parent = parent or self.registry.versions()[-1]
        save = {"lora": (save_adapter, "adapter"), "full": (save_model, "model")}[kind]
        with create_version(self.registry.version_dir(version)) as directory:
            weights = save[0](directory / save[1], seed)
            own = known or fingerprint(self.weights(parent) if hardly else weights, self.weights(parent))
            card = PolicyCard(
                version=version,
                name="tiny",
                kind=kind,
                base_model=str(self.base),
                parent=parent,
                fingerprint=own if has_fingerprint else (),
            )
            write_card(directory, card)
        return version


# ---- the server ----


@dataclass
class Endpoint:
    """The state of a server with vLLM's routes, what was asked of it, and its faults."""

    weights: Path
    """Weights of the base model, as the server has them in memory."""
    name: str = "tiny"
    api_key: str | None = None
    lora_routes: bool = True
    takes_adapters: bool = True
    """False: started without `--enable-lora`."""
    dev_routes: bool = True
    max_lora_rank: int = 8
    memory: dict[Path, int] = field(default_factory=dict)
    """Digests of weights as they were reloaded: the files may be gone since."""
    adapters: dict[str, Path] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    paused: bool = False
    weight_version: str = "default"
    in_use: list[str] = field(default_factory=list)
    """Adapters that requests use, at one look at /metrics after another."""
    url: str = ""

    html: bool = False
    hangs_on: str | None = None
    fails_on: str | None = None
    hides_roots: bool = False
    """Does not say where its adapters are from."""
    no_logprobs: bool = False
    forces_nothing: bool = False
    processed: bool = False
    """Logprobs are those after the sampling masks, as with vLLM's `--logprobs-mode processed_logprobs`."""
    ignores_loads: bool = False
    """Says that an adapter or a checkpoint is loaded, and goes on as before."""
    answers_as: str | None = None
    """Another model answers, whichever is asked for."""
    holds_cache: bool = False
    noise: float = 0.0
    """Added to every logprob, with alternating sign."""
    mix_with: Path | None = None
    """Answers half with these weights."""

    def respond(self, path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        """The response of the HTTP server, see `serving`."""
        if path == self.hangs_on:
            return HANG
        if self.api_key and body is not None and authorization != f"Bearer {self.api_key}":
            return Fault(401, json.dumps({"error": "Unauthorized"}))
        status, answer = self.answer(path, body or {})
        if isinstance(answer, bytes):
            return Fault(status, answer.decode(), "text/html")
        return Fault(status, answer, "text/plain") if isinstance(answer, str) else Fault(status, json.dumps(answer))

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body; `str` is plain text, `bytes` HTML."""
        route = path.partition("?")[0]
        self.calls.append(path)
        if self.html:
            return 200, b"<!doctype html><title>Sign in</title>"
        if route == self.fails_on:
            return 500, error("EngineCore encountered an issue.")
        handlers = {"/v1/models": self.list_models, "/v1/completions": self.complete, "/metrics": self.metrics}
        if self.lora_routes:
            handlers |= {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload}
        if self.dev_routes:
            handlers |= {
                "/pause": lambda _: self.pause(True),
                "/resume": lambda _: self.pause(False),
                "/collective_rpc": self.reload,
                "/update_weight_version": self.set_version,
                "/weight_info": lambda _: (200, {"weight_version": self.weight_version}),
                "/reset_prefix_cache": lambda _: (200, {"success": not self.holds_cache}),
            }
        return handlers[route](body) if route in handlers else (404, {"detail": "Not Found"})

    def set_version(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.weight_version = body["new_version"]
        return 200, {"success": True}

    def metrics(self, _: dict[str, Any]) -> tuple[int, Any]:
        """Metrics as vLLM's: one line for each set of adapters there ever was, the newest with the greatest value."""
        in_use = self.in_use.pop(0) if self.in_use else ""
        load = f'vllm:num_requests_running{{engine="0"}} {float(bool(in_use))}\n'
        load += 'vllm:num_requests_waiting{engine="0"} 0.0\n'
        if not self.takes_adapters:
            return 200, load
        label = f'max_lora="2",running_lora_adapters="{in_use}",waiting_lora_adapters=""'
        return 200, (
            f"{load}"
            'vllm:lora_requests_info{max_lora="2",running_lora_adapters="tiny@old",waiting_lora_adapters=""} 1.0\n'
            f"vllm:lora_requests_info{{{label}}} 1.7e+09\n"
        )

    def list_models(self, _: dict[str, Any]) -> tuple[int, Any]:
        models = {self.name: self.weights, **self.adapters}
        roots = {name: {} if self.hides_roots else {"root": str(path)} for name, path in models.items()}
        return 200, {"object": "list", "data": [{"id": name, **root} for name, root in roots.items()]}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        model, [token] = body["model"], body["allowed_token_ids"]
        tokens = [*body["prompt"], token]
        if model not in (self.name, *self.adapters):
            return 404, error(f"The model `{model}` does not exist.")
        path = self.adapters.get(model, self.weights)
        logprob = drawn(self.memory.get(path) or digest_of(path), tokens)[-1]
        if self.mix_with is not None:
            logprob = (logprob + logprobs_of(self.mix_with, tokens)[-1]) / 2
        logprob = 0.0 if self.processed else logprob
        logprob += self.noise * (-1) ** len(body["prompt"])
        choice = {
            "text": "",
            "logprobs": None if self.no_logprobs else {"token_logprobs": [logprob]},
            "token_ids": [token + 1 if self.forces_nothing else token],
        }
        return 200, {"model": self.answers_as or model, "choices": [choice]}

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], Path(body["lora_path"])
        if not self.takes_adapters:
            return 500, error("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if name in self.adapters:
            return 400, error(f"The lora adapter '{name}' has already been loaded.")
        if not path.is_dir():
            return 404, error(f"Loading lora {name} failed: No adapter found for <path>")
        if (rank := json.loads((path / "adapter_config.json").read_text())["r"]) > self.max_lora_rank:
            return 500, error(f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        self.adapters[name] = self.weights if self.ignores_loads else path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, error(f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 200, "Success"

    def pause(self, paused: bool) -> tuple[int, Any]:
        self.paused = paused
        return 200, {"status": "paused" if paused else "resumed"}

    def reload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self.paused or body["method"] != "reload_weights":
            return 500, error("reload_weights, and only while paused")
        if not self.ignores_loads:
            self.weights = Path(body["kwargs"]["weights_path"])
            self.memory[self.weights] = digest_of(self.weights)
        return 200, {"results": [None]}


State = TypeVar("State", bound=Endpoint)


@contextmanager
def serving(state: State) -> Iterator[State]:
    """`state` as a real server on a free port, which is in `state.url`."""
    with JsonServer(state.respond) as server:
        state.url = f"{server.url}/v1"
        yield state


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "code": 400}}
