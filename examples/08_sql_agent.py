"""Agent that writes SQL, verified by the rows that its query returns.

The bundled policy cannot write SQL, so a script replaces the model: its first answer is wrong, its second right. Set
`R3AGENT_BASE_URL` and `R3AGENT_MODEL` to use your own model.
"""

import os

from shop import tasks

from r3agent import OpenAIPolicy, Trajectory, build_graph
from r3agent.testing import ScriptedEndpoint
from r3agent.verifiers import find_verifier

WITH_FEEDBACK = (
    "Your query is wrong: {{ feedback }}. Say in one sentence what it misses."  # the paper's prompt has no feedback
)


def script(body: dict, choice: int) -> str:
    """Answer one question: wrongly at first, correctly after a reflection."""
    prompt = body["messages"][-1]["content"]
    if prompt.startswith("Your query is wrong"):
        return "An inner join leaves out the customers without an order."
    join = "LEFT JOIN" if "reflection" in prompt else "JOIN"
    query = f"SELECT name, count(o.id) FROM customers c {join} orders o ON customer_id = c.id GROUP BY 1 ORDER BY 1"
    return f"```sql\n{query}\n```"


with ScriptedEndpoint(script) as endpoint:
    url, model = os.environ.get("R3AGENT_BASE_URL", endpoint.url), os.environ.get("R3AGENT_MODEL", endpoint.model)
    policy = OpenAIPolicy(url, model)
    graph = build_graph(policy=policy, verifier=find_verifier("sql"), reflect_prompt=WITH_FEEDBACK).compile()
    task = next(task for task in tasks(None) if task.id == "shop/orders-each")
    result = graph.invoke({"task": task.model_dump()})
    policy.close()

print(task.messages[-1]["content"])
for span in Trajectory.model_validate(result["trajectory"]).spans:
    print(f"\n{span.label}: {span.text}")
    if span.verdict is not None:
        print(span.verdict.feedback or "right")
