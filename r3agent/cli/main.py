"""The command line: parse, call, print, exit code. What the verbs do is in `commands.py`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from r3agent.cli.commands import API_KEY, COMMANDS, DEFAULT_RUN
from r3agent.errors import R3Error, TrainingInterrupted
from r3agent.serve.process.flags import CLI, FLAGS

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

RUN: dict[str, dict[str, Any]] = {
    "--run": {"metavar": "DIR", "default": DEFAULT_RUN, "help": "run directory (default %(default)s)"},
    "--set": {
        "metavar": "SECTION.KEY=VALUE",
        "action": "append",
        "default": [],
        "help": "any setting of r3.toml; counts more than the file; may be repeated",
    },
    "--url": {"metavar": "URL", "dest": "policy.base_url", "help": "OpenAI-compatible endpoint, ending in /v1"},
}
SUBJECT: dict[str, dict[str, Any]] = {
    "--model": {"metavar": "NAME", "dest": "policy.model", "help": "served name of the base model"},
    "--base-model": {"metavar": "DIR", "dest": "policy.base_model", "help": "its weights, for training"},
    "--task": {"metavar": "TASK", "dest": "task.source", "help": "a source, hf:NAME, a file or module:callable"},
    "--verifier": {"metavar": "NAME", "dest": "task.verifier", "help": "a verifier or module:callable"},
    "--seed": {"metavar": "S", "type": int, "dest": "task.seed", "help": "of the tasks"},
}
COLLECT: dict[str, dict[str, Any]] = {
    "--n": {"metavar": "N", "type": int, "dest": "collect.n", "help": "tasks"},
    "--samples": {"metavar": "K", "type": int, "dest": "collect.samples", "help": "episodes of each task"},
    "--reflections": {"metavar": "G", "type": int, "dest": "collect.reflections", "help": "of each failed try"},
    "--retries": {"metavar": "M", "type": int, "dest": "collect.retries", "help": "after each reflection"},
    "--blind-retries": {"metavar": "B", "type": int, "dest": "collect.blind_retries", "help": "as a control"},
    "--concurrency": {"metavar": "C", "type": int, "dest": "collect.concurrency", "help": "episodes at once"},
}

# Verb: (what it does, an example, its flags). Flags whose destination has a dot override that setting.
VERBS: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "init": ("write r3.toml with every setting explained", "init --run runs/mine --task tasks.jsonl", RUN | SUBJECT),
    "serve": (
        "serve a model: with a small server of r3agent's own, or with vLLM",
        "serve my-model --engine vllm --port 8000 -- --max-num-seqs 64",
        {**FLAGS, **CLI, "--set": RUN["--set"]},
    ),
    "doctor": (
        "say what an endpoint can do and what its spans are good for, leaving it as it is",
        "doctor http://127.0.0.1:8000 --model my-model",
        {
            "url": {"help": "OpenAI-compatible endpoint, with or without /v1"},
            "--model": {"metavar": "NAME", "help": "served name; default: the first it lists"},
            "--api-key-env": {"metavar": "NAME", "default": API_KEY, "help": "has the key; default %(default)s"},
        },
    ),
    "audit": (
        "look at tasks and their verifier before anyone spends tokens on them",
        "audit --task countdown --n 200 --model-limit 4096",
        {
            **RUN,
            **SUBJECT,
            "--run": {"metavar": "DIR", "help": "take the settings of its r3.toml"},
            "--n": {"metavar": "N", "type": int, "dest": "audit.n", "help": "tasks that the verifier is tried on"},
            "--model-limit": {
                "metavar": "TOKENS",
                "type": int,
                "dest": "audit.model_limit",
                "help": "of prompt and completion; default: what the endpoint named with --url or --run says",
            },
        },
    ),
    "collect": (
        "run episodes with the live policy and store them",
        "collect --task countdown --n 512 --reflections 8",
        RUN | SUBJECT | COLLECT,
    ),
    "train": (
        "make a new policy version from what was collected",
        "train --set train.learning_rate=1e-4",
        {
            "--resume": {"action": "store_true", "help": "go on from the last checkpoint of an interrupted one"},
            "--force": {"action": "store_true", "help": "train on another policy's rows too; the card says so"},
            **RUN,
        },
    ),
    "deploy": (
        "bring a version onto the running server and make it live",
        "deploy v0001",
        {"version": {"nargs": "?", "help": "default: the newest"}, **RUN},
    ),
    "rollback": (
        "return to an earlier version",
        "rollback --to v0003",
        {"--to": {"metavar": "VERSION", "help": "default: the one that was live before"}, **RUN},
    ),
    "eval": (
        "compare two versions on the same frozen tasks; before there are two, measure the one",
        "eval --before v0000 --after v0002 --n 500",
        {
            "--before": {"metavar": "VERSION", "default": "v0000", "help": "default %(default)s, the base"},
            "--after": {"metavar": "VERSION", "help": "default: the live one"},
            "--n": {"metavar": "N", "type": int, "dest": "eval.n", "help": "tasks"},
            **RUN,
        },
    ),
    "loop": (
        "collect, train, deploy and evaluate, round after round",
        "loop --rounds 3 --task countdown",
        {"--rounds": {"metavar": "R", "type": int, "dest": "loop.rounds", "help": "versions to make"}, **RUN}
        | SUBJECT
        | COLLECT,
    ),
    "inspect": (
        "show a run, or one trajectory as a conversation with every token's label, credit and logprob",
        "inspect runs/mine 3f2a9c0d",
        {
            "words": {"nargs": "*", "metavar": "RUN [TRAJECTORY]", "help": f"directory; id (default {DEFAULT_RUN})"},
            "--run": {"metavar": "DIR", "help": "the run directory, as for other verbs; then only TRAJECTORY"},
            "--set": RUN["--set"],
        },
    ),
    "label": (
        "attach a verdict to a stored episode whose truth came later",
        "label runs/prod 3f2a9c0d --failed --feedback 'the customer sent it back'",
        {
            "run": {"metavar": "RUN", "help": "run directory, or its trajectories/"},
            "trajectory": {"metavar": "TRAJECTORY", "help": "its id, or what it begins with"},
            "--passed": {"action": "store_true", "help": "it was right"},
            "--failed": {"action": "store_true", "help": "it was not"},
            "--span": {"metavar": "SPAN", "help": "which try; default: the one that answered"},
            "--feedback": {"metavar": "TEXT", "help": "why, for people"},
        },
    ),
    "demo": (
        "the whole loop on this machine with the bundled policy, in minutes",
        "demo --out runs/demo --seed 0",
        {
            "--out": {"metavar": "DIR", "default": "runs/demo", "help": "run directory (default %(default)s)"},
            "--seed": {"metavar": "S", "type": int, "default": 0, "help": "default %(default)s"},
        },
    ),
}


def parser() -> argparse.ArgumentParser:
    """One sub-parser for each verb."""
    top = argparse.ArgumentParser(
        prog="r3agent", description="LLM applications that get better from their own failures."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (does, example, flags) in VERBS.items():
        sub = verbs.add_parser(
            verb, help=does, description=f"{does.capitalize()}.", epilog=f"example: r3agent {example}"
        )
        for flag, settings in flags.items():
            sub.add_argument(flag, **settings)
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout, for machines")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    ours = words.index("--") if "--" in words else len(words)
    top = parser()
    options = top.parse_args(words[:ours])
    options.further = words[ours + 1 :]
    if options.further and options.verb != "serve":
        top.error(f"{' '.join(options.further)}: only serve takes options after --")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # A terminated process stops as an interrupted one does: what is stored is whole, and servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Of several processes that a launcher started to train, the first one speaks.
    silent = options.verb == "train" and os.environ.get("RANK", "0") != "0"
    try:
        outcome = COMMANDS[options.verb](options)
        if not silent:
            print(orjson.dumps(outcome.data).decode() if options.json else outcome.text, flush=True)
    except R3Error as error:
        if not silent:
            print(f"r3agent {options.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read it, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return FAILED
    except KeyboardInterrupt as interrupt:
        again = (
            "the same command with --resume"
            if isinstance(interrupt, TrainingInterrupted) and options.verb == "train"
            else "the same command"
        )
        if not silent:
            print(f"r3agent {options.verb}: interrupted; {again} goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0 if outcome.ok else FAILED


def run() -> None:
    """The console script."""
    sys.exit(main())
