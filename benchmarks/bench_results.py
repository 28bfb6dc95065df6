"""How good the shipped jobs are: their test metrics against a plain Keras script and scikit-learn on the very same rows.

Each data set is run by ``refit run`` with its job in ``deployments/``, once for each seed, in a folder of its own; its rivals then learn
from that run's train rows, stop early by its validation rows, and are measured on its test rows. Splits by hash are the same for every
seed, so the spread is that of weights and order alone. Rivals take the data's own columns, as the usual script does; with ``--derived``
also those that the job makes of them. Wall seconds are those of whole processes. Needs REFIT_DATA.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Numbers = dict[str, float]
CHECKOUT = Path(__file__).resolve().parent.parent
REFIT = str(Path(sys.executable).parent / "refit")


@dataclass(frozen=True)
class DataSet:
    """A job in ``deployments/``, what rivals do with it, and what is hoped for.

    Attributes:
        kind: of the rivals: table, text or images.
        goals: test metrics that refit is to reach.
        published: what others report, on their own splits.
    """

    kind: str
    goals: Numbers
    published: str


DATA = {
    "adult": DataSet("table", {"accuracy": 0.858}, "tuned MLP .852, boosted trees .872 (Gorishniy et al. 2021)"),
    "taxi": DataSet("table", {"accuracy": 0.897, "auc": 0.950}, "TFX's tutorial .79, AUC .93"),
    "california_housing": DataSet("table", {"rmse": 52_000}, "linear 70,100, boosted trees 47,900 (scikit-learn's defaults)"),
    "bike_sharing": DataSet("table", {"rmse": 45}, "boosted trees 43.1 (scikit-learn's defaults, random split)"),
    "sms_spam": DataSet("text", {"accuracy": 0.985}, "tf-idf and logistic regression .980"),
    "penguins": DataSet("table", {"accuracy": 0.97}, "logistic regression .988 on 86 rows"),
    "digits": DataSet("images", {"accuracy": 0.985}, "nearest neighbours .98 (UCI's optdigits)"),
    "fashion_mnist": DataSet("images", {"accuracy": 0.92}, "two convolutions .876 to .934 (Zalando's README)"),
}
LOWER_IS_BETTER = {"rmse"}
ONE_POINT = 0.01


# ---- contenders


def run_refit(name: str, seed: int, home: str) -> tuple[Numbers, dict[str, str]]:
    """Run the job as people do; test metrics and seconds, and where its rows lie."""
    environment = {**os.environ, "REFIT_HOME": home, "PREFECT_HOME": f"{home}-prefect"}
    environment.pop("PREFECT_API_URL", None)
    command = [REFIT, "run", f"deployments/{name}.yaml", "--set", f"seed={seed}", "--json"]
    output, seconds = _timed(command, environment)
    record = json.loads(output)
    numbers = {**record["metrics"]["test"], "seconds": seconds, "fit": record["seconds"]["fit"]}
    numbers |= {f"validation {metric}": value for metric, value in record["metrics"]["validation"].items()}
    return numbers | {f"{side} rows": record["rows"][side] for side in ("train", "validation", "test")}, record


def run_rival(rival: str, name: str, seed: int, home: str, record: dict[str, str], *, derived: bool) -> Numbers:
    """Let a rival learn from the rows of refit's run."""
    arguments = [rival, DATA[name].kind, home, record["job"], record["run"], seed, derived]
    output, seconds = _timed([sys.executable, __file__, "--work", json.dumps(arguments)], dict(os.environ))
    numbers: Numbers = json.loads(output.splitlines()[-1])
    return numbers | {"seconds": seconds}


def _timed(command: Sequence[str], environment: dict[str, str]) -> tuple[str, float]:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout, time.perf_counter() - started


# ---- telling


def measure(name: str, seeds: Sequence[int], *, derived: bool) -> None:
    """All contenders on one data set, once a seed, and print what came out."""
    found: dict[str, list[Numbers]] = {"refit": [], "plain Keras": [], "scikit-learn": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="refit-bench-") as folder:
            numbers, record = run_refit(name, seed, f"{folder}/home")
            found["refit"].append(numbers)
            for rival in ("plain Keras", "scikit-learn"):
                found[rival].append(run_rival(rival, name, seed, f"{folder}/home", record, derived=derived))
        told = (f"{contender} {numbers[-1][metric]:.6g}" for metric in DATA[name].goals for contender, numbers in found.items())
        print(f"{name}, seed {seed}: {', '.join(told)}", flush=True)
    tell(name, found)


def tell(name: str, found: dict[str, list[Numbers]]) -> None:
    """Mean and standard deviation over seeds, against goals and rivals."""
    first, data = found["refit"][0], DATA[name]
    rows = ", ".join(f"{first[f'{side} rows']:,.0f} {side}" for side in ("train", "validation", "test"))
    print(f"\n{name}: {rows} rows, {len(found['refit'])} seeds; published: {data.published}")
    for contender, numbers in found.items():
        told = "  ".join(f"{metric} {_spread([n[metric] for n in numbers])}" for metric in data.goals)
        print(f"  {contender:<14}{told}  {statistics.mean(n['seconds'] for n in numbers):.0f} s")
    told = ", ".join(f"{metric} {_spread([n[f'validation {metric}'] for n in found['refit']])}" for metric in data.goals)
    print(f"  of refit: fit {statistics.mean(n['fit'] for n in found['refit']):.0f} s; on validation rows {told}")
    for metric, goal in data.goals.items():
        means = {contender: statistics.mean(n[metric] for n in numbers) for contender, numbers in found.items()}
        print(f"  {metric}: {_judge(metric, goal, means)}", flush=True)


def _spread(values: Sequence[float]) -> str:
    digits = 4 if max(values) < 10 else 1 if max(values) < 1000 else 0
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):,.{digits}f} ± {deviation:,.{digits}f}"


def _judge(metric: str, goal: float, means: Numbers) -> str:
    """Whether refit reached the goal, the plain script, and scikit-learn but for a point."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    parts = {f"{'at most' if sign < 0 else 'at least'} {goal:g}": goal, "the plain script": means["plain Keras"]}
    parts |= {"scikit-learn less a point": means["scikit-learn"] - ONE_POINT} if sign > 0 else {}
    return "; ".join(f"{what}: {'reached' if sign * means['refit'] >= sign * value else 'MISSED'}" for what, value in parts.items())


def main(names: Sequence[str], seeds: Sequence[int], *, derived: bool) -> None:
    """Measure and print."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras", "scikit-learn"))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; Python {platform.python_version()}; {versions}", flush=True)
    for name in names:
        measure(name, seeds, derived=derived)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        from rivals import compete

        print(json.dumps(compete(*json.loads(sys.argv[2]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("data", nargs="*", metavar="DATA", help=f"data sets: {', '.join(DATA)}; by default all")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each contender for each of them")
        parser.add_argument("--derived", action="store_true", help="give rivals the columns that a job derives, too")
        chosen = parser.parse_args()
        unknown = set(chosen.data) - set(DATA)
        if unknown:
            parser.error(f"there is no data set {', '.join(sorted(unknown))}: choose from {', '.join(DATA)}")
        if "REFIT_DATA" not in os.environ and set(chosen.data or DATA) != {"digits"}:
            parser.error("set REFIT_DATA to the folder that holds the data sets")
        main(chosen.data or list(DATA), chosen.seeds, derived=chosen.derived)
