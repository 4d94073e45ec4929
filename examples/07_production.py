"""Recording in production, with verdicts that arrive later. Needs `r3agent[serve]`."""

import tempfile

from r3agent import OpenAIPolicy, Recorder, Sampling, build_graph, label, load
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

with ServerProcess("bundled") as server, tempfile.TemporaryDirectory() as directory:
    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(max_tokens=24))
    graph = build_graph(policy=policy, verifier=find_verifier("later")).compile()

    answered: dict[str, str] = {}
    with Recorder(directory, sample_rate=1.0) as recorder:  # `record` never waits for the disk and never raises
        for task in find_tasks("countdown", 8, seed=1):
            result = graph.invoke({"task": task.model_dump()})
            recorder.record(result["trajectory"])
            answered[result["trajectory"]["trajectory_id"]] = result["answer"]

    # Hours later, perhaps on another machine, the customers' reactions are known. `r3agent label` does the same.
    for trajectory_id, answer in answered.items():
        label(directory, trajectory_id, passed=len(answer) < 34, by="customers")

    for trajectory in load(directory):
        print(f"{trajectory.answer.text:<40} {'fine' if trajectory.answer.passed else 'complained'}")
    print(f"{recorder.counts.recorded} recorded, {len(answered)} labelled")
