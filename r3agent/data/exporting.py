"""Export of trajectories to the formats of other libraries: `datasets`, TRL and OpenPipe ART.

Rows for TRL and ART are made of what could be trained on here: episodes that ended with an error, of held-out tasks, or
from before their task was corrected are left out.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

from r3agent._util.checked import checked
from r3agent._util.console import without_bars
from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.imports import require_extra
from r3agent._util.messages import count
from r3agent.errors import ConfigError, RecordError
from r3agent.records.credit import CreditLabel, Group, groups
from r3agent.records.json_values import json_bytes
from r3agent.records.record import Record
from r3agent.records.trajectory import Message, Span, Trajectory, Try, each_trajectory
from r3agent.store.batches import batches_of
from r3agent.store.trajectories import features
from r3agent.train.rows import left_out

Format: TypeAlias = Literal["hf", "art", "trl"]

TrlType: TypeAlias = Literal["prompt-completion", "preference", "unpaired-preference"]
"""Type of a dataset of TRL, of which each trainer takes some: `SFTTrainer` the first, `DPOTrainer` the second,
`KTOTrainer` the third."""


NOTHING = "no trajectories to export; collect some first"

WRITTEN_AT_ONCE = 100
"""Number of records that are converted to a batch of Arrow's at once."""


class Exported(Record):
    """Report on an export."""

    path: str
    format: Format
    rows: int
    """Trajectories for `hf`, rows for `trl`, and groups for `art`."""
    episodes: int
    """Number of episodes that were given."""
    left_out: dict[str, int] = {}
    """Episodes without rows because they may not be trained on, by reason."""


@checked
def export(
    trajectories: Iterable[Trajectory],
    out: str | Path,
    *,
    to: Format,
    label: CreditLabel = "reflect",
    type: TrlType = "prompt-completion",
) -> Exported:
    """Write trajectories in the format of another library.

    `hf`: whole records for `datasets.load_from_disk(out)`, or one file if `out` ends in `.parquet`. `trl`: JSON lines
    with the conversational columns of TRL's documentation. `art`: JSON lines with one group of trajectories each, as
    ART writes them, in which choices have token ids and logprobs where they are recorded exactly.

    Args:
        out: new file or directory, which appears whole or not at all.
        label: label of the groups: the siblings that TRL prefers or ART compares.
        type: type of TRL's dataset. `prompt-completion` has the siblings of the highest reward above 0, `preference`
            pairs of a better and a worse sibling, `unpaired-preference` all siblings whose reward is 0 or 1.

    Raises:
        ConfigError: `out` exists or cannot be written, or an extra is missing.
        RecordError: nothing can be exported.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists; name another file, or move it away")
    if to == "hf":
        episodes = _write_dataset(trajectories, out)
        return Exported(path=str(out), format=to, rows=episodes, episodes=episodes)
    episodes = n_rows = 0
    reasons: Counter[str] = Counter()

    def rows() -> Iterator[bytes]:
        nonlocal episodes, n_rows
        for batch in batches_of(trajectories):
            apart = left_out(batch)
            episodes += len(batch)
            reasons.update(apart.values())
            found = groups([t for t in batch if t.trajectory_id not in apart], label)
            for row in _art(found) if to == "art" else _trl(found, type):
                n_rows += 1
                yield json_bytes(row) + b"\n"
        if not episodes:
            raise RecordError(NOTHING)
        if not n_rows:
            remedy = "groups need siblings with different rewards" if type == "preference" else "name another label"
            raise RecordError(f"0 rows of {count(episodes, 'episode')} with label {label}; {remedy}")

    write_atomically(out, rows())
    counts = dict(sorted(reasons.items()))
    return Exported(path=str(out), format=to, rows=n_rows, episodes=episodes, left_out=counts)


def _write_dataset(trajectories: Iterable[Trajectory], out: Path) -> int:
    require_extra("datasets", "data")
    import datasets
    from datasets.arrow_writer import ArrowWriter

    partial, n = out.with_name(f".{out.name}.partial"), 0
    columns: Any = features()
    with disk_errors(out), without_bars(datasets):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=partial.name, dir=out.parent) as folder:
            file = Path(folder, "episodes.arrow")
            with ArrowWriter(path=str(file), features=columns, writer_batch_size=WRITTEN_AT_ONCE) as writer:
                for n, trajectory in enumerate(each_trajectory(trajectories), start=1):  # noqa: B007
                    writer.write(columns.encode_example(trajectory.model_dump(mode="json")))
                writer.finalize()
            if not n:
                raise RecordError(NOTHING)
            dataset = datasets.Dataset.from_file(str(file))
            try:
                if out.suffix == ".parquet":
                    dataset.to_parquet(partial)
                else:
                    dataset.save_to_disk(partial)
                partial.rename(out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                partial.unlink(missing_ok=True)
                raise
    return n


def _trl(found: Iterable[Group], type_: TrlType) -> Iterator[dict[str, Any]]:
    for group in found:
        siblings = [
            (earned, prompt, completion, trajectory)
            for trajectory, span, earned in zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True)
            if (messages := _messages(trajectory, span)) is not None
            for prompt, completion in [messages]
        ]
        siblings.sort(key=lambda sibling: -sibling[0])
        if type_ == "preference":
            pairs = zip(siblings, reversed(siblings), strict=True)
            for (high, prompt, chosen, trajectory), (low, _, rejected, _) in pairs:
                if high <= low:
                    break
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_tools(trajectory)}
            continue
        for earned, prompt, completion, trajectory in siblings:
            row = {"prompt": prompt, "completion": completion, **_tools(trajectory)}
            if type_ == "unpaired-preference" and earned in (0.0, 1.0):
                yield {**row, "label": earned == 1.0}
            elif type_ == "prompt-completion" and earned == siblings[0][0] > 0:
                yield row


def _messages(trajectory: Trajectory, span: Span) -> tuple[list[Message], list[Message]] | None:
    """Return the prompt and what follows; `None` for steps of which each begins a conversation of its own."""
    steps = _steps(trajectory, span)
    if any(step.standalone or step.parent_id != before.span_id for before, step in pairwise(steps)):
        return None
    completion = Try(steps, False).messages if span.label != "reflect" else [span.message]
    return [*map(_for_template, trajectory.prompt(span))], [*map(_for_template, completion)]


def _steps(trajectory: Trajectory, span: Span) -> tuple[Span, ...]:
    return (span,) if span.label == "reflect" else trajectory.try_of(span).steps


def _for_template(message: Message) -> Message:
    """Return a message as chat templates take it: the arguments of calls are objects."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_called(call) for call in message["tool_calls"]]}


