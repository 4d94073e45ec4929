"""Rollouts of one call and a verdict beside those of the `verifiers` library, for `benchmarks.collect_overhead`.

They are made, 64 at a time, by an episode of one attempt, as `collect` runs it, and by the library's own
`Environment.generate`. `vs_verifiers` is the library's time divided by ours, in seconds or in CPU time, whichever is
less. It is version 0.1.14, which samples in its process; 0.4.0 starts a program for each rollout, even with its null
harness. It is installed into an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import verifiers_loop
from benchmarks.stub import MESSAGES
from benchmarks.turns import CONCURRENCY, Turn, turn
from r3agent import OpenAIPolicy, Task
from r3agent._util.cycles import rare_garbage_collection
from r3agent.episodes.assembly import assemble
from r3agent.episodes.run_episode import run_episode
from r3agent.verifiers.text import exact

VERIFIERS = "0.1.14"
"""Version of the library that `vs_verifiers` is about."""


async def beside_verifiers(url: str, python: Path, turns: int, rollouts: int) -> dict[str, float]:
    """Make as many rollouts in alternating turns here and in the library's process."""
    policy = OpenAIPolicy(url, "stub", concurrency=2 * CONCURRENCY)
    nodes = assemble(policy=policy, verifier=exact, max_attempts=1)
    task = Task(messages=tuple(MESSAGES), info={"answer": "none"})
    sampling = {"logprobs": True, "temperature": 1.0, "max_tokens": 512, "extra_body": {"return_token_ids": True}}
    arguments = [json.dumps(each) for each in (url, MESSAGES, sampling)]
    library = await asyncio.create_subprocess_exec(
        python,
        verifiers_loop.__file__,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "VERIFIERS_KEY": "none"},
    )
    stdin, stdout = library.stdin, library.stdout
    assert stdin is not None
    assert stdout is not None

    async def theirs(number: int) -> Turn:
        stdin.write(f"{number}\n".encode())
        return Turn(*json.loads(await stdout.readline()))

    async def rollout() -> int:
        assert (await run_episode(nodes, task)).cause is None
        return 1

    async def ours(number: int) -> Turn:
        return await turn(rollout, number=number)

    for way in (theirs, ours):
        await way(CONCURRENCY)
    pairs: list[tuple[Turn, Turn]] = []
    with rare_garbage_collection():
        for _ in range(turns):
            pairs.append((await theirs(rollouts), await ours(rollouts)))
    stdin.close()
    await library.wait()
    await policy.aclose()
    rate = statistics.median(other.seconds / mine.seconds for other, mine in pairs)
    cpu = statistics.median(other.cpu_s / mine.cpu_s for other, mine in pairs)
    return {
        "vs_verifiers": round(min(rate, cpu), 2),
        "vs_verifiers_rate": round(rate, 2),
        "vs_verifiers_cpu": round(cpu, 2),
        "cpu_ms_per_rollout": round(statistics.median(mine.cpu_s / rollouts * 1e3 for _, mine in pairs), 2),
        "verifiers_cpu_ms_per_rollout": round(statistics.median(other.cpu_s / rollouts * 1e3 for other, _ in pairs), 2),
    }


def install_verifiers(directory: Path | None) -> Path | None:
    """Return the interpreter of an environment with the library; `None` if there is none, and print why."""
    if directory is None:
        print("vs_verifiers is null: pass --verifiers DIR, a directory to install the library into")
        return None
    python = directory / "venv" / "bin" / "python"
    check = f"from importlib.metadata import version; assert version('verifiers') == '{VERIFIERS}'"
    try:
        if python.exists() and subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode == 0:
            return python
        subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"verifiers=={VERIFIERS}"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"vs_verifiers is null: verifiers {VERIFIERS} cannot be installed: {error}")
        return None
    return python
