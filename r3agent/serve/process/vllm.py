"""A real vLLM server as a process of its own: stock vLLM on a GPU, or its CPU build in an environment of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from r3agent.errors import ConfigError
from r3agent.serve.process.address import base_url, is_loopback, listen
from r3agent.serve.process.log_diagnosis import likely_cause
from r3agent.serve.process.options import API_KEY_VARIABLE
from r3agent.serve.process.process import LocalServer
from r3agent.store.models import default_name, find_checkpoint

PYTHON_VARIABLE = "R3AGENT_VLLM_PYTHON"

LORA_OPTIONS = ("--enable-lora", "--max-lora-rank", "64", "--max-loras", "2", "--max-cpu-loras", "8")
"""Options with which new versions can be loaded beside the base, two of them in use at the same time."""
CPU_LORA_OPTIONS = ("--max-loras", "16", "--max-cpu-loras", "16")
"""vLLM 0.32 on a CPU adds the adapter in the last place to the base's own rows of a mixed batch, and an unloaded one
keeps its place until another needs it: there the last place is to stay empty."""
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; only the CPU build reads it, and takes half of the memory by default
}
NOISE = re.compile(r"nanobind: | - (leaked|\.\.\. skipped) |See https://nanobind|.*resource_tracker|  warnings\.warn\(")
"""Lines of libraries that are being torn down; they follow the last lines of vLLM itself."""
RESERVED = ("--model", "--served-model-name", "--host", "--port", "--api-key")
"""Options of vLLM that r3agent sets itself."""


class VLLMProcess(LocalServer):
    """`python -m vllm.entrypoints.openai.api_server`, started, waited for and stopped; a context manager.

    LoRA adapters can be loaded while it runs. On a loopback address so can full weights: vLLM's development routes are
    open then. They ask for no key, so on any other address they stay closed, unless the environment says
    `VLLM_SERVER_DEV_MODE=1`; every other process of this machine can reach them. Variables of vLLM that are set in
    the environment count more than the defaults here.

    Args:
        model: a checkpoint directory, a hub id or `bundled`.
        name: what it is served as; default the directory's name.
        host: `127.0.0.1` is this machine only.
        port: 0 takes a free one.
        api_key: clients must send it; default `$R3AGENT_SERVE_API_KEY`, then `$VLLM_API_KEY`, else none is needed.
        python: of the environment that has vLLM; default as in `find_python`.
        log_path: where its output goes; default a temporary file.
        timeout_s: for loading the model; large ones from a network disk take long.
        options: further options of vLLM; they come last and so count most.

    Raises:
        ConfigError: there is no such Python or model, or an option is one that r3agent sets.
    """

    def __init__(
        self,
        model: str | Path = "bundled",
        *,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        python: str | Path | None = None,
        log_path: Path | None = None,
        timeout_s: float = 1800.0,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(name=name or default_name(str(model)), log_path=log_path, timeout_s=timeout_s)
        for option in options:
            if option.split("=")[0] in RESERVED:
                raise ConfigError(f"vLLM option {option}: r3agent sets it; pass it as r3agent's own")
        self.python = find_python(python)
        self._model = find_checkpoint(str(model))
        self._host, self._port = host, port
        self._api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._options = tuple(options)

    def _launch(self) -> tuple[list[str], dict[str, str]]:
        with listen(self._host, self._port) as listener:  # vLLM says that its port is taken only after many seconds
            port = listener.getsockname()[1]
        self.base_url = base_url(self._host, port)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self._model]
        command += ["--served-model-name", self.name, "--host", self._host, "--port", str(port)]
        lora_options = [*LORA_OPTIONS, *(CPU_LORA_OPTIONS if _is_cpu_build(self.python) else ())]
        return [*command, *lora_options, *self._options], self._environment()

    def _environment(self) -> dict[str, str]:
        environment = {
            **ENVIRONMENT,
            **({"VLLM_SERVER_DEV_MODE": "1"} if is_loopback(self._host) else {}),
            **os.environ,
        }
        environment.pop(API_KEY_VARIABLE, None)
        # As in an activated environment: what vLLM compiles at run time needs the tools beside its Python.
        environment["PATH"] = f"{Path(self.python).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        if self._api_key:
            environment["VLLM_API_KEY"] = self._api_key
        return environment

    def _log(self) -> str:
        return "\n".join(line for line in super()._log().splitlines() if not NOISE.match(line))

    def _explain(self, log: str) -> str:
        return likely_cause(log)


def find_python(python: str | Path | None = None) -> str:
    """Find the Python that has vLLM: `python`, else `$R3AGENT_VLLM_PYTHON`, else this one if it has vLLM.

    Raises:
        ConfigError: there is none, or what is named is no program.
    """
    chosen = str(python or os.environ.get(PYTHON_VARIABLE, ""))
    if not chosen:
        if importlib.util.find_spec("vllm"):
            return sys.executable
        raise ConfigError(
            f"no Python with vLLM: {sys.executable} lacks it and ${PYTHON_VARIABLE} is not set; pip install vllm on a "
            f"machine with a GPU, or make vllm and {PYTHON_VARIABLE}=.venv-vllm/bin/python, or --vllm-python"
        )
    if (found := shutil.which(chosen)) is None:
        raise ConfigError(f"vLLM's Python {chosen!r}: there is no such program; name that of an environment with vLLM")
    return os.path.abspath(found)  # not resolved: a virtual environment's Python is a link


def _is_cpu_build(python: str) -> bool:
    packages = Path(python).parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    return next(packages, None) is not None
