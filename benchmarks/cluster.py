"""Cost of collecting over a Ray cluster, on an endpoint that answers at once, in a process of its own.

An episode is an attempt that fails, 8 reflections and 8 retries: 10 requests of 17 answers of 64 tokens with logprobs
and ids. The same number of episodes is collected in this process, and then on a local cluster of `--cpus` CPUs whose
workers have collected before. `cpu_ms_per_episode` is the CPU time of this process, and of all workers for `ray`;
`driver_cpu_ms_per_part` that of this process meanwhile, with its start. The endpoint needs CPU too, so on a small
machine the CPU times tell more than the rates.

    python -m benchmarks.cluster [--episodes 400] [--cpus 1]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from benchmarks.stub import allow_files, stub_server
from r3agent.run.stages import Run
from r3agent.store.registry import Registry
from r3agent.store.shards import shards


def collected(directory: Path, url: str, episodes: int, **settings: Any) -> Run:
    """Make a run that collects from the stub."""
    directory.mkdir()
    file = directory / "tasks.jsonl"
    file.write_text(
        "\n".join(json.dumps({"id": f"t{i}", "prompt": f"{i}?", "answer": "x"}) for i in range(3 * episodes))
    )
    Registry(directory).add_base("stub", "bundled")  # a run with a version asks no server for it
    task = {"task.source": str(file), "task.verifier": "exact", "policy.model": "stub", "policy.base_url": url}
    run = Run(directory, {**task, "collect.n": episodes, "collect.concurrency": 64, **settings})
    run.ensure_live()
    summary = run.collect()
    assert (summary.episodes, summary.errors) == (episodes, {}), summary
    return run


def cpu_of_workers() -> float:
    processes = psutil.Process().children(recursive=True)
    workers = [each for each in processes if each.name().startswith("ray::") and "Agent" not in each.name()]
    return sum(sum(each.cpu_times()[:2]) for each in workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--cpus", type=int, default=1)
    options = parser.parse_args()
    allow_files()
    results: dict[str, float] = {}
    with stub_server() as port, tempfile.TemporaryDirectory() as folder:
        url, n = f"http://127.0.0.1:{port}/v1", options.episodes
        collected(Path(folder, "warm"), url, 32)
        start, cpu = time.perf_counter(), time.process_time()
        run = collected(Path(folder, "local"), url, n)
        results["local_episodes_per_s"] = n / (time.perf_counter() - start)
        results["local_cpu_ms_per_episode"] = (time.process_time() - cpu) / n * 1e3
        results["bytes_per_episode"] = sum(file.stat().st_size for file in shards(run.directory)) / n
        node = {"num_cpus": options.cpus, "node_ip_address": "127.0.0.2", "include_dashboard": False}
        node |= {"include_log_monitor": False, "no_monitor": True}
        ray.init(address=Cluster(initialize_head=True, head_node_args=node).address, log_to_driver=False)
        engine = {"collect.engine": "ray"}
        collected(Path(folder, "warm-ray"), url, 64 * options.cpus, **engine)
        start, cpu, workers = time.perf_counter(), time.process_time(), cpu_of_workers()
        run = collected(Path(folder, "ray"), url, n, **engine)
        results["ray_episodes_per_s"] = n / (time.perf_counter() - start)
        results["ray_cpu_ms_per_episode"] = (cpu_of_workers() - workers) / n * 1e3
        results["parts"] = len(shards(run.directory))
        results["driver_cpu_ms_per_part"] = (time.process_time() - cpu) / results["parts"] * 1e3
        ray.shutdown()
    for name, value in results.items():
        print(f"{name:28} {value:.4g}")
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
