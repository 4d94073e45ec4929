"""Reasons for leaving out reflections and tries, and remedies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import TypeAlias

from r3agent.train.row import Dropped

DropCounts: TypeAlias = dict[str, Counter[str]]
"""Number of dropped spans by label and reason."""

COLLECT = {
    "attempt": "--samples 4",
    "reflect": "--reflections 8",
    "retry": "--retries 4",
    "blind_retry": "--blind-retries 4",
}
"""Flags that collect groups for each label: GRPO compares siblings, so it needs at least 2."""


def _grouped(label: str) -> str:
    return f"collect with {COLLECT[label]}, or compare tasks: baseline = 'batch'"


REMEDIES = {
    "errored": "their episodes, or the tries that pay them, ended in an error: fix it and collect them again",
    "held_out": "their tasks are of the gate or test split, which decide on the trained version: collect tasks of the "
    "train split, or record more",
    "control": "they are controls of an evaluation, after reflections that the policy did not write for them",
    "task_changed": "their task was corrected since, e.g. its gold answer: collect it again",
    "several_steps": "they, or the first try, are tries of several steps, with results of their own calls: distill "
    "tries of one completion, or credit retries and first tries instead",
    "not_the_policy": "no call of theirs is the policy's: let the agent ask for its name",
    "after_success": "the try that they follow is right, perhaps by a later label or reverify, so they repaired "
    "nothing: collect more tasks",
    "unlabelled": "they, or the retries that pay them, have no verdict yet: attach it with r3agent label",
    "no_reward": "they have no retry, or, with reflect = 'lift', no blind one beside them: collect with retries and "
    "blind_retries of at least 1",
    "leaked": "they contain the answer of their own retry: ask for reflections without it, or set leak = 'keep'",
    "refused": "the endpoint refused their conversation, which was too long or filtered: lower sampling.max_tokens, or "
    "serve the model with a longer context; or their reflection was cut off within its thinking: raise max_tokens of "
    "reflect_sampling",
    "reshaped": "they were not sampled as their logprobs say: collect with sampling.temperature = 1, top_p = 1 and "
    "without top_k, min_p, penalties, logit_bias or a grammar",
    "media": "their prompt has images, audio or files, which token ids alone do not rebuild: collect text",
    "eval_only": "the endpoint gave nothing to train on: the spans' capability_note says why",
    "retokenise_refused": "the endpoint gave no token ids: collect from one that does (vLLM: return_token_ids), "
    "or set retokenise = 'allow'",
    "tool_calls": "their tokens were not recorded, and a tool call cannot be tokenised again from its parsed form: "
    "collect from an endpoint that gives token ids",
    "empty": "they have no tokens: raise max_tokens when collecting",
    "stale": "a version more than max_staleness generations before the starting one sampled them, or one that it does "
    "not descend from: collect with it, or raise the limit",
    "too_long": "they have more than max_row_tokens tokens: raise it, or lower max_tokens when collecting",
    "zero_variance": "all trainable siblings earned the same: collect more tasks, more siblings each (--reflections, "
    "--retries, --blind-retries or --samples), or tasks of another difficulty",
    "at_baseline": "they earned exactly their baseline = 'batch', what other tasks lead to expect: collect more tasks, "
    "or tasks of another difficulty",
    "attempt_alone": f"their task has no other trainable first try of the same version: {_grouped('attempt')}",
    "reflect_alone": f"their failed try has no other trainable reflection: {_grouped('reflect')}",
    "retry_alone": f"their reflection has no other trainable retry: {_grouped('retry')}",
    "blind_retry_alone": f"their failed try has no other trainable blind retry: {_grouped('blind_retry')}",
}
"""Remedies by the reason for dropping a span of a credited label."""


NOTHING_PASSED = {
    "distill": "no failed first try has a retry that passed",
    "imitate": "no try passed",
}
"""Reason why there is no row without siblings, by label."""


def remedies(labels: Iterable[str], trained_on: Container[str], dropped: DropCounts) -> dict[str, str]:
    """Return the main reason and its remedy for each label that is not trained on."""
    return {label: _remedy(label, dropped.get(label, Counter())) for label in labels if label not in trained_on}


def count_dropped(dropped: Iterable[Dropped]) -> DropCounts:
    """Count the reasons for dropping spans, by label."""
    counts: DropCounts = {}
    for drop in dropped:
        counts.setdefault(drop.label, Counter())[drop.reason] += 1
    return counts


def _remedy(label: str, reasons: Counter[str]) -> str:
    if reasons:  # what is stale only grows, and hides why nothing of this version is left
        main, n = max(reasons.items(), key=lambda found: (found[0] != "stale", found[1]))
        return f"{main} {n}: {REMEDIES[main]}"
    if label in NOTHING_PASSED:
        return f"{NOTHING_PASSED[label]}: collect more tasks, or easier ones"
    return f"0 spans: GRPO compares at least 2 siblings; collect with {COLLECT[label]}"
