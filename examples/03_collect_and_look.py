"""Collect episodes of many tasks concurrently and print the rewards of the reflections. Needs `r3agent[serve]`."""

import asyncio
import tempfile

from r3agent import OpenAIPolicy, Sampling, collect, groups, load
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier


async def main(base_url: str, directory: str) -> None:
    policy = OpenAIPolicy(base_url, "bundled", sampling=Sampling(max_tokens=24))
    summary = await collect(
        find_tasks("countdown", 16),
        policy=policy,
        verifier=find_verifier("countdown"),
        out=directory,
        reflections=4,
        blind_retries=1,
    )
    await policy.aclose()
    print(f"first try {summary.first_try:.0%}, {summary.groups_with_variance} groups to learn from")


with ServerProcess("bundled") as server, tempfile.TemporaryDirectory() as directory:
    asyncio.run(main(server.base_url, directory))
    for group in groups(load(directory)):
        for reflection, reward in zip(group.spans_G, group.rewards_G, strict=True):
            print(f"{group.trajectories_G[0].task.id:<24} reward {reward:.0f}  {reflection.text}")
