"""Identity of an episode from node to node: branches in the history of a thread, and edits of the state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from zlib import crc32

from langchain_core.runnables import RunnableConfig

from r3agent._util.clock import steady_time
from r3agent.episodes.state import EpisodeState, Json, Lineage, count_episodes, spans_of, task_of
from r3agent.records.json_values import json_bytes, json_value
from r3agent.records.trajectory import Task

logger = logging.getLogger(__name__)

EDITED = "edited: its tokens are not those of its conversation as recorded"
"""Note of a span whose answer or prompt was edited in the state of the graph."""

EDITOR = "update_state"
"""Author of a verdict that was edited in the state of the graph."""

NO_TOKENS: Json = {
    **dict.fromkeys(("prompt_token_ids", "token_ids", "logprobs")),
    "capability": "eval-only",
    "capability_note": EDITED,
}
"""Fields of such a span."""

NOT_OWN = ("checkpoint_id", "checkpoint_ns", "task_id", "thread_id", "run_id")
NOT_OWN_PREFIXES = ("langgraph_", "lc_", "ls_", "__")
"""Metadata that LangGraph and LangChain add."""

NOT_OWN_TAGS = ("seq:step:", "graph:step:", "langsmith:")
"""Tags that they add."""


def begin(state: EpisodeState, metadata: Mapping[str, Any]) -> Json:
    """Return the update by which the first node of an episode identifies it.

    Args:
        metadata: those of the node's config, in which LangGraph numbers the step.
    """
    lineage = {**_lineage(task_of(state), metadata), "began": steady_time(), "earlier": count_episodes(state)}
    return {"lineage": lineage, "spans": []}


def proceed(state: EpisodeState, metadata: Mapping[str, Any]) -> Json:
    """Return the update by which a later node identifies its episode, and takes account of edits.

    A step that does not follow the last one begins a branch. A span whose answer or prompt was edited, and those that
    were already sampled after it, lose their tokens, and so do all spans if the policy's part of the task was edited. A
    verdict on an edited answer is removed unless it was edited too, and so are all verdicts if the task was edited.

    Raises:
        ConfigError: there is no attempt yet, or the task is invalid.
    """
    spans, lineage, before = spans_of(state), _lineage(task_of(state), metadata), state.get("lineage")
    lineage["root"] = spans[0]["span_id"]
    if before is None or before["root"] not in (None, lineage["root"]):  # the application added the attempt
        lineage["earlier"] = count_episodes(state) - (before is None)
        return {"lineage": lineage, "spans": []}
    lineage["earlier"] = before.get("earlier", count_episodes(state) - 1)
    lineage.update(trajectory_id=before["trajectory_id"], parent_id=before["parent_id"], spans=before["spans"])
    if "began" in before:
        lineage["began"] = before["began"]
    if "recorded" in before:
        lineage["recorded"] = before["recorded"]
    if lineage["step"] != before["step"] + 1:
        parent_id = before["trajectory_id"] or lineage["root"]
        # The namespace has a hash of the checkpoint: the same when a run is resumed, another one in each branch.
        key = f"{parent_id} {metadata['langgraph_checkpoint_ns']}"
        lineage.update(trajectory_id=_hash(key), parent_id=parent_id)
    is_other_task, is_other_prompt = (lineage[part] != before[part] for part in ("task", "asked"))
    edited: dict[str | None, Json] = {}
    for span in spans:
        if (known := before["spans"].get(span["span_id"])) is None:  # the application added it
            continue
        now, change = hashes(span), Json()
        is_answer_edited = now[0] != known[0]
        if is_other_task or (is_answer_edited and now[2] == known[2]):
            change["verdict"] = None
        if is_answer_edited:
            change["finish_reason"] = None
        if "verdict" not in change and now[2] != known[2] and isinstance(verdict := span.get("verdict"), dict):
            change["verdict"] = _edited(verdict, known)
        if (
            is_other_prompt
            or now[:2] != known[:2]
            or NO_TOKENS.items() <= edited.get(span.get("parent_id"), {}).items()
        ):
            change |= NO_TOKENS
        if change:
            edited[span["span_id"]] = {**span, **change}
    return {"lineage": lineage, "spans": list(edited.values())}


def run_metadata(config: RunnableConfig) -> Json:
    """Return what the application's config says of a run: its metadata, tags and thread, without LangGraph's own keys.

    Other keys of `configurable` may be secrets, and are left out.
    """
    configurable = config.get("configurable", {})
    given = {k: json_value(v) for k, v in config.get("metadata", {}).items() if not (k in configurable or k in NOT_OWN)}
    own = {name: value for name, value in given.items() if not name.startswith(NOT_OWN_PREFIXES)}
    tags = [tag for tag in config.get("tags") or () if not tag.startswith(NOT_OWN_TAGS)]
    thread_id = configurable.get("thread_id")
    return {
        **own,
        **({"tags": tags} if tags else {}),
        **({} if thread_id is None else {"thread_id": str(thread_id)}),
    }


def hashes(span: Json) -> list[str]:
    """Hash the answer, the prompt and the verdict of a span; a short hash, because every node hashes every span."""
    part, verdict = span.get, span.get("verdict")
    passed = verdict.get("passed") if isinstance(verdict, dict) else None
    answer = [part("text"), part("reasoning"), part("tool_calls"), part("token_ids")]
    if part("answer") is not None:
        answer.append(part("answer"))
    prompt = [part("parent_id"), part("request"), part("standalone")]
    return [*(f"{crc32(json_bytes(each)):08x}" for each in (answer, prompt, [verdict])), str(passed)]


def _edited(verdict: Json, known: list[str]) -> Json:
    """Return a verdict that the application edited, with its author and the verifier's own `passed` if it differs."""
    own = {"True": True, "False": False}.get(known[3]) if len(known) > 3 else None
    overruled = own if own is not None and own != verdict.get("passed") else None
    return {**verdict, "by": verdict.get("by") or EDITOR, "overruled": overruled}


def warn_of_edited_output(state: EpisodeState) -> None:
    """Log an edit of the output, which changes nothing, because the output is made of the spans."""
    lineage = state.get("lineage") or {}
    if lineage.get("output", output_hash(state)) != output_hash(state):
        logger.warning(
            "answer or passed was edited, which changes nothing: they are made of the spans; edit the text or the "
            "verdict of a span in spans"
        )


def output_hash(state: Mapping[str, Any]) -> str:
    """Hash the answer and `passed` of the output."""
    return _hash([state.get("answer"), state.get("passed")])


def _hash(value: Any) -> str:
    return sha256(json_bytes(value)).hexdigest()[:16]


def _lineage(task: Task, metadata: Mapping[str, Any]) -> Lineage:
    return Lineage(
        root=None,
        trajectory_id=None,
        parent_id=None,
        step=metadata["langgraph_step"],
        task=_hash(task.model_dump(mode="json")),
        asked=_hash([task.messages, task.tools]),
        spans={},
    )
