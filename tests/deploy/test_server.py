"""Every way a server can fail is one clear `DeployError`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from r3agent.deploy.server import Server
from r3agent.errors import ConfigError, DeployError
from tests.deploy.endpoint import TOKENS, Endpoint, save_adapter


@pytest.mark.parametrize(
    "base_url", ["127.0.0.1:8000/v1", "http://127.0.0.1:8000", "ftp://host/v1", "http:///v1", "http://host:port/v1"]
)
def test_base_url_is_the_openai_one(base_url: str):
    with pytest.raises(ConfigError, match="base_url = "):
        Server(base_url)


@pytest.mark.parametrize(("base_url", "root"), [("http://h:1/v1/", "http://h:1"), ("http://h/p/v1", "http://h/p")])
def test_admin_routes_live_above_v1(base_url: str, root: str):
    with Server(base_url) as server:
        assert server.root == root


def test_no_secret_is_shown():
    with pytest.raises(ConfigError) as raised:
        Server("http://user:hunter2@host/v2")
    assert "hunter2" not in str(raised.value)
    server = Server("http://user:hunter2@127.0.0.1:9/v1", api_key="sk-secret")
    with server, pytest.raises(DeployError) as refused:
        server.models()
    assert "hunter2" not in str(refused.value)
    assert "sk-secret" not in str(refused.value)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with Server(url) as server, pytest.raises(DeployError, match=r"v1/models: .*; is the server running\?"):
            server.models()


def test_server_that_hangs(endpoint: Endpoint):
    endpoint.hangs_on = "/v1/models"
    with Server(endpoint.url, timeout_s=0.2) as server, pytest.raises(DeployError, match=r"no answer within 0\.2 s"):
        server.models()


@pytest.mark.parametrize(("key", "why"), [(None, "no API key was sent"), ("sk-wrong", "is not the server's")])
def test_wrong_key(endpoint: Endpoint, key: str | None, why: str):
    endpoint.api_key = "sk-right"
    with Server(endpoint.url, api_key=key) as server, pytest.raises(DeployError, match=f"HTTP 401: .*{why}") as raised:
        server.pause()
    assert "sk-" not in str(raised.value)
    with Server(endpoint.url, api_key="sk-right") as server:
        server.pause()
    assert endpoint.paused


def test_web_page_instead_of_an_api(endpoint: Endpoint):
    endpoint.html = True
    with Server(endpoint.url) as server, pytest.raises(DeployError, match=r"answered '<!doctype html>.* ending in /v1"):
        server.models()


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda s: s.load_adapter("tiny@v0001", Path()), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (lambda s: s.pause(), "VLLM_SERVER_DEV_MODE=1"),
        (lambda s: s.reload_weights("/weights"), "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_missing_route_says_how_to_get_it(endpoint: Endpoint, call: Callable[[Server], None], remedy: str):
    endpoint.lora_routes = endpoint.dev_routes = False
    with (
        Server(endpoint.url) as server,
        pytest.raises(DeployError, match=f"HTTP 404, the server has no.*{remedy}"),
    ):
        call(server)


def test_refused_adapter_says_what_helps(endpoint: Endpoint, tmp_path: Path):
    wide = save_adapter(tmp_path / "wide", seed=1, rank=16)
    with Server(endpoint.url) as server:
        with pytest.raises(DeployError, match=r"rank 16 is greater than max_lora_rank 8\.; start the server with"):
            server.load_adapter("tiny@v0001", wide)
        with pytest.raises(DeployError, match=r"No adapter found .* share the file system"):
            server.load_adapter("tiny@v0001", tmp_path / "elsewhere")


def test_a_model_that_is_not_there_has_no_logprobs(endpoint: Endpoint):
    with Server(endpoint.url) as server:
        assert server.next_logprob("tiny", TOKENS[0][:3], TOKENS[0][3]) < 0
        with pytest.raises(DeployError, match=r"HTTP 404: The model `tiny@v0007` does not exist"):
            server.next_logprob("tiny@v0007", TOKENS[0][:3], 1)


def test_answer_of_another_model_proves_nothing(endpoint: Endpoint):
    endpoint.answers_as = "large"
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="answered as 'large' when asked for 'tiny'"):
        server.next_logprob("tiny", TOKENS[0][:3], 1)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ({"no_logprobs": True}, "gave no logprobs; the fingerprint needs"),
        ({"forces_nothing": True}, "does not know allowed_token_ids; the fingerprint needs"),
    ],
)
def test_server_that_cannot_be_asked(endpoint: Endpoint, lacks: dict[str, bool], says: str):
    for name, value in lacks.items():
        setattr(endpoint, name, value)
    with Server(endpoint.url) as server, pytest.raises(DeployError, match=says):
        server.next_logprob("tiny", TOKENS[0][:3], 1)
