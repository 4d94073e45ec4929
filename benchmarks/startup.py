"""Start-up time of the command line and the import, relative to `import openai`: fresh processes, interleaved.

    python benchmarks/startup.py [REPEATS]

The last line is one JSON object; each ratio is between medians over all repeats of the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "help": ["-m", "r3agent", "--help"],
    "import": ["-c", "import r3agent"],
    "openai": ["-c", "import openai"],
}


def seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main(repeats: int) -> None:
    for arguments in COMMANDS.values():
        seconds(arguments)  # from here on, byte code and files are cached
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:<8} {value:.3f} s")
    print(
        json.dumps(
            {
                "help_vs_import_openai": round(medians["help"] / medians["openai"], 3),
                "import_vs_import_openai": round(medians["import"] / medians["openai"], 3),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
