"""Starting, stopping and losing a real vLLM server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from r3agent.errors import EndpointError
from r3agent.serve.process.vllm import VLLMProcess
from tests.vllm.conftest import LITTLE_MEMORY, SMALL

GONE_S = 30.0


def family(pid: int | None) -> list[psutil.Process]:
    """A process and all below it; of a vLLM server: the guard, the API server, the engine and its workers."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_it_serves_with_everything_open_on_this_machine(vllm: VLLMProcess) -> None:
    with httpx.Client(base_url=vllm.base_url.removesuffix("/v1"), timeout=60) as http:
        assert http.get("/v1/models").json()["data"][0]["id"] == "bundled"
        prompt = {"model": "bundled", "prompt": "Using 3 4 5", "max_tokens": 4, "return_token_ids": True}
        choice = http.post("/v1/completions", json=prompt).json()["choices"][0]
        assert 0 < len(choice["token_ids"]) <= 4
        assert http.post("/reset_prefix_cache").status_code == 200
        refused = http.post("/v1/load_lora_adapter", json={"lora_name": "x@v0001", "lora_path": "/no/such"})
        assert refused.status_code in (400, 404)


def test_its_cache_has_the_size_that_an_option_gives(vllm: VLLMProcess) -> None:
    metrics = httpx.get(vllm.base_url.removesuffix("/v1") + "/metrics").text
    _, size = LITTLE_MEMORY
    assert f'kv_cache_memory_bytes="{size}"' in metrics


def test_the_command_serves_until_it_is_told_to_stop(vllm_python: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "r3agent", "serve", "bundled", "--engine", "vllm", "--vllm-python", vllm_python]
    words += ["--port", "0", "--run", str(tmp_path), "--", *SMALL]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        [entry_path] = (tmp_path / "servers").glob("*.json")
        entry = json.loads(entry_path.read_text())
        assert said == f"serving bundled on {entry['base_url']}\n"
        assert (entry["pid"], entry_path.stem) == (process.pid, entry["base_url"].split(":")[-1].removesuffix("/v1"))
        assert httpx.get(f"{entry['base_url']}/models").json()["data"][0]["id"] == "bundled"
        family_then = family(process.pid)
        assert len(family_then) > 3
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family_then, GONE_S)
        assert not alive
    assert process.returncode == 0
    assert not entry_path.exists()
    assert "Application startup complete" in next((tmp_path / "servers").glob("*.log")).read_text()


def test_an_owner_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from r3agent.serve import VLLMProcess\n"
        f"with VLLMProcess(log_path=Path({str(tmp_path / 'log')!r}), options={SMALL!r}) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left = family(int(owner.stdout.readline()))
        assert len(left) > 2
        owner.kill()
        _, alive = psutil.wait_procs(left, GONE_S)
        assert not alive


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("empty", [], "is not a checkpoint; it needs config.json"),
        ("bundled", ["--no-enable-lora", "--lora-modules", "x=/no/such"], "LoRA is disabled"),
        ("bundled", ["--max-nun-seqs", "3"], "this vLLM has no option --max-nun-seqs"),
    ],
    ids=["no checkpoint", "no LoRA", "unknown option"],
)
def test_the_cause_is_named_when_it_does_not_start(model: str, options: list[str], says: str, tmp_path: Path) -> None:
    if model == "empty":
        model = str(tmp_path / model)
        Path(model).mkdir()
    server = VLLMProcess(model, log_path=tmp_path / "log", options=[*SMALL, *options])
    with pytest.raises(EndpointError, match=rf"(?s)exit code [12]; {tmp_path / 'log'} ends:.*likely cause: .*{says}"):
        server.start()
    assert server.pid is None
