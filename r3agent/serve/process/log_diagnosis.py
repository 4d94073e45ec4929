"""Diagnosis of a vLLM server's failure from its log."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Cause of a failure, recognised by a line of the log, and its remedy."""

    pattern: str
    """Regular expression, searched in the whole log; its groups fill the placeholders of the cause."""
    cause: str
    remedy: str


MAX_CHARS = 300
"""Maximum length of a log line in a diagnosis."""
LESS_MEMORY = (
    "give it less: -- --gpu-memory-utilization 0.7 on a GPU, VLLM_CPU_KVCACHE_SPACE=1 (GiB; 2 unless it is set) on a "
    "CPU; a smaller --max-model-len helps too"
)
CAUSES = (
    Cause(
        r"No module named 'vllm[.']",
        "that Python has no vLLM",
        "pip install vllm there, or name another with --vllm-python or $R3AGENT_VLLM_PYTHON",
    ),
    Cause(
        r"error: unrecognized arguments: (.+)",
        "this vLLM has no option {0}",
        "see vllm serve --help=all for those of its version",
    ),
    Cause(
        r"api_server\.py: error: (argument .+)",
        "an option of vLLM does not fit: {0}",
        "see vllm serve --help=all for what it takes",
    ),
    Cause(
        r"\[Errno \d+\] [Aa]ddress already in use|error while attempting to bind on address",
        "the port was taken while vLLM was starting",
        "start it again with another --port, or 0 for a free one",
    ),
    Cause(
        "LoRA is not enabled",
        "LoRA is disabled, and an adapter was to be loaded",
        "leave out --no-enable-lora",
    ),
    Cause(
        r"Loading lora (\S+) failed",
        "the adapter {0} of --lora-modules does not load",
        "its path has to be a directory with adapter_config.json and adapter_model.safetensors",
    ),
    Cause(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|RepositoryNotFoundError|GatedRepoError"
        r"|Can't load the configuration of '|is not a local folder and is not a valid model identifier",
        "the hub has no such model, or cannot be reached",
        "check the id and the network, or pass a directory with the checkpoint",
    ),
    Cause(
        r"Invalid repository ID or local directory specified: '(.+?)'",
        "{0} is not a checkpoint",
        "it needs config.json, a tokenizer and *.safetensors",
    ),
    Cause(
        r"SafetensorError: |Cannot find any model weights with",
        "the checkpoint's weights are missing or cut off",
        "copy or save them again",
    ),
    Cause(
        r"max_model_len \((\d+)\) is greater than the derived max_model_len \(.*?=(\d+)",
        "--max-model-len {0} is more than the model's {1} tokens",
        "pass at most that",
    ),
    Cause(
        r"No available memory for the cache blocks|larger than the available KV cache"
        r"|less than desired GPU memory utilization|is less than requested memory for kv"
        r"|OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate",
        "there is too little memory for the weights and the keys and values",
        LESS_MEMORY,
    ),
    Cause(
        r"^exit code (?:137|-9)$|died unexpectedly|Failed core proc\(s\): .*-9",
        "one of its processes was killed, as the system does when memory runs out",
        LESS_MEMORY,
    ),
    Cause(
        "CPU Generator does not use offset",
        "a request had a seed, and vLLM's CPU build ends when it computes the prompt of such a request in parts",
        "leave sampling.seed out, or pass -- --no-enable-chunked-prefill, with a --max-model-len that fits one batch",
    ),
    Cause(
        r"engine core exited unexpectedly|EngineDeadError",
        "vLLM's engine died while it was serving",
        f"its traceback is in the log; if there is none, the system killed it: {LESS_MEMORY}",
    ),
)
"""Causes from the most specific to the most general; the first match counts."""


PREFIX = re.compile(r"^(\([^)]*\) )?(\w+ [\d-]+ [\d:]+ \[\S+\] )?\s*")
"""Prefix of vLLM's log lines."""


def likely_cause(log: str) -> str:
    """Return the first of `CAUSES` in the log, with its remedy and the last matching line; empty if there is none."""
    for known in CAUSES:
        if found := [*re.finditer(known.pattern, log, re.MULTILINE)]:
            start, end = log.rfind("\n", 0, found[-1].start()) + 1, log.find("\n", found[-1].end())
            line = PREFIX.sub("", log[start : end if end >= 0 else len(log)])[:MAX_CHARS]
            return f"{known.cause.format(*found[-1].groups())}; {known.remedy}\nit says: {line}"
    return ""
