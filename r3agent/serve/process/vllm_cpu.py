"""Settings of vLLM's CPU build that its own defaults do not suit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from r3agent.serve.process.process import Choice

LORA_SLOTS = ("--max-loras", "16", "--max-cpu-loras", "16")
"""Options that keep the last adapter slot empty for the first 15 adapters: vLLM 0.32 applies that slot's adapter to the
base model's rows of a mixed batch, and an unloaded adapter keeps its slot until another needs it."""

AMX = "amx_bf16"
BFLOAT16 = {AMX, "bf16"}
"""Flags of processors that multiply matrices of bfloat16, those of ARM last. The others compute a batch faster in
float32, also those with `avx512_bf16` alone (`benchmarks/vllm_cpu.py`)."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` that vLLM 0.32 takes."""

CORE_VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU"}
"""Variables by which a user chooses the cores."""

QUANTIZATION = {"-q", "--quantization"}
"""Options of quantised weights, which decide on the type and cannot be merged."""

PARALLEL = {"-tp", "-pp", "-dp", "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"}
"""Options that start several workers, whose threads a user distributes."""

CACHE_OPTIONS = {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}
"""Options by which a user sizes the KV cache. The build's own variable for it takes precedence over them."""

LARGE_RANK = 16
"""Rank from which adapters are merged: a token takes several times as long with one, with AMX also than in float32
(`benchmarks/vllm_cpu.py`). Smaller ones cost less, and are served beside the live version, which merged weights replace
while another is evaluated."""


def names_of(options: Sequence[str]) -> set[str]:
    """Return the names of options of vLLM, which takes `--max_loras=2` for `--max-loras 2`; values stay as they are."""
    return {option.split("=")[0].replace("_", "-") for option in options}


def is_cpu_build(python: str) -> bool:
    """Return True if the environment of a Python has vLLM's CPU build."""
    packages = Path(python).parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    return next(packages, None) is not None


def has_quantised_weights(checkpoint: str) -> bool:
    """Return True if the weights in a directory are quantised; those of a hub id are not known to be."""
    try:
        return "quantization_config" in json.loads((Path(checkpoint) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False


def choose_options(
    given: Sequence[str],
    *,
    lora_rank: int | None,
    can_merge: bool = False,
    is_quantised: bool = False,
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> list[Choice]:
    """Choose what the given options leave open.

    Adapters are merged by choice only where the weights are float32: rounded to bfloat16, the sum loses small changes.

    Args:
        given: options for vLLM that the user chose.
        lora_rank: largest rank of the adapters that are loaded, 0 without any; `None` if it is not known.
        can_merge: a deploy can merge adapters into the weights, and reload these.
        is_quantised: the checkpoint's weights are quantised.
        cpuinfo: file with the flags of the processor; on systems without one, nothing is chosen by them.
    """
    names, flags = names_of(given), _flags(cpuinfo)
    if names & {"--max-lora-rank", "--no-enable-lora"}:
        lora_rank = None
    is_quantised = is_quantised or bool(names & QUANTIZATION)
    is_type_open = "--dtype" not in names and not is_quantised
    merges = can_merge and not is_quantised and (lora_rank or 0) >= LARGE_RANK and "--enable-lora" not in names
    choices: list[Choice] = []
    if is_type_open and flags and not flags & BFLOAT16:
        reason = "this processor computes a batch faster than in bfloat16, with twice the memory; --dtype overrides it"
        choices.append(Choice(("--dtype", "float32"), reason))
    elif is_type_open and AMX in flags and merges:
        reason = "merged weights need it, with twice the memory: an adapter costs more time; --dtype overrides it"
        choices.append(Choice(("--dtype", "float32"), reason))
    if lora_rank is None:
        return choices
    if "--enable-lora" not in names:
        if lora_rank == 0:
            reason = "train.method is full, and each token would cost an adapter's time; --enable-lora overrides it"
            return [*choices, Choice(("--no-enable-lora",), reason)]
        if merges and _is_float32([*given, *(option for choice in choices for option in choice.options)]):
            reason = (
                f"adapters of rank {lora_rank} take most of a token's time, so a deploy merges them into the "
                "weights; --enable-lora serves them beside the base model"
            )
            return [*choices, Choice(("--no-enable-lora",), reason)]
    if lora_rank == 0:
        return choices
    if (rank := next((rank for rank in RANKS if rank >= lora_rank), None)) is not None:
        reason = f"train.lora_r is {lora_rank}, and each token costs the time of this rank in every layer"
        choices.append(Choice(("--max-lora-rank", str(rank)), reason))
    return choices


def choose_cores(
    given: Sequence[str], environment: Mapping[str, str], *, cores: int, quota: float | None
) -> list[Choice]:
    """Choose the number of threads where vLLM's own choice does not suit the machine.

    vLLM binds a thread to each core of its affinity but the last, which is for its scheduler. Of two cores, that one
    would wait most of the time: there both compute (`benchmarks/vllm_cpu.py`). vLLM does not see a quota such as that
    of `docker --cpus`: threads beyond it are stopped for a part of each period, while the others wait for them. Under a
    quota they are not bound, since other containers bind theirs to the first cores too.

    Args:
        given: options for vLLM that the user chose.
        environment: environment of the process; its own variables for cores are left as they are.
        cores: physical cores in the affinity.
        quota: cores' worth of time that the container may use; `None` without a limit.
    """
    names = names_of(given)
    if names & PARALLEL or environment.keys() & CORE_VARIABLES:
        return []
    if cores == 2 and (quota is None or quota >= cores):
        reason = "both cores compute, of which vLLM would keep one for its scheduler; the variable overrides it"
        return [Choice((), reason, (("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),))]
    if quota is None:
        return []
    started, threads = max(1, cores - 1), max(1, int(quota) - 1)
    if started <= max(quota, threads):
        return []
    reason = (
        f"the container may use the time of {quota:g} cores, and vLLM would start {started} threads; "
        "VLLM_CPU_OMP_THREADS_BIND overrides it"
    )
    return [Choice((), reason, (("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("OMP_NUM_THREADS", str(threads))))]


def _is_float32(options: Sequence[str]) -> bool:
    """Return True if the options choose float32; the last one counts."""
    words = [word for option in options for word in option.split("=", 1)]
    types = [value for name, value in pairwise(words) if name == "--dtype"]
    return bool(types) and types[-1] in ("float32", "float")


def _flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(found, []))