def _called(call: dict[str, Any]) -> dict[str, Any]:
    function: Any = call.get("function")
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        arguments = json.loads(function["arguments"])
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


def _tools(trajectory: Trajectory) -> dict[str, Any]:
    return {"tools": list(trajectory.task.tools)} if trajectory.task.tools else {}


def _art(found: Iterable[Group]) -> Iterator[dict[str, Any]]:
    """Yield groups in the form in which ART stores them: a message of a model is a choice of OpenAI's API."""
    for group in found:
        if len(group.spans_G) < 2:
            continue
        members = zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True)
        yield {"trajectories": [_art_trajectory(trajectory, span, earned) for trajectory, span, earned in members]}


def _art_trajectory(trajectory: Trajectory, span: Span, earned: float) -> dict[str, Any]:
    histories: list[list[dict[str, Any]]] = []
    for step in _steps(trajectory, span):
        if not histories or step.standalone:
            histories.append([*trajectory.prompt(step)])
        else:
            histories[-1] += step.request
        histories[-1].append(_choice(step) if step.purpose is None else step.message)
    first, *more = histories
    tools = list(trajectory.task.tools) or None
    scalars = {key: v for key, v in trajectory.metadata.items() if v is None or isinstance(v, str | int | float | bool)}
    return {
        "reward": earned,
        "metrics": {},
        "metadata": {**scalars, "trajectory_id": trajectory.trajectory_id, "span_id": span.span_id},
        "messages_and_choices": first,
        "tools": tools,
        "additional_histories": [{"messages_and_choices": history, "tools": tools} for history in more],
        "logs": [],
    }


def _choice(span: Span) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "finish_reason": _finish_reason(span),
        "index": 0,
        "logprobs": None,
        "message": {**span.message, "refusal": None},
    }
    if span.capability == "trainable-exact":
        ids_T, logprobs_T = span.token_ids or (), span.logprobs or ()
        tokens = [
            {"token": f"token_id:{id_}", "logprob": logprob, "bytes": None, "top_logprobs": []}
            for id_, logprob in zip(ids_T, logprobs_T, strict=True)
        ]
        choice |= {"logprobs": {"content": tokens, "refusal": None}}
        choice |= {"token_ids": ids_T, "prompt_token_ids": span.prompt_token_ids}
    return choice


def _finish_reason(span: Span) -> str:
    """Return one of the reasons that OpenAI's record of a choice knows."""
    if span.unfinished in ("length", "content_filter"):
        return span.unfinished
    return "tool_calls" if span.tool_calls else "stop"
