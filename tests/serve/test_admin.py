"""ServedModels, adapters and weights of the real server, changed while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.serve import tiny
from tests.serve.tiny import PROMPTS


def complete(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0, "logprobs": 0}
    body |= {"return_token_ids": True, "ignore_eos": True}
    return http.post("/v1/completions", json={**body, **fields})


def names(http: httpx.Client) -> list[str]:
    return [card["id"] for card in http.get("/v1/models").json()["data"]]


def wait_until_busy(http: httpx.Client, running: threading.Thread) -> None:
    while running.is_alive() and http.get("/load").json()["server_load"] == 0:
        pass


@pytest.fixture
def loaded(http: httpx.Client, adapters: dict[str, Path]) -> Iterator[dict[str, Path]]:
    for name, path in adapters.items():
        response = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
        assert response.text == f"Success: LoRA adapter '{name}' added successfully."
    yield adapters
    for name in names(http)[1:]:
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200


def test_adapters_are_listed_and_answer_beside_the_base(
    http: httpx.Client, loaded: dict[str, Path], checkpoint: Path
) -> None:
    base, *cards = http.get("/v1/models").json()["data"]
    assert (base["id"], base["root"], base["parent"], base["max_model_len"]) == ("tiny", str(checkpoint), None, 256)
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        (name, str(path), "tiny") for name, path in loaded.items()
    ]
    for name, path in {"tiny": None, **loaded}.items():
        answer = complete(http, model=name).json()
        token_ids, logprobs = tiny.greedy(tiny.reference(checkpoint, path), PROMPTS[0], 8)
        assert answer["model"] == name
        assert answer["choices"][0]["token_ids"] == token_ids
        assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-4)


def test_adapters_that_are_refused_change_nothing(
    http: httpx.Client, loaded: dict[str, Path], foreign_adapter: Path, tmp_path: Path
) -> None:
    good, before = str(loaded["tiny@v0001"]), names(http)
    for name, path, status, message in (
        ("tiny@v0001", good, 400, "has already been loaded"),
        ("tiny", good, 400, "conflicts with a served base model"),
        ("new", str(tmp_path / "nothing"), 404, "No adapter found"),
        ("new", str(foreign_adapter), 400, "it was trained on another base model"),
        ("", good, 400, "lora_name"),
    ):
        response = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        assert (response.status_code, message in response.json()["error"]["message"]) == (status, True)
    assert names(http) == before


def test_an_adapter_is_unloaded_when_its_requests_are_done(http: httpx.Client, loaded: dict[str, Path]) -> None:
    answers: list[httpx.Response] = []
    body = {"model": "tiny@v0002", "max_tokens": 200, "n": 8, "temperature": 1}
    running = threading.Thread(target=lambda: answers.append(complete(http, **body)))
    running.start()
    wait_until_busy(http, running)
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "tiny@v0002"}).status_code == 200
    assert http.get("/load").json() == {"server_load": 0}
    running.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 8 * 200
    assert complete(http, model="tiny@v0002").status_code == 404
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "tiny@v0002"}).status_code == 404


class TestReload:
    def reload(self, http: httpx.Client, path: Path | None) -> httpx.Response:
        kwargs = {"weights_path": str(path)} if path else {}
        return http.post("/collective_rpc", json={"method": "reload_weights", "kwargs": kwargs})

    def test_new_weights_answer_under_the_same_name(
        self, http: httpx.Client, checkpoint: Path, other_checkpoint: Path
    ) -> None:
        for path in (other_checkpoint, checkpoint):
            assert http.post("/pause", params={"mode": "wait"}).json() == {"status": "paused"}
            assert http.get("/is_paused").json() == {"is_paused": True}
            assert self.reload(http, path).json() == {"results": [None]}
            assert http.post("/reset_prefix_cache").json() == {"success": True}
            assert http.post("/resume").json() == {"status": "resumed"}
            expected, _ = tiny.greedy(tiny.reference(path), PROMPTS[0], 8)
            assert complete(http, model="tiny").json()["choices"][0]["token_ids"] == expected

    def test_requests_under_way_end_before_it(
        self, http: httpx.Client, checkpoint: Path, other_checkpoint: Path
    ) -> None:
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(complete(http, max_tokens=150)))
        running.start()
        wait_until_busy(http, running)
        assert self.reload(http, other_checkpoint).status_code == 200
        running.join()
        expected, _ = tiny.greedy(tiny.reference(checkpoint), PROMPTS[0], 150)
        assert answers[0].json()["choices"][0]["token_ids"] == expected
        assert self.reload(http, checkpoint).status_code == 200

    def test_reload_of_weights_that_do_not_fit_keeps_the_old_ones(
        self, http: httpx.Client, checkpoint: Path, wider_checkpoint: Path, tmp_path: Path
    ) -> None:
        for path, message in ((wider_checkpoint, "only weights of the same architecture"), (tmp_path / "x", "no such")):
            response = self.reload(http, path)
            assert (response.status_code, message in response.json()["error"]["message"]) == (400, True)
        expected, _ = tiny.greedy(tiny.reference(checkpoint), PROMPTS[0], 8)
        assert complete(http).json()["choices"][0]["token_ids"] == expected

    def test_it_is_refused_while_adapters_stand_on_the_weights(
        self, http: httpx.Client, loaded: dict[str, Path], other_checkpoint: Path
    ) -> None:
        response = self.reload(http, other_checkpoint)
        assert response.status_code == 400
        assert "tiny@v0001, tiny@v0002; unload them first" in response.json()["error"]["message"]


def test_no_other_method_is_called(http: httpx.Client) -> None:
    for body in ({"method": "shutdown"}, {"method": "reload_weights", "kwargs": {"weights_iterator": []}}, {}):
        assert http.post("/collective_rpc", json=body).status_code == 400


def test_prompt_logprobs_have_vllms_shape(http: httpx.Client) -> None:
    first, *rest = complete(http, max_tokens=1, prompt_logprobs=0).json()["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [list(entry) for entry in rest] == [[str(token_id)] for token_id in PROMPTS[0][1:]]
    assert all(set(*entry.values()) == {"logprob", "rank", "decoded_token"} for entry in rest)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"prompt": [4, 125]}, "token id 125 is out of the vocabulary of 125"), ({"stream": True}, "only chat")],
)
def test_completions_that_are_refused(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    assert message in complete(http, **fields).json()["error"]["message"]


def test_a_text_prompt_is_tokenised(http: httpx.Client) -> None:
    assert complete(http, prompt="3 4 5").json()["choices"][0]["prompt_token_ids"] == [27, 28, 29]


def test_the_version_of_the_weights_is_what_it_was_set_to(http: httpx.Client) -> None:
    assert http.get("/weight_info").json() == {"weight_version": "default"}
    http.post("/update_weight_version", json={"new_version": "v0003"})
    assert http.get("/weight_info").json() == {"weight_version": "v0003"}
    http.post("/update_weight_version", json={"new_version": "default"})


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/pause", 405), ("POST", "/pause?mode=now", 400)]
)
def test_wrong_routes_are_openai_errors_too(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)


def test_allowed_tokens_are_sampled_with_logprobs_over_all(http: httpx.Client, checkpoint: Path) -> None:
    scored = tiny.reference(checkpoint)(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    for token in (7, 20, 41):
        choice = complete(http, max_tokens=1, temperature=1.0, allowed_token_ids=[token]).json()["choices"][0]
        assert choice["token_ids"] == [token]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([scored[token].item()], abs=1e-4)
    answer = complete(http, allowed_token_ids=[10_000])
    assert answer.status_code == 400
    assert "out of the vocabulary" in answer.json()["error"]["message"]
