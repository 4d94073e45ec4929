"""Several servers, a script of the user's, and old adapters that are still in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.errors import ConfigError, DeployError, R3Error
from tests.deploy.endpoint import TOKENS, Endpoint, Run


def test_replicas_get_the_weights_one_after_another(run: Run, endpoint: Endpoint, replica: Endpoint):
    config = DeployConfig(replicas=(replica.url,))
    deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    assert set(endpoint.adapters) == set(replica.adapters) == {"tiny@v0001"}
    rollback(registry=run.registry, base_url=endpoint.url, config=config)
    assert run.registry.live == "v0000"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_replica_that_fails_puts_the_others_back(run: Run, endpoint: Endpoint, replica: Endpoint, kind: str):
    replica.ignores_loads = True
    config = DeployConfig(replicas=(replica.url,))
    with pytest.raises(DeployError, match=rf"{replica.url.removesuffix('/v1')}.*nothing stays live"):
        deploy(run.train(kind, seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    assert endpoint.adapters == replica.adapters == {}
    assert endpoint.weights == run.base
    assert run.registry.live is None


def test_a_replica_that_is_down_puts_the_others_back(run: Run, endpoint: Endpoint, replica: Endpoint):
    checkpoint = run.train("lora", seed=1)
    down = DeployConfig(replicas=("http://127.0.0.1:9/v1",), timeout_s=5)
    with pytest.raises(R3Error, match=r"127\.0\.0\.1:9"):
        deploy(checkpoint, registry=run.registry, base_url=endpoint.url, config=down)
    assert (endpoint.adapters, run.registry.live) == ({}, None)
    deploy(checkpoint, registry=run.registry, base_url=endpoint.url, config=DeployConfig(replicas=(replica.url,)))
    assert set(endpoint.adapters) == set(replica.adapters) == {run.registry.live and f"tiny@{run.registry.live}"}


def test_an_adapter_in_use_is_unloaded_when_it_is_drained(run: Run, endpoint: Endpoint):
    config = DeployConfig(keep=1)
    deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    endpoint.in_use = ["tiny@v0001,tiny@v0002", "tiny@v0001"]
    report = deploy(run.train("lora", seed=2), registry=run.registry, base_url=endpoint.url, config=config)
    assert report.unloaded == ("tiny@v0001",)
    asked = [path for path in endpoint.calls if path in ("/metrics", "/v1/unload_lora_adapter")]
    assert asked[-4:] == ["/metrics"] * 3 + ["/v1/unload_lora_adapter"]


def test_weights_in_place_are_named_by_their_version(run: Run, endpoint: Endpoint):
    deploy(run.train("full", seed=1), registry=run.registry, base_url=endpoint.url)
    assert endpoint.weight_version == "v0001"
    rollback(registry=run.registry, base_url=endpoint.url)
    assert endpoint.weight_version == "v0000"


def test_a_run_is_marked_while_other_weights_replace_the_live_ones(run: Run, endpoint: Endpoint):
    where: Any = {"registry": run.registry, "base_url": endpoint.url}
    seen: list[bool] = []
    route = endpoint.reload
    endpoint.reload = lambda body: (seen.append(run.registry.swapped_path.exists()), route(body))[1]  # pyright: ignore
    for loads, is_marked in [(deploy, False), (rollback, False), (load_version, True)]:
        named = {} if loads is rollback else {"version": "v0001" if seen else run.train("full", seed=1)}
        loads(**named, **where)
        assert run.registry.swapped_path.exists() == is_marked
    load_version("v0000", **where)
    assert not run.registry.swapped_path.exists()
    assert seen == [True] * 4


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_was_put_back_has_the_live_weights(run: Run, endpoint: Endpoint, comes_back: bool):
    endpoint.ignores_loads = comes_back
    endpoint.fails_on = None if comes_back else "/collective_rpc"
    with pytest.raises(DeployError):
        deploy(run.train("full", seed=1), registry=run.registry, base_url=endpoint.url)
    assert run.registry.swapped_path.exists() == (not comes_back)


def test_weights_that_are_there_already_replace_nothing(
    run: Run, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: Any = {"registry": run.registry, "base_url": endpoint.url}
    deploy(run.train("full", seed=1), **where)
    touched: list[Path] = []
    monkeypatch.setattr(Path, "touch", lambda path: touched.append(path))
    load_version("v0001", **where)
    assert touched == []
    rollback(**where)
    assert touched == [run.registry.swapped_path]


def test_adapters_replace_nothing(run: Run, endpoint: Endpoint):
    endpoint.fails_on = "/v1/load_lora_adapter"
    with pytest.raises(DeployError):
        deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url)
    assert not run.registry.swapped_path.exists()


def script(path: Path, text: str, timeout_s: float = 60) -> DeployConfig:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return DeployConfig(strategy="command", command=(str(path),), timeout_s=timeout_s)


LOAD = """
echo "$R3AGENT_VERSION $R3AGENT_KIND $R3AGENT_BASE_MODEL" > "$(dirname "$0")/told"
python3 - <<EOF
import os, json, urllib.request
body = {"lora_name": os.environ["R3AGENT_SERVED_NAME"], "lora_path": os.environ["R3AGENT_CHECKPOINT"]}
url = os.environ["R3AGENT_BASE_URL"] + "/load_lora_adapter"
urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}))
EOF
"""


def test_a_script_of_the_user_brings_the_weights(run: Run, endpoint: Endpoint, tmp_path: Path):
    config = script(tmp_path / "roll_out.sh", LOAD)
    report = deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    assert (report.strategy, run.registry.live) == ("command", "v0001")
    assert (tmp_path / "told").read_text().split() == ["v0001", "lora", str(run.base)]


@pytest.mark.parametrize(
    ("text", "says"),
    [("echo no space left; exit 3", r"exit code 3; its output ends:\nno space left"), ("true", "does not exist")],
)
def test_a_script_that_fails_or_does_nothing_leaves_the_live_version(
    run: Run, endpoint: Endpoint, tmp_path: Path, text: str, says: str
):
    config = script(tmp_path / "roll_out.sh", text, timeout_s=1)
    with pytest.raises(DeployError, match=says):
        deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    assert run.registry.live is None


def test_deploy_measures_a_loading_server_at_most_once_a_second(run: Run, endpoint: Endpoint, tmp_path: Path):
    endpoint.adapters["tiny@v0001"] = run.base
    with pytest.raises(DeployError, match="still serves the old weights"):
        deploy(
            run.train("lora", seed=1),
            registry=run.registry,
            base_url=endpoint.url,
            config=script(tmp_path / "roll_out.sh", "true", timeout_s=1),
        )
    requests_in_one = sum(len(tokens) - 1 for tokens in TOKENS)
    assert endpoint.calls.count("/v1/completions") <= 2 * requests_in_one


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (DeployConfig(strategy="command"), "say which with deploy.command"),
        (DeployConfig(strategy="command", command=("./nowhere.sh",)), "nowhere.sh': No such file"),
        (DeployConfig(strategy="restart"), "is not supervised here; start it with r3agent serve --run"),
        (DeployConfig(strategy="restart", replicas=("http://127.0.0.1:9/v1",)), "replaces one supervised server"),
    ],
)
def test_a_strategy_that_cannot_work_says_what_is_missing(
    run: Run, endpoint: Endpoint, config: DeployConfig, says: str
):
    with pytest.raises((ConfigError, DeployError), match=says):
        deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, config=config)
    assert run.registry.live is None
