"""Program in any language as the agent, recorded through a gateway. Needs `r3agent[serve,gateway]`.

`countdown_agent.py` beside this file asks the address in `OPENAI_BASE_URL` and imports nothing of r3agent; it could as
well be a shell script, a binary, or a coding agent. Each try runs it once, with a URL of its own.
"""

import sys
from pathlib import Path

from r3agent import OpenAIPolicy, Program, Sampling, Trajectory, build_graph
from r3agent.serve import ServerProcess
from r3agent.tasks.countdown_steps import generate
from r3agent.verifiers import find_verifier

program = Program([sys.executable, str(Path(__file__).with_name("countdown_agent.py"))], memory_mb=512)

with ServerProcess("bundled-steps") as server:
    policy = OpenAIPolicy(server.base_url, "bundled-steps", sampling=Sampling(max_tokens=24))
    verifier = find_verifier("countdown_steps")
    graph = build_graph(policy=policy, verifier=verifier, agent=program, max_steps=4).compile()
    for task in generate(3, seed=0, split="test"):
        trajectory = Trajectory.model_validate(graph.invoke({"task": task.model_dump()})["trajectory"])
        print(f"\n{task.messages[-1]['content'].partition('.')[0]}")
        for a_try in trajectory.tries:
            exact = all(step.capability == "trainable-exact" for step in a_try.steps)
            verdict = "right" if a_try.passed else "wrong"
            print(f"{a_try.label}: {len(a_try.steps)} steps{', all exact' if exact else ''}: {verdict}")
    program.close()
    policy.close()
