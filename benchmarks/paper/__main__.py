"""Run the paper's protocol: failures, reflections, GRPO on their tokens, and a paired test on held-out tasks.

    python -m benchmarks.paper CONFIG ... [--seed 0 1] [--out DIR] [--warm-up FILE] [--results FILE]

A CONFIG has settings of an r3.toml, and later ones win; see the files beside this one. For each seed, `collect` samples
first tries of training tasks with the base model, `collect.samples` of each, whose failures are the data set. In each
of `loop.rounds` rounds `branch` draws `collect.reflections` reflections, and a retry after each, of `branch.n` of these
failures with the newest version, and `train` and `deploy` make the next one. `eval` compares the last version with the
first on `eval.n` held-out tasks: first try, after a reflection, blind retry, the controls and the other sources of
`[eval]`. With --warm-up, the first version is the base model after supervised training on its own first tries that
passed: the control of what follows. FILE has its settings in addition to those of CONFIG. A seed draws its own tasks,
those that are held out too; of a source with few, seeds share some.

A command that has ended is not run again, and one that was stopped goes on, so that the same call resumes. A folder
belongs to the settings, prompts and weights that it was first used with, and is refused for others. Seeds that are
complete are in benchmarks/finished; every call reports on all of them with the same ones. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tomllib
from pathlib import Path

from benchmarks.paper.commands import PYTHON, run_seed
from benchmarks.paper.report import line_of, result_of, section
from benchmarks.paper.settings import decisive
from benchmarks.results import FINISHED, Finished, digest, replace_section
from r3agent.errors import R3Error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="default: runs/paper/CONFIG-SETTINGS, of the last one and a digest")
    parser.add_argument("--warm-up", type=Path, help="settings of a supervised stage before the protocol")
    parser.add_argument("--url", default="", help="of a server of the model; default: [serve] of CONFIG starts one")
    parser.add_argument("--launcher", default=shlex.join(PYTHON), help="words before `r3agent train`")
    parser.add_argument("--results", type=Path, help="Markdown file that gets the section")
    options = parser.parse_args()
    if options.url and options.warm_up:
        parser.error("--url serves one model, and a warm-up makes another: leave --url out")
    name = options.configs[-1].stem
    try:
        settings = {"config": name, "made_with": digest(decisive(options.configs, options.warm_up))}
    except (R3Error, OSError, tomllib.TOMLDecodeError) as error:
        parser.error(str(error))
    out: Path = options.out or Path("runs/paper") / f"{name}-{settings['made_with']}"
    finished = Finished(FINISHED / "paper.jsonl")
    for seed in options.seed:
        if finished.find({**settings, "seed": seed}) is None:
            folder = out / f"seed-{seed}"
            run_seed(
                options.configs,
                seed,
                folder,
                warm_up=options.warm_up,
                url=options.url,
                launcher=shlex.split(options.launcher),
            )
            finished.add({**settings, "seed": seed}, result_of(folder))
    found = {key["seed"]: result for key, result in finished.all() if key == {**settings, "seed": key["seed"]}}
    results = {seed: found[seed] for seed in sorted(found)}
    command = f"python -m benchmarks.paper {' '.join(map(str, options.configs))} --seed {' '.join(map(str, results))}"
    command += f" --warm-up {options.warm_up}" if options.warm_up else ""
    text = section(results)
    print(text)
    if options.results:
        replace_section(options.results, f"The paper's protocol: {name}", command, text)
    print(json.dumps(line_of(name, results)))


if __name__ == "__main__":
    main()
