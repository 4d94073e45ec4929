"""Map of the tasks whose failures can teach a model: first tries, retries, a hint, and failures with mixed outcomes.

    python -m benchmarks.signal_map --model smollm2-135m [--retry anew] [--sources ...] [--n 60] [--engine vllm]

The model is a name of `benchmarks/models.py`, `bundled` or a checkpoint directory; its server is started here. A cell
is one model on one source: 8 tries of each task; on the tasks whose first try failed, one retry after the model's own
reflection, one blind retry, and one retry after an oracle hint, the right answer in place of the reflection, if it is
known. A failure can teach by its own tries if some of the 8 pass: it is mixed. On a source where all tries fail, only
the first 30 failed tasks are retried, which saves most of its time. An answer that is cut off is judged as far as it
goes, since the limits on tokens are low. A retry follows the failed answer in its conversation, as in the paper; with
`--retry anew` it has one of its own (benchmarks/paper/anew.py), and the tries have a lower temperature.

Episodes are stored in --out and cells in benchmarks/finished, and not repeated, so that a run can be stopped and
started again; the key of a cell has the settings and texts that decide it, and a digest of the weights. Without
--model, the section of RESULTS.md is written from the finished cells of the engine and kind of retry alone. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast

from typing_extensions import Unpack

from benchmarks.models import MODELS, make
from benchmarks.paper.anew import TEMPERATURE as ANEW_TEMPERATURE
from benchmarks.paper.anew import anew
from benchmarks.paper.anew import settings as anew_settings
from benchmarks.results import FINISHED, RESULTS, Finished, digest, replace_section, weights_of
from benchmarks.signal_tables import FLOOR, REFLECTION_TEMPERATURE, SHOTS, TRIES, Cell, Retry, first_try, section
from r3agent import OpenAIPolicy, Policy, R3Error, Sampling, Span, Task, Trajectory, Verifier, collect, load
from r3agent._util.aio import gather_all, run_sync
from r3agent.episodes.config import EpisodeOptions
from r3agent.evaluate.cells import error_of, outcome
from r3agent.records.branching import branch_of, control_of
from r3agent.records.prompts import PROMPTS
from r3agent.serve import ServerProcess, VLLMProcess
from r3agent.serve.process.process import LocalServer
from r3agent.store.shards import TrajectoryWriter
from r3agent.tasks import default_verifier, find_tasks
from r3agent.verifiers import KINDS, find_verifier, judge

CONCURRENCY, REQUEST_S = 48, 3600.0
"""Requests at a time, and the time limit of one: on a CPU, it waits for the others."""
MAX_TOKENS = {"reasoning-gym": 64, "countdown": 64, "bfcl": 96, "bfcl:parallel": 256, "bfcl:parallel_multiple": 256}
"""Tokens of an answer, by the source or its kind; most gold answers have a third of them."""
REFLECTION_TOKENS = 96
HINT = "My answer was wrong. The right answer is:\n{gold}"
"""Message in place of the reflection."""

GYM: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"min_digits": 1, "max_digits": 2},
    "simple_equations": {"min_terms": 2, "max_terms": 2, "max_value": 10},
    "gcd": {"max_value": 30},
    "count_bits": {"max_n": 127},
    "number_sorting": {"max_numbers": 4, "max_decimals": 0, "min_value": 0, "max_value": 50},
    "number_filtering": {"max_numbers": 4, "max_decimals": 0, "min_value": 0, "max_value": 50},
    "word_sorting": {"max_words": 4, "max_word_length": 6},
    "word_sequence_reversal": {"max_words": 4},
    "spell_backward": {"max_word_len": 4},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "isomorphic_strings": {"max_string_length": 5},
    "leg_counting": {"min_animals": 2, "max_animals": 3, "max_instances": 4},
    "needle_haystack": {"min_num_statements": 3, "max_num_statements": 8},
    "syllogism": {},
    "family_relationships": {"max_family_size": 5},
    "course_schedule": {"max_num_courses": 6},
}
"""Settings of reasoning-gym's generators, at which a small model has a chance."""
BFCL = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
SOURCES: dict[str, dict[str, Any]] = {
    **{f"reasoning-gym:{name}": {**params, "shots": SHOTS} for name, params in GYM.items()},
    "countdown": {"numbers": 3, "max_number": 10},
    **{f"bfcl:{category}": {"calls": "text"} for category in BFCL},
}
"""Settings of each source."""


class Form(NamedTuple):
    """Form of the tries."""

    temperature: float
    options: dict[str, Any]
    """Options of the episodes of retries."""


