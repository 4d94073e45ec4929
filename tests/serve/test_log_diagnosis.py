"""Meanings of the end of a vLLM log. The excerpts are those of real servers that were started wrongly."""

from __future__ import annotations

import pytest

from r3agent.serve.process.log_diagnosis import likely_cause

TRACEBACK = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
"""How every log ends when the cause is in another process than the one that ends last."""


@pytest.mark.parametrize(
    ("log", "cause", "remedy"),
    [
        (
            "/usr/bin/python: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
            "(ModuleNotFoundError: No module named 'vllm')",
            "that Python has no vLLM",
            "--vllm-python",
        ),
        (
            "(Worker pid=7) ERROR 11-30 03:09:35 [multiproc_executor.py:1063] RuntimeError: CPU Generator does not use "
            "offset\nvllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
            "a request had a seed",
            "--no-enable-chunked-prefill",
        ),
        (
            "api_server.py: error: unrecognized arguments: --max-nun-seqs",
            "this vLLM has no option --max-nun-seqs",
            "vllm serve --help",
        ),
        (
            "api_server.py: error: argument --max-num-seqs: invalid int value: 'many'",
            "an option of vLLM does not fit: argument --max-num-seqs: invalid int value: 'many'",
            "vllm serve --help",
        ),
        (
            "    sock.bind(addr)\nOSError: [Errno 98] Address already in use",
            "the port was taken while vLLM was starting",
            "another --port",
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
            "specified revision on the local disk and outgoing traffic has been disabled.",
            "the hub has no such model, or cannot be reached",
            "check the id",
        ),
        (
            "  Value error, Invalid repository ID or local directory specified: '/tmp/empty'.\n"
            "Please verify the following requirements:",
            "/tmp/empty is not a checkpoint",
            "config.json",
        ),
        (
            "(Worker pid=7) ERROR 11-23 23:10:21 [multiproc_executor.py:953] safetensors._safetensors_rust."
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered\n"
            f"{TRACEBACK}",
            "the checkpoint's weights are missing or cut off",
            "copy or save them again",
        ),
        (
            "ValueError: Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. Use "
            "--enable-lora to enable LoRA.', please check the stack trace above for the root cause",
            "LoRA is disabled",
            "leave out --no-enable-lora",
        ),
        (
            "ValueError: Loading lora x failed: No adapter found for <path>",
            "the adapter x of --lora-modules does not load",
            "adapter_config.json",
        ),
        (
            "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len "
            "(max_position_embeddings=512.0 or model_max_length=None in model's config.json).",
            "--max-model-len 100000 is more than the model's 512 tokens",
            "at most that",
        ),
        (
            "(Worker pid=7) ERROR 11-23 23:19:43 [multiproc_executor.py:1063] ValueError: Available memory on node 0 "
            "(14.01/15.46 GiB) on kv cache allocation is less than requested memory for kv (500.0 GiB). Decrease "
            "--kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes.\n"
            f"{TRACEBACK}",
            "too little memory",
            "VLLM_CPU_KVCACHE_SPACE=1",
        ),
        (
            # The sentence of vLLM's source: what a GPU lacks cannot be made to happen on every machine.
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when",
            "too little memory",
            "--max-model-len",
        ),
        (
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
            "{'EngineCore': -9}\nexit code 1",
            "one of its processes was killed",
            "give it less",
        ),
        (
            "(APIServer pid=7) WARNING 11-23 23:46:17 [core_client.py:817] [shutdown] MPClient: engine core exited "
            "unexpectedly; starting cleanup\nexit code 0",
            "vLLM's engine died while it was serving",
            "its traceback is in the log",
        ),
        ("INFO:     Application startup complete.\nexit code 137", "one of its processes was killed", "give it less"),
    ],
)
def test_real_logs_are_understood(log: str, cause: str, remedy: str) -> None:
    said = likely_cause(log)
    assert cause in said
    assert remedy in said


def test_the_line_that_shows_it_is_printed_without_what_is_before_every_line() -> None:
    log = f"INFO: fine\n(Worker pid=7) ERROR 11-23 23:10:21 [a.py:953] LoRA is not enabled. Use it.\n{TRACEBACK}"
    assert likely_cause(log).endswith("\nit says: LoRA is not enabled. Use it.")


def test_a_log_that_shows_nothing_has_no_cause() -> None:
    assert likely_cause(f"{TRACEBACK}\nexit code 1") == ""
    assert likely_cause("") == ""
