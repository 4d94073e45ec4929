"""Time and peak memory of training on a batch against stock `trl.GRPOTrainer`, on the same recorded batch.

    python benchmarks/train_step.py [--cases 350/80/8 …] [--groups 1] [--rounds 3] [--method full] [--no-checkpointing]

A case is prompt tokens / completion tokens / completions per prompt. The model is a randomly initialised Llama with the
dimensions of SmolLM2-135M, in float32; a step trains on `--groups` such groups, one per micro-batch on both sides.
Stock TRL gets the recorded tokens through `rollout_func`, so it generates nothing. Our time includes the scoring of all
rows with the starting weights, which precedes every training; `step_ratio` is that of the optimizer step alone, and
approximates a training of one epoch whose recorded logprobs are close, since it scores a tenth of its rows. Stock TRL
scores nothing, because it takes the rows for samples of the current policy. Each side runs in its own process; they
take turns, and a ratio is the median over the rounds. Memory is the peak of resident memory above its value when the
model was loaded. `max_logprob_diff` is over all completion tokens under the starting weights. r3agent is better where a
time ratio is above 1 and a memory ratio below 1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

VOCABULARY = 49152

Score: TypeAlias = Callable[[], list[list[float]]]
"""Function that computes the logprobs of all rows under the current weights."""


def rows(case: str, n_groups: int, vocabulary: int = VOCABULARY) -> list[dict[str, Any]]:
    """Make recorded rows, the same in every process."""
    prompt_tokens, completion_tokens, n_completions = map(int, case.split("/"))
    draw = partial(random.Random(case).choices, range(vocabulary))
    return [
        {"prompt": prompt, "completion": draw(k=completion_tokens), "reward": float(i % 2)}
        for prompt in (draw(k=prompt_tokens) for _ in range(n_groups))
        for i in range(n_completions)
    ]


def dataset_of(recorded: Sequence[dict[str, Any]], n_completions: int) -> Any:
    """Make the data set of `rows` that r3agent's trainer reads, in groups of `n_completions`."""
    from datasets import Dataset

    from r3agent.train import Row

    blank = dict.fromkeys(Row._fields)
    return Dataset.from_list(
        [
            {**blank, "group_id": str(i // n_completions), "span_id": str(i), "reward": row["reward"]}
            | {"prompt_ids_P": row["prompt"], "completion_ids_T": row["completion"], "advantage": 2 * row["reward"] - 1}
            for i, row in enumerate(recorded)
        ]
    )


# ---- one side, in its own process ----


def side(name: str, options: argparse.Namespace) -> None:
    """Print the logprobs of the starting weights, then seconds of scoring and step for each line read, finally MiB."""
    import psutil
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rope_theta=100000.0,
            max_position_embeddings=8192,
        )
    )
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    baseline = (process := psutil.Process()).memory_info().rss

    with tempfile.TemporaryDirectory() as directory:
        trainer, score = (ours if name == "ours" else stock)(model, tokenizer, options, directory)
        print(json.dumps(score()), flush=True)
        peak = Peak(process)
        clock = Turns(score if name == "ours" else lambda: None)
        trainer.add_callback(clock.callback())
        trainer.train()
    print((peak.bytes - baseline) / 2**20, flush=True)


class Peak(threading.Thread):
    """Thread that samples peak resident memory, because `ru_maxrss` includes the loading of the model."""

    def __init__(self, process: Any) -> None:
        super().__init__(daemon=True)
        self.process, self.bytes = process, 0
        self.start()

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, self.process.memory_info().rss)
            time.sleep(0.02)


class Turns:
    """Control of a training that runs one step for each line of input."""

    def __init__(self, score: Callable[[], Any]) -> None:
        self.score, self.began, self.scored = score, 0.0, 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        turns = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.wait()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                print(turns.scored - turns.began, time.perf_counter() - turns.scored, flush=True)
                if state.global_step < state.max_steps:
                    turns.wait()

        return Callback()

    def wait(self) -> None:
        sys.stdin.readline()
        self.began = time.perf_counter()
        self.score()
        self.scored = time.perf_counter()


def ours(model: Any, tokenizer: Any, options: argparse.Namespace, directory: str) -> tuple[Any, Score]:
    from r3agent.train import TrainConfig
    from r3agent.train.grpo import OfflineGRPOTrainer

    prompt_tokens, completion_tokens, n_completions = map(int, options.case.split("/"))
    recorded = rows(options.case, options.groups)
    config = TrainConfig(
        method=options.method,
        gradient_checkpointing=not options.no_checkpointing,
        micro_batch_tokens=prompt_tokens + (1 + n_completions) * completion_tokens,
        beta=0.0,
        epochs=options.rounds + 1,
    )
    trainer = OfflineGRPOTrainer(model, dataset_of(recorded, n_completions), tokenizer, config, Path(directory))
    assert trainer.packs
    pairs = [(row["prompt"], row["completion"]) for row in recorded]
    trainer.score()
    return trainer, lambda: trainer.logprobs(pairs)


