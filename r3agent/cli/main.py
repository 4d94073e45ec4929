"""The command line: parse, call, print, exit code. A verb's module is imported only when the verb is used."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import BoundArguments
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from r3agent._util.interrupts import interrupt
from r3agent._util.launcher import launched_rank
from r3agent.errors import R3Error, TrainingInterrupted

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

    from r3agent.cli.command import Output

FAILED, WRONG_USE, REFUSED, INTERRUPTED = 1, 2, 3, 130

VERBS: dict[str, tuple[str, str, str]] = {
    "init": ("start:init", "Write r3.toml with every setting explained.", "--run runs/mine --task tasks.jsonl"),
    "serve": (
        "serve:serve",
        "Serve a model with the embedded server or with vLLM; options for vLLM follow --.",
        "my-model --engine vllm --port 8000 -- --max-num-seqs 64",
    ),
    "doctor": (
        "doctor:doctor",
        "Check what an endpoint supports and whether its spans can be trained on; changes nothing on the server.",
        "http://127.0.0.1:8000 --model my-model",
    ),
    "audit": (
        "audit:audit",
        "Check tasks and their verifier before you collect.",
        "--task countdown --n 200 --model-limit 4096",
    ),
    "collect": (
        "stages:collect",
        "Run episodes with the live policy and store the trajectories.",
        "--task tasks.jsonl --verifier exact --agent my_agent:agent",
    ),
    "branch": (
        "stages:branch",
        "Continue recorded failures with groups of reflections, to learn from what an application recorded.",
        "--run runs/prod --failed --since 7d --reflections 8 --blind-retries 1",
    ),
    "train": (
        "stages:train",
        "Train a new policy version on the collected trajectories.",
        "--set train.learning_rate=1e-4",
    ),
    "deploy": (
        "stages:deploy",
        "Load a version into the running server and make it live. With --gate, exit with 3 instead if it did not pass "
        "the gate.",
        "v0001",
    ),
    "rollback": ("stages:rollback", "Return to an earlier version.", "--to v0003"),
    "eval": (
        "stages:evaluate",
        "Compare two versions on the same frozen tasks; with only one version, measure it. With --gate, exit with 3 if "
        "the gate would not promote the second one.",
        "--before v0000 --after v0002 --n 500",
    ),
    "loop": (
        "stages:loop",
        "Collect, train, deploy and evaluate, round after round. Exit with 3 if the newest version did not pass the "
        "gate.",
        "--rounds 3 --task countdown",
    ),
    "inspect": (
        "inspect:inspect",
        "Summarise a run, or show one trajectory as a conversation with the credit and logprob of every token.",
        "runs/mine 3f2a9c0d",
    ),
    "report": (
        "report:report",
        "Write one page with the results of a run and its trajectories, or serve it while the run goes.",
        "runs/mine --serve",
    ),
    "label": (
        "label:label",
        "Add a verdict to a stored episode, or those in a file of outcomes to many.",
        "runs/prod 3f2a9c0d --failed --feedback 'the customer sent it back'",
    ),
    "reverify": (
        "reverify:reverify",
        "Judge stored answers again, without sampling; the verdicts are a layer over the recorded ones.",
        "runs/prod --verifier my_checks:check",
    ),
    "gateway": (
        "gateway:gateway",
        "Record the calls of any program as episodes: a proxy of an endpoint, with a base URL for each try.",
        "--upstream http://127.0.0.1:8000/v1 --out runs/prod",
    ),
    "lineage": (
        "lineage:lineage",
        "List the episodes that a version and its ancestors were trained on.",
        "v0007 --by user",
    ),
    "policies": ("", "List, show and compare the policy versions of a run.", "diff v0003 v0004 --json"),
    "export": (
        "export:export",
        "Write a version's weights for other programs, its adapter merged or not, or upload them to the Hub.",
        "v0007 --merged merged --run runs/mine",
    ),
    "data": ("", "Work on stored trajectories.", "check runs/mine --json"),
    "demo": (
        "start:demo",
        "Run the whole loop on this machine with the bundled policy in a few minutes.",
        "--out runs/demo --seed 0",
    ),
}
"""Verb to its function, its help and an example of its arguments; one without a function has sub-verbs."""

SUB_VERBS: dict[str, tuple[str, str, str]] = {
    "policies list": ("policies:list_", "List the versions, with their latest evaluation.", "--run runs/mine"),
    "policies show": (
        "policies:show",
        "Show what a version was made of, its evaluations, and who made it live and why.",
        "v0003 --check",
    ),
    "policies diff": (
        "policies:diff",
        "Compare the settings, hashes, episodes and rates of two versions.",
        "v0003 v0004",
    ),
    "data stats": (
        "data:stats",
        "Count episodes by version, split, source and outcome, with tokens, groups and shares that passed.",
        "runs/mine --json",
    ),
    "data forget": (
        "data:forget",
        "Take episodes out of every file of a run: by id, by a value of the metadata, or by a pattern.",
        "runs/mine --where user=anna",
    ),
    "data export": (
        "transfer:export",
        "Write episodes in the format of datasets, TRL or OpenPipe ART.",
        "runs/mine --to trl --type preference --out pairs.jsonl",
    ),
    "data import": (
        "transfer:import_",
        "Read logs as episodes: plain chats, OpenAI's chat completions, exports of Langfuse or LangSmith.",
        "logs.jsonl --out runs/prod",
    ),
    "data merge": (
        "transfer:merge",
        "Write the episodes and labels of several stores into a new one.",
        "runs/mine runs/yours --out merged",
    ),
    "data compact": (
        "transfer:compact",
        "Replace the shards of a store by few in Parquet, compressed with zstd.",
        "runs/mine",
    ),
    "data check": (
        "data:check",
        "Find lines of a store that are no sound records: torn, unreadable, not finite, half of a character.",
        "runs/mine --repair",
    ),
}
"""The same for the sub-verbs of a verb, after its name."""


@dataclass(frozen=True)
class Invocation:
    """A parsed command line; call it to run the verb."""

    verb: str
    function: Any
    arguments: BoundArguments
    further: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Output | None:
        """Run the verb; return `None` if only help or the version was printed."""
        return self.function(*self.arguments.args, **self.arguments.kwargs, **self.further)


def app() -> App:
    """Make the parser: one lazily imported command for each verb, plus help, version and shell completion."""
    from cyclopts import App, Parameter

    top = App(
        name="r3agent",
        help="Improve an LLM application from its own failures.",
        help_epilogue="example: r3agent demo; r3agent VERB --help has one for each verb",
        help_format="plaintext",
        version=_version,
        default_parameter=Parameter(negative=(), allow_repeating=True),
        print_error=False,
        exit_on_error=False,
    )
    groups = {"": top}
    for i, (verb, (place, help_, example)) in enumerate({**VERBS, **SUB_VERBS}.items()):
        above, _, name = verb.rpartition(" ")
        named: dict[str, Any] = {"help": help_, "sort_key": i, "help_epilogue": f"example: r3agent {verb} {example}"}
        if place:
            groups[above].command(f"r3agent.cli.{place}", name=name, **named)
        else:
            groups[verb] = App(name=name, **named)
            groups[above].command(groups[verb])
    top.register_install_completion_command(help="Install shell completion.")
    return top


def parse(words: Sequence[str]) -> Invocation:
    """Parse a command line without running it.

    Raises:
        SystemExit: it is not valid; the reason is on stderr.
    """
    from cyclopts import CycloptsError

    own = words.index("--") if "--" in words else len(words)
    try:
        function, arguments, unparsed = app().parse_args(words[:own])
    except CycloptsError as error:
        verb = " ".join(["r3agent", *(error.command_chain or ())])
        print(f"{verb}: {_explain(error)}\n{verb} --help lists its arguments", file=sys.stderr)
        sys.exit(WRONG_USE)
    further = tuple(words[own + 1 :])
    if "further" in unparsed:
        return Invocation(words[0], function, arguments, {"further": further})
    if further:
        print(f"r3agent: {' '.join(further)}: only serve takes options after --", file=sys.stderr)
        sys.exit(WRONG_USE)
    return Invocation(words[0] if words else "", function, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 for success, 1 failure, 2 wrong configuration, 3 gate says no, 130 interrupt.

    Raises:
        SystemExit: with 0 after help or the version; with 2 if the command line is not valid.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode gets ? in place of the character
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    verb = " ".join(words[: 2 if " ".join(words[:2]) in SUB_VERBS else 1])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # SIGTERM works like Ctrl-C: stored files stay complete, and servers are stopped.
    signal.signal(signal.SIGTERM, interrupt)
    # With several training processes, only rank 0 prints.
    silent = verb == "train" and bool(launched_rank())
    try:
        output = parse(words)()
        if output is None:
            sys.exit(0 if words else WRONG_USE)
        if not silent:
            print(output.text, flush=True)
    except R3Error as error:
        if not silent:
            print(f"r3agent {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return FAILED
    except KeyboardInterrupt as raised:
        trained = isinstance(raised, TrainingInterrupted)
        again = "the same command with --resume" if trained and verb == "train" else "the same command"
        if not silent:
            place = (trained and str(raised)) or "here"
            print(f"r3agent {verb}: interrupted; {again} goes on from {place}", file=sys.stderr)
        return INTERRUPTED
    if output.refused:
        return REFUSED
    return 0 if output.ok else FAILED


def run() -> None:
    """Run the console script."""
    sys.exit(main())


def _version() -> str:
    from importlib.metadata import version

    return version("r3agent")


def _explain(error: CycloptsError) -> str:
    """Render a usage error, with the flags of the values that pydantic refuses."""
    from cyclopts.exceptions import UnusedCliTokensError
    from pydantic import ValidationError

    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())}: one argument too many"
    if not isinstance(error.__cause__, ValidationError):
        return str(error)
    refused = error.__cause__.errors(include_url=False)
    return "; ".join(f"--{'-'.join(map(str, e['loc'])).replace('_', '-')} {e['input']}: {e['msg']}" for e in refused)
