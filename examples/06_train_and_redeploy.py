"""Collect, train on the reflections, deploy the new weights and evaluate them. Needs `r3agent[serve,train]`.

The number of episodes is small, so that it takes about a minute.
"""

import tempfile

from r3agent.evaluate import table
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess

SETTINGS = {  # the same names as in r3.toml
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.n": 96,
    "collect.reflections": 8,
    "train.learning_rate": 1e-3,
    "train.batch_size": 128,
    "eval.n": 60,
}

with ServerProcess("bundled") as server, tempfile.TemporaryDirectory() as directory:
    run = Run(directory, {**SETTINGS, "policy.base_url": server.base_url})

    summary = run.collect()
    print(f"{summary.episodes} episodes, {summary.groups_with_variance} groups to learn from")

    card = run.train()
    gap = card.metrics["mismatch"]["gap"]["mean"]  # between the server's logprobs and those computed by training
    print(f"{card.version} was trained from {card.parent}; gap {gap:.1e}")

    report = run.deploy()
    print(f"{report.served_name} is live, {report.previous} was before")

    print(table(run.evaluate("v0000", card.version)))

    print(f"back to {run.rollback().version}")
