"""Merged weights on real vLLM."""

from __future__ import annotations

from pathlib import Path

from r3agent.cards import export_version
from r3agent.deploy.fingerprint import check
from r3agent.deploy.server import Server
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.models import BUNDLED_DIR
from tests.deploy.trained import Trained
from tests.vllm.conftest import SMALL


def test_merged_weights_load_with_the_fingerprint(vllm_python: str, tmp_path: Path) -> None:
    trained = Trained(tmp_path / "run", BUNDLED_DIR, "bundled")
    version = trained.publish("lora", seed=1)
    merged = tmp_path / "merged"
    export_version(trained.registry.run_dir, version, merged, merged=True)
    with (
        VLLMProcess(str(merged), name="merged", log_path=tmp_path / "log", options=SMALL) as process,
        Server(process.base_url, timeout_s=60) as server,
    ):
        report = check(server, "merged", trained.registry.card(version).fingerprint)
    assert report.verdict == "arrived"
    assert report.gap < 1e-3
