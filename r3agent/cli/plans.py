"""Output of `r3agent collect --plan` and `r3agent train --plan`."""

from __future__ import annotations

from datetime import timedelta

from r3agent._util.messages import count
from r3agent.cli.command import Output, next_step
from r3agent.cli.progress import ConsoleReporter
from r3agent.run.plan import plan_collection, plan_run_training
from r3agent.run.stages import Run


def collect_plan(run: Run) -> Output:
    """Estimate a collection."""
    plan = plan_collection(run)
    text = f"{count(plan.episodes - plan.stored, 'episode')} to run, of {plan.episodes}; stored: {plan.stored}\n"
    if plan.measured:
        prices = run.config.policy.prices
        cost = f", {plan.cost:.3g} {prices.currency}" if prices and plan.cost is not None else ""
        text += (
            f"about {plan.tokens_sampled:,} sampled tokens in {plan.calls:,} calls{cost}, {plan.bytes:,} bytes stored\n"
            f"{_seconds(plan.seconds)} with {count(plan.in_flight, 'episode')} at once, "
            f"if one takes {plan.episode_s:.3g} s, as the {plan.measured} that are stored"
        )
    else:
        few = next_step("collect", "--run", str(run.directory), "--max-episodes", "16")
        text += f"nothing is stored to estimate from: `{few}` collects a few"
    return Output(plan.model_dump(), text)


def train_plan(run: Run) -> Output:
    """Estimate a training."""
    with ConsoleReporter() as reporter:
        plan = plan_run_training(run, reporter.training)
    lines = [
        f"{count(plan.rows, 'row')} of {count(plan.tries, 'try')}, {plan.tokens:,} tokens, {count(plan.steps, 'step')}",
        "rows by label: " + ", ".join(f"{label} {n}" for label, n in plan.labels.items()),
        *(f"no row of {label}: {why}" for label, why in plan.remedies.items()),
        f"{plan.trained_parameters:,} of {plan.parameters:,} weights trained: {plan.memory_gib:.3g} GiB of weights, "
        "gradients and optimizer in one process, besides activations",
        f"{_seconds(plan.seconds)} at the speed of {plan.measured_on}"
        if plan.measured_on
        else "a first training measures the speed",
    ]
    return Output(plan.model_dump(), "\n".join(lines))


def _seconds(seconds: float | None) -> str:
    return str(timedelta(seconds=round(seconds or 0)))
