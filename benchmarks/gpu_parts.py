"""Parts of the check on a GPU, each in a process of its own: `gpu_check.py` runs them, and says what they measure."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.gpu_check import SHAPES, SIDES
from benchmarks.train_step import Peak, dataset_of, rows
from r3agent import OpenAIPolicy, Sampling
from r3agent._util.aio import gather_all, run_sync
from r3agent.serve import ServerProcess, VLLMProcess
from r3agent.train import PolicyStart, Row, TrainConfig, to_dataset
from r3agent.train.mismatch import measure
from r3agent.train.weights import load_model, load_tokenizer

SHARPNESS = 6.0
"""Weight of the final norm, which is 1 in a new model."""
SPECIAL = ["<pad>", "<eos>", "<unk>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def checkpoint(options: argparse.Namespace) -> int:
    """Save a model with random weights in bfloat16, and a tokenizer whose token i is the word `wi`.

    Returns:
        the number of its weights.
    """
    torch.manual_seed(0)
    size = SHAPES[options.shape]
    config = LlamaConfig(
        **size,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.model.norm.weight.data.fill_(SHARPNESS)
    model.to(torch.bfloat16).save_pretrained(options.model)
    words = Tokenizer(WordLevel({word(i): i for i in range(size["vocab_size"])}, unk_token=SPECIAL[2]))
    words.pre_tokenizer = WhitespaceSplit()
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(options.model)
    return model.num_parameters()


def word(i: int) -> str:
    """Return the text of a token."""
    return SPECIAL[i] if i < len(SPECIAL) else f"w{i}"


def recorded(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make recorded rows of random tokens, the same in every process."""
    return rows(options.case, options.groups, SHAPES[options.shape]["vocab_size"])


# ---- one side of a case, in its own process ----


def config_of(options: argparse.Namespace, side: str, epochs: int) -> TrainConfig:
    prompt_tokens, completion_tokens, n_completions = map(int, options.case.split("/"))
    shares = side == "shared"
    group = prompt_tokens + (1 + n_completions) * completion_tokens
    return TrainConfig(
        method="full",
        dtype="bfloat16",
        share_prompt=shares,
        micro_batch_tokens=group if shares else n_completions * (prompt_tokens + completion_tokens),
        gradient_checkpointing=options.checkpointing,
        epochs=epochs,
    )


def trainer_of(options: argparse.Namespace, dataset: Any, config: TrainConfig, output: str) -> Any:
    from r3agent.train.grpo import OfflineGRPOTrainer  # TRL takes seconds to load, and the server does without it

    start = PolicyStart(version="v0000", name="check", model=str(options.model))
    trainer = OfflineGRPOTrainer(load_model(start, config), dataset, load_tokenizer(start), config, Path(output))
    if trainer.packs != config.share_prompt:
        raise SystemExit("the trainer does not share prompts, so there is nothing to compare")
    return trainer


def time_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Time the optimizer steps of one side, and measure its memory."""
    dataset = dataset_of(recorded(options), int(options.case.split("/")[2]))
    gpu = torch.cuda if torch.cuda.is_available() else None
    seconds, held = list[float](), list[int]()

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gpu:
                gpu.synchronize()
            seconds.append(-time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gpu:
                gpu.synchronize()
            seconds[-1] += time.perf_counter()
            if gpu and not held:  # the optimizer's state is there from the first step on
                held.append(gpu.memory_allocated())
                gpu.reset_peak_memory_stats()

    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(options, dataset, config_of(options, options.part, options.steps + 1), output)
        trainer.score()
        trainer.add_callback(Clock())
        loaded, peak = (process := psutil.Process()).memory_info().rss, Peak(process)
        trainer.train()
    above = gpu.max_memory_allocated() - held[0] if gpu else peak.bytes - loaded
    return {"step_s": round(median(seconds[1:]), 5), "peak_mib": round(above / 2**20, 1)}


def compare_served(options: argparse.Namespace) -> dict[str, Any]:
    """Compare recorded logprobs with those of the trainer, with shared prompts and with padded rows."""
    served = [Row(**row) for row in json.loads(options.file.read_text())]
    found: dict[str, Any] = {}
    for side in SIDES:
        config = config_of(options, side, epochs=1)
        with tempfile.TemporaryDirectory() as output:
            trainer = trainer_of(options, to_dataset(served), config, output)
            scores = trainer.logprobs([(row.prompt_ids_P, row.completion_ids_T) for row in served])
        mismatch = measure(served, scores, "v0000", config)
        assert mismatch.gap is not None
        numbers = {"mean": mismatch.gap.mean, "p99": mismatch.gap.p99, "max": mismatch.gap.max, "ess": mismatch.ess}
        found[side] = {name: round(number, 6) for name, number in numbers.items() if number is not None}
    return found


# ---- the server ----


def sample(options: argparse.Namespace) -> dict[str, Any]:
    """Make the checkpoint, serve it, and record completions as rows in a file."""
    parameters = checkpoint(options)
    _, completion_tokens, n_completions = map(int, options.case.split("/"))
    prompts = [row["prompt"] for row in recorded(options)[::n_completions]]
    has_vllm = bool(os.environ.get("R3AGENT_VLLM_PYTHON")) or importlib.util.find_spec("vllm") is not None
    own: Any = {"name": "check", "log_path": options.file.with_suffix(".log"), "timeout_s": 180}
    server = (
        VLLMProcess(options.model, options=["--no-enable-lora", "--gpu-memory-utilization", "0.3"], **own)
        if has_vllm
        else ServerProcess(options.model, options=["--kv-cache-gib", "1"], **own)
    )
    sampling = Sampling(max_tokens=completion_tokens, seed=0, extra={"ignore_eos": True})
    with server, closing(OpenAIPolicy(server.base_url, "check", sampling=sampling)) as policy:
        ask = (
            policy.sample([{"role": "user", "content": " ".join(map(word, ids))}], n=n_completions) for ids in prompts
        )

        async def all_of_them() -> Any:
            return await gather_all(ask)

        groups = run_sync(all_of_them())
    blank = dict.fromkeys(Row._fields)
    served = [
        {
            **blank,
            "group_id": str(i),
            "span_id": f"{i}.{j}",
            "trajectory_id": str(i),
            "label": "attempt",
            "policy_version": "v0000",
            "prompt_ids_P": [*(made.prompt_token_ids or ())],
            "completion_ids_T": [*(made.token_ids or ())],
            "logprobs_T": [*(made.logprobs or ())],
            "truncated": False,
            "reward": 0.0,
            "advantage": 1.0,
        }
        for i, group in enumerate(groups)
        for j, made in enumerate(group)
    ]
    options.file.write_text(json.dumps(served))
    tokens = sum(len(row["logprobs_T"]) for row in served)
    return {"server": "vllm" if has_vllm else "embedded", "parameters": parameters, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["sample", *SIDES, "mismatch"])
    parser.add_argument("--model", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--case", help="prompt/completion/group")
    parser.add_argument("--groups", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--file", type=Path, help="of the recorded rows")
    options = parser.parse_args()
    parts = {"sample": sample, "mismatch": compare_served}
    print(json.dumps(parts.get(options.part, time_steps)(options)))


if __name__ == "__main__":
    main()
