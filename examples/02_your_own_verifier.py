"""Your own verifier: any callable that takes the task and the answer. Needs `r3agent[serve]`."""

from r3agent import Answer, OpenAIPolicy, Sampling, Task, Verdict, build_graph
from r3agent.serve import ServerProcess


def short_enough(task: Task, answer: Answer) -> Verdict:
    """Pass answers that have at most the number of words that the task allows."""
    words = len(answer.split())
    passed = words <= task.info["most_words"]
    return Verdict(passed=passed, score=float(passed), feedback=f"{words} words")


task = Task(
    messages=({"role": "user", "content": "Using the numbers [2, 3, 4], create an equation that equals 20."},),
    info={"most_words": 9},
)

with ServerProcess("bundled") as server:
    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(temperature=0, max_tokens=24))
    graph = build_graph(policy=policy, verifier=short_enough).compile()
    result = graph.invoke({"task": task.model_dump()})

print(result["answer"], result["passed"])
