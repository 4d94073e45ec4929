"""Rollouts of the `verifiers` library by its own loop; run by its interpreter, for `benchmarks.collect_overhead`.

For each number on standard input it generates that many rollouts of a single turn, 64 at a time, with its
`Environment.generate`, and prints the number, the seconds and the CPU seconds that it took as a line of JSON.
"""

import asyncio
import json
import sys
import time
from typing import Any

CONCURRENCY = 64


def never(completion: Any, **_: Any) -> float:
    return 0.0


def ignore(*_: Any) -> None:
    """Show no progress."""


async def main(url: str, messages: list[dict[str, str]], sampling: dict[str, Any]) -> None:
    import verifiers as vf  # pyright: ignore
    from datasets import Dataset  # pyright: ignore

    dataset: Any = Dataset.from_list([{"prompt": messages, "answer": ""}])
    env: Any = vf.SingleTurnEnv(dataset=dataset, rubric=vf.Rubric(funcs=[never]))
    [row] = env.get_dataset().to_list()
    client = vf.ClientConfig(api_base_url=url, api_key_var="VERIFIERS_KEY", max_retries=0)
    silent = {"on_start": ignore, "on_progress": ignore, "on_log": ignore}
    for line in iter(sys.stdin.readline, ""):
        inputs = [{**row, "example_id": i} for i in range(int(line))]
        start, cpu = time.perf_counter(), time.process_time()
        result = await env.generate(
            inputs,
            client=client,
            model="stub",
            sampling_args=sampling,
            max_concurrent=CONCURRENCY,
            state_columns=["trajectory"],
            **silent,
        )
        took = [time.perf_counter() - start, time.process_time() - cpu]
        steps = [output["trajectory"][0] for output in result["outputs"]]
        assert all(len(step["tokens"]["completion_logprobs"]) for step in steps), steps[0]
        print(json.dumps([len(steps), *took]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*(json.loads(argument) for argument in sys.argv[1:])))
