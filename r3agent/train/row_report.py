"""What became of the reflections on the way to rows: how many are trained on, and why the others are not."""

from __future__ import annotations

from r3agent.trajectory import Record

REMEDIES = {
    "errored": "their episodes ended in an error: fix it and collect them again",
    "no_reward": "no retry of theirs has a verdict, or, with reward = 'lift', no blind retry has: "
    "collect with retries and blind_retries of at least 1",
    "eval_only": "the endpoint gave nothing to train on: the spans' capability_note says why",
    "retokenise_refused": "the endpoint gave no token ids: collect from one that does (vLLM: return_token_ids), "
    "or set retokenise = 'allow'",
    "tool_calls": "their tokens were not recorded, and a tool call cannot be tokenised again from its parsed form: "
    "collect from an endpoint that gives token ids",
    "empty": "they have no tokens: raise max_tokens when collecting",
    "stale": "they are more than max_staleness versions from the starting policy: collect with it, or raise the limit",
    "too_long": "they have more than max_row_tokens tokens: raise it, or lower max_tokens when collecting",
    "zero_variance": "all trainable siblings of a failure earned the same: collect more tasks, more reflections per "
    "failure, or tasks of another difficulty",
}
"""Every reason for which a reflection is dropped, and what to do about it."""


class RowReport(Record):
    """The account of one training's rows."""

    trajectories: int
    failures: int
    """First attempts that failed."""
    reflections: int
    rows: int
    """Reflections that are trained on."""
    groups: int
    """Failed spans whose reflections are trained on."""
    dropped: dict[str, int]
    """Reflections by the reason they are not trained on; the reasons are those of `REMEDIES`."""
    retokenised: int
    """Rows whose tokens were not recorded: their behaviour logprobs are the starting weights' own."""
    truncated: int
    """Rows stopped by the token limit."""
    ages: dict[str, int]
    """Rows by how many versions lie between the policy that sampled them and the starting one, or `None`."""
    temperatures: dict[str, int]
    """Rows by sampling temperature. Ratios are taken at temperature 1 whatever it was: rows sampled at another one
    teach the policy at temperature 1 from text that it would have drawn with other odds."""
    reward_mean: float | None
    """Over all reflections with a reward, trained on or not."""
    prompt_tokens: int
    completion_tokens: int

    def why_empty(self) -> str:
        """The message for a report without rows: counts, the main reason and its remedy."""
        if not self.failures:
            return (
                f"0 of {self.trajectories} first attempts failed: there is nothing to reflect on; "
                "collect more tasks, or harder ones"
            )
        if not self.reflections:
            return (
                f"{self.failures} failures but 0 reflections: GRPO needs at least 2 per failure; "
                "collect with --reflections 8"
            )
        counted = ", ".join(f"{reason} {n}" for reason, n in self.dropped.items())
        main = max(self.dropped, key=self.dropped.__getitem__)
        mean = "none" if self.reward_mean is None else f"{self.reward_mean:.3f}"
        return (
            f"0 of {self.reflections} reflections can be trained on (mean reward {mean}; dropped: {counted}); "
            f"{main}: {REMEDIES[main]}"
        )
