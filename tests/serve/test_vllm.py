"""How vLLM is found and started, with a program in its place; the real one is in tests/vllm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from r3agent.cli.main import main
from r3agent.errors import ConfigError, EndpointError
from r3agent.serve import VLLMProcess
from r3agent.serve.process.vllm import find_python
from r3agent.store.models import BUNDLED_DIR

PROGRAM = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

Path({told!r}).write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
if "--wrong" in sys.argv:
    sys.exit("api_server.py: error: unrecognized arguments: --wrong")
server = HTTPServer((value("--host"), int(value("--port"))), Health)
print("sk-" + "listening", flush=True)
server.serve_forever()
"""


class Python:
    """A program that is started as vLLM's Python would be, is healthy at once, and tells how it was called."""

    def __init__(self, directory: Path) -> None:
        self.path, self._told = directory / "python", directory / "told.json"
        self.path.write_text(PROGRAM.format(python=sys.executable, told=str(self._told)))
        self.path.chmod(0o755)

    @property
    def started(self) -> bool:
        return self._told.exists()

    @property
    def argv(self) -> list[str]:
        return json.loads(self._told.read_text())[0]

    @property
    def environment(self) -> dict[str, str]:
        return json.loads(self._told.read_text())[1]

    def value(self, flag: str) -> str:
        return self.argv[self.argv.index(flag) + 1]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Python:
    for variable in ("R3AGENT_VLLM_PYTHON", "VLLM_SERVER_DEV_MODE", "VLLM_API_KEY", "R3AGENT_SERVE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return Python(tmp_path)


def test_the_python_that_is_named_counts_most(python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_python(python.path) == str(python.path)
    monkeypatch.setenv("R3AGENT_VLLM_PYTHON", sys.executable)
    assert find_python() == sys.executable
    assert find_python(python.path) == str(python.path)
    monkeypatch.chdir(tmp_path)
    assert find_python("./python") == str(python.path)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
@pytest.mark.usefixtures("python")
def test_without_vllm_it_says_how_to_get_it() -> None:
    with pytest.raises(
        ConfigError, match=r"pip install vllm .* make vllm and R3AGENT_VLLM_PYTHON=.venv-vllm/bin/python"
    ):
        VLLMProcess()


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vLLM's Python '.*/nothing': there is no such program"):
        VLLMProcess(python=tmp_path / "nothing")


def test_a_model_that_is_not_there_is_named(python: Python) -> None:
    with pytest.raises(ConfigError, match=r"model /no/such/model: there is no such directory"):
        VLLMProcess("/no/such/model", python=python.path)


@pytest.mark.parametrize("option", ["--port", "--api-key=sk-1", "--served-model-name", "--served_model_name=mine"])
def test_options_that_r3agent_sets_are_refused(python: Python, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}: r3agent sets it"):
        VLLMProcess(python=python.path, options=[option, "1"])


def test_what_it_is_started_with(python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    log = tmp_path / "log"
    options = ["--dtype", "float32"]
    with VLLMProcess(name="mine", api_key="sk-1", python=python.path, log_path=log, options=options) as server:
        assert httpx.get(server.base_url.removesuffix("/v1") + "/health").status_code == 200
        assert python.argv[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert (python.value("--model"), python.value("--served-model-name")) == (str(BUNDLED_DIR), "mine")
        assert python.value("--generation-config") == "vllm"
        assert server.base_url == f"http://127.0.0.1:{python.value('--port')}/v1"
        assert python.argv.index("--enable-lora") < python.argv.index("--dtype") == len(python.argv) - 2
        said = {name: value for name, value in python.environment.items() if name.startswith("VLLM_")}
        assert said == {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_API_KEY": "sk-1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
        }
        assert python.environment["PATH"].startswith(f"{tmp_path}{os.pathsep}")
        assert not any("sk-1" in word for p in psutil.Process(server.pid).children() for word in p.cmdline())
        assert server.last_log_lines() == log.read_text().strip()
        left = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert not any(process.is_running() for process in left)
    assert server.pid is None


@pytest.mark.parametrize("option", ["--kv-cache-memory-bytes=9", "--gpu_memory_utilization=0.2"])
def test_options_for_the_cache_are_not_overridden(python: Python, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """The variable takes precedence over them on a CPU."""
    with VLLMProcess(python=python.path, options=[option]):
        assert "VLLM_CPU_KVCACHE_SPACE" not in python.environment
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with VLLMProcess(python=python.path, options=[option]):
        assert python.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_its_development_routes_are_not_open_to_a_network(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    with VLLMProcess(host="0.0.0.0", python=python.path) as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        assert "VLLM_SERVER_DEV_MODE" not in python.environment
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    with VLLMProcess(host="0.0.0.0", python=python.path):
        assert python.environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_taken_port_is_found_before_it_is_started(python: Python) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}: .*; pass another --port"):
            VLLMProcess(python=python.path, port=port).start()
    assert not python.started


def test_the_end_of_the_log_comes_with_its_cause(python: Python) -> None:
    says = r"(?s)exit code 1; .*arguments: --wrong\nlikely cause: this vLLM has no option --wrong"
    with pytest.raises(EndpointError, match=says):
        VLLMProcess(python=python.path, options=["--wrong"]).start()


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "r3agent", "serve", *map(str, words)]


def test_the_command_serves_until_it_is_told_to_stop(python: Python, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "r3.toml").write_text(
        f'[serve]\nengine = "vllm"\nvllm_python = "{python.path}"\noptions = ["--max-num-seqs", "8"]\n'
    )
    words = command("bundled", "--port", 0, "--name", "mine", "--dtype", "float32", "--run", run, "--", "--seed", 1)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, url = process.stdout.readline().removeprefix("serving ").split(" on ")
        assert name == "mine"
        assert python.argv[-6:] == ["--dtype", "float32", "--max-num-seqs", "8", "--seed", "1"]
        entry_path = run / "servers" / f"{python.value('--port')}.json"
        entry = json.loads(entry_path.read_text())
        assert (entry["base_url"], entry["pid"]) == (url.strip(), process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not entry_path.exists()
    # It can be started again as it was, on another port and with another model.
    words = command(BUNDLED_DIR, *entry["argv"], "--port", 0, "--name", "other")
    first = python.argv
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving other on ")
        assert python.argv[-6:] == first[-6:]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_the_command_fails_when_the_server_dies(python: Python, tmp_path: Path) -> None:
    words = command("bundled", "--engine", "vllm", "--vllm-python", python.path, "--port", 0, "--log", tmp_path / "log")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving bundled on ")
        [guard] = psutil.Process(process.pid).children()
        guard.children()[0].kill()
        err = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert f"exit code 137; {tmp_path / 'log'} ends:\nsk-listening\n" in err
    assert "likely cause: one of its processes was killed" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engine", "vllm", "--max-batch", "4"], "--max-batch 4: only the embedded server has this"),
        (["--", "--max-num-seqs", "4"], "--max-num-seqs 4: only vLLM has this; pass --engine vllm"),
        (["--vllm-python", "python"], "--vllm-python python: only vLLM has this; pass --engine vllm"),
        (["--engine", "vlm"], 'Invalid value "vlm" for --engine. Choose from: "embedded", "vllm"'),
        (["--set", "serve.engine=vlm"], "serve.engine = 'vlm'"),
    ],
)
def test_flags_of_the_other_engine_are_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["serve", *words]))
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())  # the message is wrapped to the terminal