def stock(model: Any, tokenizer: Any, options: argparse.Namespace, directory: str) -> tuple[Any, Score]:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    n_completions = int(options.case.split("/")[2])
    recorded = rows(options.case, options.groups)
    groups = [recorded[i : i + n_completions] for i in range(0, len(recorded), n_completions)]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        siblings = {str(i): iter(group) for i, group in enumerate(groups)}
        chosen = [next(siblings[prompt]) for prompt in prompts]
        return {
            "prompt_ids": [row["prompt"] for row in chosen],
            "completion_ids": [row["completion"] for row in chosen],
            "logprobs": None,
            "recorded": [row["reward"] for row in chosen],
        }

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda recorded, **_: recorded,
        rollout_func=rollout,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(groups))]}),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=n_completions,
            gradient_accumulation_steps=options.groups,
            num_generations=n_completions,
            max_completion_length=int(options.case.split("/")[1]),
            num_train_epochs=options.rounds + 1,
            gradient_checkpointing=not options.no_checkpointing,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
        ),
    )
    ids = torch.tensor([row["prompt"] + row["completion"] for row in recorded])

    @torch.no_grad()
    def score() -> list[list[float]]:
        trainer.model.eval()
        return [
            trainer._get_per_token_logps_and_entropies(
                trainer.model, row[None], torch.ones_like(row[None]), len(recorded[0]["completion"])
            )[0][0].tolist()
            for row in ids
        ]

    return trainer, score


# ---- both ----


def compare(case: str, options: argparse.Namespace) -> dict[str, float]:
    sides = {name: start(name, case, options) for name in ("stock", "ours")}
    try:
        return measure(case, sides, options.rounds)
    finally:
        for process in sides.values():
            process.kill()


def measure(case: str, sides: dict[str, subprocess.Popen[str]], rounds: int) -> dict[str, float]:
    logprobs = {name: chain(*json.loads(read(process))) for name, process in sides.items()}
    scoring: dict[str, list[float]] = {name: [] for name in sides}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, process in sides.items():
            print(file=process.stdin, flush=True)
            score_s, step_s = map(float, read(process).split())
            scoring[name].append(score_s)
            steps[name].append(step_s)
        times = ", ".join(f"{name} {scoring[name][-1]:.2f} s + {steps[name][-1]:.2f} s" for name in sides)
        print(f"{case} {'warm-up' if not turn else f'round {turn}'}: {times}", flush=True)
    peak = {name: float(read(process)) for name, process in sides.items()}
    print(f"{case} peak above the model: {', '.join(f'{name} {mib:.0f} MiB' for name, mib in peak.items())}")
    turns = list(zip(steps["stock"], scoring["ours"], steps["ours"], strict=True))[1:]
    return {
        "ratio": round(median(theirs / (score + step) for theirs, score, step in turns), 3),
        "step_ratio": round(median(theirs / step for theirs, _, step in turns), 3),
        "scoring_share": round(median(score / (score + step) for _, score, step in turns), 3),
        "memory_ratio": round(peak["ours"] / peak["stock"], 3),
        "max_logprob_diff": max(abs(a - b) for a, b in zip(logprobs["stock"], logprobs["ours"], strict=True)),
    }


def start(name: str, case: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", name, "--case", case, "--method", options.method]
    command += ["--groups", f"{options.groups}", "--rounds", f"{options.rounds}"]
    command += ["--no-checkpointing"] * options.no_checkpointing
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def read(process: subprocess.Popen[str]) -> str:
    """Read a side's next line of data, skipping log lines."""
    assert process.stdout is not None
    for line in process.stdout:
        if line[0].isdigit() or line.startswith("[["):
            return line
    raise SystemExit(f"a side ended early with exit code {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["350/80/8", "700/60/8"], help="prompt/completion/group")
    parser.add_argument("--groups", type=int, default=1, help="of a step")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps, after one warm-up step")
    parser.add_argument("--method", default="full", choices=["full", "lora"])
    parser.add_argument("--no-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--side", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options)
    else:
        print(json.dumps({case: compare(case, options) for case in options.cases}))


if __name__ == "__main__":
    main()
