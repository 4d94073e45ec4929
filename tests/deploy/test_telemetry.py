"""Spans of deploys."""

from __future__ import annotations

import pytest

from r3agent.deploy import deploy
from r3agent.errors import DeployError
from tests.deploy.endpoint import Endpoint, Run
from tests.support.exported import Exported, has
from tests.support.exported import exported as exported


def test_deploy_is_a_span(run: Run, endpoint: Endpoint, exported: Exported):
    servers: list[tuple[int, int]] = []
    told = {"on_server": lambda done, total: servers.append((done, total))}
    deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, passed=True, **told)
    assert servers == [(0, 1)]
    attributes = {"policy.version": "v0001", "deploy.strategy": "lora", "deploy.fingerprint": "arrived"}
    span = has(exported.one("deploy v0001"))
    assert {name: span[f"r3agent.{name}"] for name in attributes} == attributes
    endpoint.weights = run.weights("v0001")
    with pytest.raises(DeployError):
        deploy("v0000", registry=run.registry, base_url=endpoint.url)
    assert has(exported.one("deploy v0000"))["error.type"] == "DeployError"
