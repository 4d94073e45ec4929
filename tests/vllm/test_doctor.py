"""The doctor on a real vLLM server, with all flags and with none."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from r3agent.doctor import Diagnosis, diagnose, report
from r3agent.serve.process.vllm import VLLMProcess
from tests.vllm.conftest import SMALL

ROUTES = ("LoRA load", "weight version", "weight reload", "pause and resume", "prefix-cache reset")
NO_LORA = ("--no-enable-lora", *SMALL)
EXACT = ("exact tokens", "exact tokens, n = 2", "exact tokens, streamed")


def statuses(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.status for check in diagnosis.checks}


def state(server: VLLMProcess) -> list[Any]:
    root = server.base_url.removesuffix("/v1")
    served = [model["id"] for model in httpx.get(f"{root}/v1/models").json()["data"]]
    return [served, *(httpx.get(f"{root}/{path}").json() for path in ("weight_info", "is_paused"))]


async def test_with_all_flags_everything_works_and_nothing_changes(vllm: VLLMProcess) -> None:
    before = state(vllm)
    diagnosis = await diagnose(vllm.base_url.removesuffix("/v1"))
    assert state(vllm) == before
    found = statuses(diagnosis)
    assert diagnosis.tier == "trainable-exact", report(diagnosis)
    assert [found[name] for name in ROUTES] == ["yes"] * 5, report(diagnosis)
    assert [found[name] for name in (*EXACT, "chat template", "n", "streaming")] == ["yes"] * 6, report(diagnosis)
    version = next(check.detail for check in diagnosis.checks if check.name == "version")
    assert version.startswith("vllm ")


async def test_with_no_flags_every_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        monkeypatch.setenv(variable, "0")
    with VLLMProcess("bundled", options=NO_LORA) as server:
        diagnosis = await diagnose(server.base_url)
    found = statuses(diagnosis)
    assert diagnosis.tier == "trainable-exact", report(diagnosis)
    assert [found[name] for name in ROUTES] == ["no"] * 5, report(diagnosis)
    assert [found[name] for name in EXACT] == ["yes"] * 3, report(diagnosis)
    for remedy in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "--tool-call-parser"):
        assert remedy in report(diagnosis)


async def test_loading_allowed_without_enable_lora_is_told_apart(without_adapters: VLLMProcess) -> None:
    diagnosis = await diagnose(without_adapters.base_url)
    [lora] = [check for check in diagnosis.checks if check.name == "LoRA load"]
    assert (lora.status, "--enable-lora" in (lora.remedy or "")) == ("no", True), lora
