"""Learn from failures that production recorded: branch, train, evaluate. Needs `r3agent[serve,train]`.

Production reflects once on a failure, a group of one; a branch goes on from the same failure with eight reflections.
"""

import tempfile

from r3agent import OpenAIPolicy, Recorder, Sampling, build_graph
from r3agent.evaluate import table
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

SETTINGS = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.reflections": 8,
    "train.learning_rate": 1e-3,
    "train.batch_size": 128,
    "eval.n": 60,
}

with ServerProcess("bundled") as server, tempfile.TemporaryDirectory() as directory:
    run = Run(directory, {**SETTINGS, "policy.base_url": server.base_url})
    run.write_config()

    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(max_tokens=24))
    graph = build_graph(policy=policy, verifier=find_verifier("countdown")).compile()
    with Recorder(run=directory) as recorder:
        for task in find_tasks("countdown", 60, seed=1):
            recorder.record(graph.invoke({"task": task.model_dump()})["trajectory"])
    policy.close()

    report = run.branch()  # as `r3agent branch --run directory --reflections 8`
    print(f"{report.branches} failures of {report.read} episodes branched off, left out: {report.left_out}")
    print(f"{report.summary.groups_with_variance} groups to learn from, prompts: {report.summary.recorded_prompts}")

    card = run.train()
    print(table(run.evaluate("v0000", card.version)))
