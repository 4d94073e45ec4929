"""vLLM server in a child process: stock vLLM on a GPU, or its CPU build in a separate environment."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from r3agent._util.address import base_url, is_loopback, listen
from r3agent._util.checked import Port, Positive, checked
from r3agent._util.cores import allowed_cpus, cpu_quota, physical_cores
from r3agent.errors import ConfigError
from r3agent.serve.process.log_diagnosis import likely_cause
from r3agent.serve.process.options import API_KEY_VARIABLE
from r3agent.serve.process.process import LocalServer
from r3agent.serve.process.vllm_cpu import (
    CACHE_OPTIONS,
    LORA_SLOTS,
    choose_cores,
    choose_options,
    has_quantised_weights,
    is_cpu_build,
    names_of,
)
from r3agent.store.models import default_name, find_checkpoint

PYTHON_VARIABLE = "R3AGENT_VLLM_PYTHON"

SAMPLING_OPTIONS = ("--generation-config", "vllm")
"""Options by which requests that leave out sampling settings get neutral ones, and not those of the model's
generation_config.json, which its logprobs do not show."""
LORA_OPTIONS = ("--enable-lora", "--max-lora-rank", "64", "--max-loras", "2", "--max-cpu-loras", "8")
"""Options that allow loading new versions beside the base model, two of them in use at the same time."""
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    CACHE_VARIABLE: "2",  # GiB; only the CPU build reads it, and its default is half of the memory
}
NOISE = re.compile(r"nanobind: | - (leaked|\.\.\. skipped) |See https://nanobind|.*resource_tracker|  warnings\.warn\(")
"""Lines that libraries print at shutdown, after the last lines of vLLM itself."""
RESERVED = {"--model", "--served-model-name", "--host", "--port", "--api-key"}
"""Options of vLLM that r3agent sets itself."""


class VLLMProcess(LocalServer):
    """Process that runs `python -m vllm.entrypoints.openai.api_server`; a context manager that starts and stops it.

    LoRA adapters can be loaded while it runs. On a loopback address, full weights can be reloaded too, because vLLM's
    development routes are open. These need no key, and every process on this machine can reach them, so on any other
    address they are closed unless the environment has `VLLM_SERVER_DEV_MODE=1`. vLLM's environment variables take
    precedence over the defaults here.

    Args:
        model: checkpoint directory, hub id or `bundled`.
        name: served name; default the directory's name.
        host: address to listen on; `127.0.0.1` accepts only local clients.
        port: port to listen on; 0 chooses a free one.
        api_key: key that clients must send; default `$R3AGENT_SERVE_API_KEY`, `$VLLM_API_KEY`, or else no key.
        python: Python of the environment with vLLM; default as in `find_python`.
        log_path: file for its output; default a temporary file.
        timeout_s: time limit for loading the model; large models on a network disk take long.
        options: more options for vLLM; they come last and take precedence.
        lora_rank: largest rank of the adapters to load, 0 without any; it decides on the cost of a token on a CPU.
            Default 64.

    Raises:
        ConfigError: there is no such Python or model, or r3agent itself sets one of the options.
    """

    @checked
    def __init__(
        self,
        model: str | Path = "bundled",
        *,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: Port = 0,
        api_key: str | None = None,
        python: str | Path | None = None,
        log_path: str | Path | None = None,
        timeout_s: Positive = 1800.0,
        options: Sequence[str] = (),
        lora_rank: int | None = None,
    ) -> None:
        super().__init__(name=name or default_name(str(model)), log_path=log_path, timeout_s=timeout_s)
        for option in options:
            if names_of([option]) & RESERVED:
                raise ConfigError(f"vLLM option {option}: r3agent sets it; pass it as r3agent's own")
        self.python = find_python(python)
        self._model = find_checkpoint(str(model))
        self._host, self._port = host, port
        self._api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._options = tuple(options)
        self._on_cpu = is_cpu_build(self.python)
        if self._on_cpu:
            cores, quota = physical_cores(allowed_cpus()), cpu_quota()
            self.choices = [
                *choose_options(
                    self._options,
                    lora_rank=lora_rank,
                    can_merge=self._can_merge(),
                    is_quantised=has_quantised_weights(self._model),
                ),
                *choose_cores(self._options, os.environ, cores=cores, quota=quota),
            ]

    def _can_merge(self) -> bool:
        """Return True if a deploy can merge adapters: it can read the weights, and vLLM's routes for them are open."""
        return is_loopback(self._host) and any(Path(self._model).glob("*.safetensors"))

    def _launch(self) -> tuple[list[str], dict[str, str]]:
        with listen(self._host, self._port) as listener:  # vLLM reports a taken port only after many seconds
            port = listener.getsockname()[1]
        self.base_url = base_url(self._host, port)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self._model]
        command += ["--served-model-name", self.name, "--host", self._host, "--port", str(port)]
        slots = LORA_SLOTS if self._on_cpu else ()
        chosen = [option for choice in self.choices for option in choice.options]
        return [*command, *SAMPLING_OPTIONS, *LORA_OPTIONS, *slots, *chosen, *self._options], self._environment()

    def _environment(self) -> dict[str, str]:
        environment = {
            **ENVIRONMENT,
            **dict(variable for choice in self.choices for variable in choice.variables),
            **({"VLLM_SERVER_DEV_MODE": "1"} if is_loopback(self._host) else {}),
            **os.environ,
        }
        environment.pop(API_KEY_VARIABLE, None)
        if names_of(self._options) & CACHE_OPTIONS and CACHE_VARIABLE not in os.environ:
            del environment[CACHE_VARIABLE]
        # As in an activated environment: vLLM compiles at run time with the tools beside its Python.
        environment["PATH"] = f"{Path(self.python).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        if self._api_key:
            environment["VLLM_API_KEY"] = self._api_key
        return environment

    def _log(self) -> str:
        return "\n".join(line for line in super()._log().splitlines() if not NOISE.match(line))

    def _explain(self, log: str) -> str:
        return likely_cause(log)


def find_python(python: str | Path | None = None) -> str:
    """Find the Python with vLLM: `python`, else `$R3AGENT_VLLM_PYTHON`, else this one if it has vLLM.

    Raises:
        ConfigError: there is none, or the given path is not a program.
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
