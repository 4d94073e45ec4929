"""Settings of vLLM's CPU build that its own defaults do not suit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from r3agent.serve.process.process import Choice

LORA_SLOTS = ("--max-loras", "16", "--max-cpu-loras", "16")
"""Options that keep the last adapter slot empty: vLLM 0.32 applies that slot's adapter to the base model's rows of a
mixed batch, and an unloaded adapter keeps its slot until another needs it."""

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors that compute in bfloat16; vLLM emulates it on the others. The last one is ARM's."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` that vLLM 0.32 takes."""

CORE_VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU"}
"""Variables by which a user chooses the cores."""

PARALLEL = {"-tp", "-pp", "-dp", "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"}
"""Options that start several workers, whose threads a user distributes."""


def is_cpu_build(python: str) -> bool:
    """Return True if the environment of a Python has vLLM's CPU build."""
    packages = Path(python).parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    return next(packages, None) is not None


def choose_options(
    given: Sequence[str], *, lora_rank: int | None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> list[Choice]:
    """Choose what the given options leave open.

    Args:
        given: options for vLLM that the user chose.
        lora_rank: largest rank of the adapters that are loaded, 0 without any; `None` if it is not known.
        cpuinfo: file with the flags of the processor; on systems without one, nothing is chosen by them.
    """
    names = {option.split("=")[0].replace("_", "-") for option in given}
    choices: list[Choice] = []
    flags = _flags(cpuinfo)
    if "--dtype" not in names and flags and not flags & BFLOAT16:
        reason = "this processor has no bfloat16, which vLLM would emulate; --dtype overrides it"
        choices.append(Choice(("--dtype", "float32"), reason))
    if lora_rank is None or names & {"--max-lora-rank", "--no-enable-lora"}:
        return choices
    if lora_rank == 0:
        reason = "train.method is full, and each token would cost the time of an adapter; --enable-lora overrides it"
        return choices if "--enable-lora" in names else [*choices, Choice(("--no-enable-lora",), reason)]
    if (rank := next((rank for rank in RANKS if rank >= lora_rank), None)) is not None:
        reason = f"train.lora_r is {lora_rank}, and each token costs the time of this rank in every layer"
        choices.append(Choice(("--max-lora-rank", str(rank)), reason))
    return choices


def choose_cores(
    given: Sequence[str], environment: Mapping[str, str], *, cores: int, quota: float | None
) -> list[Choice]:
    """Choose the number of threads where vLLM's own choice exceeds what the container may use.

    vLLM binds a thread to each core of its affinity but the last, which is for its scheduler. It does not see a quota
    such as that of `docker --cpus`: threads beyond it are stopped for a part of each period, while the others wait for
    them. Under a quota they are not bound, since other containers bind theirs to the first cores too.

    Args:
        given: options for vLLM that the user chose.
        environment: environment of the process; its own variables for cores are left as they are.
        cores: physical cores in the affinity.
        quota: cores' worth of time that the container may use; `None` without a limit.
    """
    names = {option.split("=")[0].replace("_", "-") for option in given}
    if quota is None or names & PARALLEL or environment.keys() & CORE_VARIABLES:
        return []
    started, threads = max(1, cores - 1), max(1, int(quota) - 1)
    if started <= max(quota, threads):
        return []
    reason = (
        f"the container may use the time of {quota:g} cores, and vLLM would start {started} threads; "
        "VLLM_CPU_OMP_THREADS_BIND overrides it"
    )
    return [Choice((), reason, (("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("OMP_NUM_THREADS", str(threads))))]


def _flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(found, []))
