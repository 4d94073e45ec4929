"""One episode: attempt, verify, and after a failure reflect and retry. Needs `r3agent[serve]`."""

from r3agent import OpenAIPolicy, Sampling, Trajectory, build_graph
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

(task,) = find_tasks("countdown", 1, seed=7)

with ServerProcess("bundled") as server:  # or the address of any OpenAI-compatible server
    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(max_tokens=24))
    graph = build_graph(policy=policy, verifier=find_verifier("countdown"), max_attempts=3).compile()
    result = graph.invoke({"task": task.model_dump()})

print(task.messages[-1]["content"])
for span in Trajectory.model_validate(result["trajectory"]).spans:
    print(f"{span.label:<8} {span.text}   {'' if span.verdict is None else span.verdict.feedback or 'right'}")
print("passed" if result["passed"] else "failed")