FORMS = {"conversation": Form(1.0, {}), "anew": Form(ANEW_TEMPERATURE, {"agent": anew})}


class Subject(NamedTuple):
    """Model of a map."""

    name: str
    weights: str
    """Digest: checkpoints of one name share no cell."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply."""

    @classmethod
    def of(cls, model: str) -> Subject:
        """Describe a model by its name or directory.

        Raises:
            ConfigError: there is no such directory.
        """
        if (made := MODELS.get(model)) is not None:  # known without its checkpoint
            return cls(model, digest([made.sha256, made.template]), made.stop)
        return cls(Path(model).resolve().name, weights_of(model))


async def draw_tries(policy: Policy, verifier: Verifier, tasks: Sequence[Task], *, out: Path) -> list[list[Trajectory]]:
    """Draw the tries of each task with one request, unless they are stored; return an episode for each try."""

    async def tried(task: Task) -> None:
        drawn = await policy.sample(task.messages, n=TRIES, tools=task.tools)
        spans = [Span.of(generation, label="attempt") for generation in drawn]
        verdicts = await judge(verifier, task, spans, cut_off="judge")
        for i, (span, verdict) in enumerate(zip(spans, verdicts, strict=True)):
            judged = (span.model_copy(update={"verdict": verdict}),)
            writer.append(Trajectory(trajectory_id=f"{task.id}-{i}", task=task, sample=i, spans=judged))

    with TrajectoryWriter(out) as writer:
        found = Counter(trajectory.task.id for trajectory in load(out))
        await gather_all(tried(task) for task in tasks if found[task.id] < TRIES)
    episodes = {(trajectory.task.id, trajectory.sample): trajectory for trajectory in load(out)}
    return [[episodes[task.id, i] for i in range(TRIES)] for task in tasks]


async def measure(
    source: str, tasks: Sequence[Task], *, policy: Policy, out: Path, **options: Unpack[EpisodeOptions]
) -> Cell:
    """Measure one cell; the episodes are stored under `out`, and those that are there are not run again.

    Args:
        options: further options of the episodes of the retries.
    """
    began, name = time.monotonic(), default_verifier(source)
    verifier = find_verifier(name)
    tries = await draw_tries(policy, verifier, tasks, out=out / "tries")
    passes = [[bool(episode.passed) for episode in episodes] for episodes in tries]
    failed = [episodes[0] for episodes in tries if not episodes[0].passed]
    if not any(map(any, passes)):
        failed = failed[:FLOOR]
    given: dict[str, Any] = {"policy": policy, "verifier": verifier, "verifier_name": name, "concurrency": CONCURRENCY}
    given |= {"reflections": 1, "cut_off": "judge", **prompts_of(source), **options}
    retried, hinted = list[Trajectory](), dict[str | None, Trajectory]()
    if failed:
        await collect([branch_of(trajectory) for trajectory in failed], out=out / "retries", blind_retries=1, **given)
        retried = list(load(out / "retries"))
    hints = [(t, HINT.format(gold=t.task.gold["content"])) for t in retried if t.task.gold and error_of(t) is None]
    if hints:
        await collect([control_of(t, "generic", hint) for t, hint in hints], out=out / "hints", **given)
        hinted = {trajectory.parent_id: trajectory for trajectory in load(out / "hints")}
    return {
        "passes": passes,
        "retries": [_retries(t, hinted.get(t.trajectory_id)) for t in retried if error_of(t) is None],
        "errors": sum(error_of(t) is not None for t in [*retried, *hinted.values()]),
        "seconds": round(time.monotonic() - began),
    }


def _retries(episode: Trajectory, hinted: Trajectory | None) -> dict[Retry, float | None]:
    if hinted is not None and error_of(hinted) is not None:
        hinted = None
    return {
        "after reflection": outcome(episode, "after_reflection"),
        "blind retry": outcome(episode, "blind_retry"),
        "oracle hint": outcome(episode, "generic_reflection", branch=hinted),
    }


def prompts_of(source: str) -> dict[str, str]:
    return PROMPTS[KINDS.get(default_verifier(source), "general")].model_dump()


def texts_of(source: str, retry: str) -> dict[str, Any]:
    """Return what a model reads besides its tasks."""
    return {"hint": HINT, **prompts_of(source), "anew": anew_settings() if retry == "anew" else None}


