"""How long people wait: whole commands from a cold process, with where the time goes.

Prints medians of a few runs against the limits that the project set itself, and, for the run, the seconds of each stage and
the ratio to the bare imports that no run can do without. Usage: ``python benchmarks/bench_cold_start.py [runs]``.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REFIT = str(Path(sys.executable).parent / "refit")
JOB = "deployments/digits.yaml"
LIMITS = {"refit --help": 0.6, "refit check": 3.0, "refit run": 35.0, "refit run, nothing changed": 6.0}


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Wall seconds and stdout of one command.

    Raises:
        CalledProcessError: it failed.
    """
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def main(runs: int) -> None:
    """Measure and print."""
    seconds: dict[str, list[float]] = {}
    stages: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="refit-bench-") as folder:
        environment = {**os.environ, "PREFECT_HOME": f"{folder}/prefect"}
        environment.pop("PREFECT_API_URL", None)
        for number in range(runs):
            environment["REFIT_HOME"] = f"{folder}/artifacts-{number}"
            commands = {
                "import tensorflow": [sys.executable, "-c", "import tensorflow"],
                "import prefect": [sys.executable, "-c", "import prefect"],
                "refit --help": [REFIT, "--help"],
                "refit check": [REFIT, "check", JOB],
                "refit run": [REFIT, "run", JOB, "--json"],
                "refit run, nothing changed": [REFIT, "run", JOB, "--json"],
            }
            for name, command in commands.items():
                wall, output = measure(command, environment)
                seconds.setdefault(name, []).append(wall)
                if name == "refit run":
                    stages.append(json.loads(output)["seconds"])
    medians = {name: statistics.median(walls) for name, walls in seconds.items()}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {runs} runs; medians in seconds")
    for name, median in medians.items():
        limit = f"limit {LIMITS[name]:>5}" if name in LIMITS else ""
        print(f"  {name:<28}{median:8.2f}  (min {min(seconds[name]):.2f}, max {max(seconds[name]):.2f})  {limit}")
    print("  of refit run, by stage:")
    for stage in stages[0]:
        print(f"    {stage:<26}{statistics.median(s[stage] for s in stages):8.2f}")
    inside = sum(statistics.median(s[stage] for s in stages) for stage in stages[0])
    print(f"    {'start (imports, server)':<26}{medians['refit run'] - inside:8.2f}")
    print(f"  refit run / import tensorflow: {medians['refit run'] / medians['import tensorflow']:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
