"""Branches of recorded episodes: a failed try that is stored, continued with a group of reflections.

An application records one reflection for each failure, a group of one, from which GRPO cannot learn. A branch begins
with the recorded try, sends its exact conversation, and samples the group. It is a trajectory of its own, with its
parent's id; the recorded spans in it are context, whichever version sampled them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r3agent._util.checked import AtLeastOne, checked
from r3agent.episodes.collect import collect
from r3agent.episodes.config import COLLECT_REFLECTIONS, EpisodeConfig
from r3agent.episodes.failures import REMEDIES, Failures, NextGroup, choose, judged_again
from r3agent.policy import Policy
from r3agent.records.summary import CollectSummary
from r3agent.records.trajectory import Record, Trajectory
from r3agent.verifiers import Verifier
from r3agent.verifiers.interface import CutOff


class BranchReport(Record):
    """Report on branches of recorded failures."""

    summary: CollectSummary
    read: int
    """Number of recorded episodes."""
    branches: int
    """Recorded failures that were branched off."""
    left_out: dict[str, int] = {}
    """Number of recorded failures that are left out, by reason, and of episodes for `passed`, and without a failure for
    `errored`."""
    remedies: dict[str, str] = {}
    """Remedies for them, by reason."""

    @classmethod
    def of(cls, failures: Failures, summary: CollectSummary) -> BranchReport:
        """Report on a collection of recorded failures."""
        remedies = {reason: REMEDIES[reason] for reason in failures.left_out}
        counts: Any = {"read": failures.read, "branches": len(failures.begins), "left_out": failures.left_out}
        return cls(summary=summary, remedies=remedies, **counts)


@checked
async def branch(
    trajectories: Iterable[Trajectory],
    *,
    policy: Policy,
    verifier: Verifier,
    out: str | Path,
    failed: bool = False,
    since: str = "",
    n: AtLeastOne | None = None,
    seed: int = 0,
    concurrency: AtLeastOne | None = 64,
    cut_off: CutOff = "fail",
    **collecting: Any,
) -> BranchReport:
    """Continue recorded failures with groups of reflections, and append the branches to the store at `out`.

    A failed try is branched off if `max_attempts` allows a further one: with 2, the default, the first tries; with 3,
    also the failed retries after a reflection. Each verifier that takes no environment judges the recorded answers
    again first, so that no token is sampled for an answer that it cannot judge. The recorded verdict and its feedback
    stay, and are what a reflection reads.

    Args:
        trajectories: recorded episodes, such as `load("runs/prod")`; branches among them are not branched off again.
        failed: leave out episodes whose final answer passed.
        since: branch off only episodes that were recorded since then: `7d`, `12h`, or a date such as 2026-11-01.
        n: maximum number of failures; default: all.
        seed: another one chooses others of them.
        concurrency: maximum number of concurrent episodes, as in `collect`.
        cut_off: as in `collect`.
        collecting: further arguments of `collect`, such as `reflections`, `retries`, `blind_retries` and `samples`.

    Raises:
        ConfigError: there is no failure to branch off, or an argument is invalid.
        R3Error: as `collect`.
    """
    own = {name: value for name, value in collecting.items() if name in EpisodeConfig.model_fields}
    options: Any = {"reflections": COLLECT_REFLECTIONS, **own}
    config = EpisodeConfig.of(options)
    group = NextGroup(
        config.max_attempts,
        config.reflections,
        collecting.get("version"),
        any(collecting.get(maker) for maker in ("agent", "tools")),
    )
    failures = choose(trajectories, failed=failed, since=since, seed=seed, group=group)
    judging: Any = {"cut_off": cut_off, "timeout_s": config.verify_timeout_s, "concurrency": concurrency or 64}
    failures = await judged_again(failures, verifier, n=n, **judging)
    failures.check()
    given: Mapping[str, Any] = {"concurrency": concurrency, "cut_off": cut_off, **collecting}
    return BranchReport.of(failures, await collect(failures.begins, policy=policy, verifier=verifier, out=out, **given))