def settings_of(source: str, n: int, engine: str, retry: str) -> dict[str, Any]:
    """Return the settings of a cell: one that was measured with others is measured anew."""
    max_tokens = [MAX_TOKENS.get(source, MAX_TOKENS[source.partition(":")[0]]), REFLECTION_TOKENS]
    temperature = [FORMS[retry].temperature, REFLECTION_TEMPERATURE]
    sampled = {"max_tokens": max_tokens, "temperature": temperature, "tries": TRIES, "floor": FLOOR, "engine": engine}
    return {"n": n, "params": SOURCES[source], "retry": retry, **sampled, "texts": digest(texts_of(source, retry))}


def cells_of(finished: Finished, subject: Subject, n: int, engine: str, retry: str) -> dict[str, Cell]:
    """Read the finished cells of a model."""
    cells = {source: finished.find(key_of(subject, source, n, engine, retry)) for source in SOURCES}
    return {source: cast(Cell, cell) for source, cell in cells.items() if cell is not None}


def key_of(subject: Subject, source: str, n: int, engine: str, retry: str) -> dict[str, Any]:
    model = {"model": subject.name, "weights": subject.weights, "stop": [*subject.stop]}
    return {**model, "source": source, **settings_of(source, n, engine, retry)}


def measure_all(
    server: LocalServer,
    subject: Subject,
    sources: Sequence[str],
    *,
    n: int,
    engine: str,
    retry: str,
    folder: Path,
    finished: Finished,
) -> None:
    """Measure cells one after another; one that fails is reported, and left for another run."""
    for source in sources:
        key = key_of(subject, source, n, engine, retry)
        own = folder / f"{source.replace(':', '-')}-{digest(key)}"
        sampling, reflecting = (
            Sampling(temperature=temperature, max_tokens=max_tokens, stop=subject.stop)
            for temperature, max_tokens in zip(key["temperature"], key["max_tokens"], strict=True)
        )
        tasks = find_tasks(source, n, **SOURCES[source])
        policy = OpenAIPolicy(
            server.base_url, server.name, sampling=sampling, concurrency=CONCURRENCY, timeout_s=REQUEST_S
        )
        try:
            with closing(policy):
                options: dict[str, Any] = {"reflect_sampling": reflecting, **FORMS[retry].options}
                outcomes = run_sync(measure(source, tasks, policy=policy, out=own, **options))
        except R3Error as error:
            print(f"{source}: {type(error).__name__}: {error}", flush=True)
            continue
        finished.add(key, outcomes)
        print(f"{source}: {outcomes['seconds']} s, first try {100 * first_try(outcomes).rate:.0f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"{', '.join(MODELS)}, bundled, or a checkpoint directory")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="SOURCE")
    parser.add_argument("--n", type=int, default=60, help="tasks of each source")
    parser.add_argument("--engine", choices=("embedded", "vllm"), default="vllm")
    parser.add_argument("--retry", choices=FORMS, default="conversation")
    parser.add_argument("--out", type=Path, default=Path("runs/signal"), help="directory of the episodes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    finished = Finished(FINISHED / "signal_map.jsonl")
    try:
        subjects = {name: Subject.of(name) for name in [*MODELS, "bundled", *([args.model] if args.model else [])]}
    except R3Error as error:
        parser.error(f"--model {args.model}: {error}")
    form: dict[str, Any] = {"n": args.n, "engine": args.engine, "retry": args.retry}
    if args.model:
        subject = subjects[args.model]
        known = cells_of(finished, subject, **form)
        missing = [source for source in args.sources if source not in known]
        if missing:
            checkpoint = make(args.model) if args.model in MODELS else args.model
            folder = args.out / f"{subject.name}-{subject.weights}"
            folder.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {"name": subject.name, "log_path": folder / "server.log"}
            with (
                VLLMProcess(checkpoint, **options, options=["--no-enable-lora"])
                if args.engine == "vllm"
                else ServerProcess(checkpoint, **options)
            ) as server:
                measure_all(server, subject, missing, **form, folder=folder, finished=finished)
    models = {name: cells for name, subject in subjects.items() if (cells := cells_of(finished, subject, **form))}
    text, data = section(models, args.sources, engine=args.engine, temperature=FORMS[args.retry].temperature)
    command = "python -m benchmarks.signal_map --model NAME" + ("" if args.n == 60 else f" --n {args.n}")
    command += "" if args.engine == "vllm" else f" --engine {args.engine}"
    command += "" if args.retry == "conversation" else f" --retry {args.retry}"
    title = "Where the signal is" + (", with retries in a conversation of their own" if args.retry == "anew" else "")
    replace_section(args.results, title, command, text)
    print(text)
    print(json.dumps({**form, "models": data}))


if __name__ == "__main__":
    main()
