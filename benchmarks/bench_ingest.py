"""How fast raw CSV files become a snapshot, against a bare ``COPY … TO parquet`` of DuckDB over the same columns.

Each measurement is a process of its own (wall seconds of the work without imports, peak memory of the process), contenders take
turns, ratios are of medians. refit's side includes casts, rejects with their lines, the hash of the key, de-duplication, content
digests and the statistics that drift is measured with. Usage: ``python benchmarks/bench_ingest.py [gigabytes] [runs]``.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

TYPES = {
    "id": "int64",
    "moment": "timestamp",
    "amount": "float64",
    **{f"f{i}": "float64" for i in range(1, 7)},
    "n1": "int32",
    "n2": "int32",
    "n3": "int32",
    "flag": "boolean",
    "city": "string",
    "company": "string",
    "token": "string",
    "note": "string",
    "y": "int32",
}
ROWS_PER_GIGABYTE = 5_750_000
GENERATE = """COPY (SELECT i AS id, timestamp '2024-01-01' + interval (i * 7) second AS moment,
  CASE WHEN i % 1000 = 17 THEN 'oops' ELSE round(random() * 1000, 4)::VARCHAR END AS amount,
  round(random() * 10, 3) AS f1, round(random() * 10, 3) AS f2, round(random() - 0.5, 6) AS f3, random() AS f4,
  round(random() * 1e6, 2) AS f5, CASE WHEN random() < 0.05 THEN NULL ELSE round(random() * 100, 2) END AS f6,
  (random() * 100)::INT AS n1, (random() * 100000)::INT AS n2, (random() * 2)::INT AS n3, random() < 0.3 AS flag,
  'c' || (random() * 20)::INT AS city, 'company ' || (random() * 500)::INT AS company, md5(i::VARCHAR)[:12] AS token,
  'some words number ' || (random() * 1e6)::INT || ', quoted' AS note, (random() < 0.4)::INT AS y
  FROM range({first}, {last}) t(i)) TO '{path}' (HEADER, DELIMITER ',')"""


def generate(path: Path, first: int, last: int) -> None:
    """Rows ``first`` to ``last`` of mixed columns, one in a thousand with a word where a number belongs."""
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(GENERATE.format(first=first, last=last, path=path))


def job(pattern: str, *, key: list[str], declared: bool) -> dict[str, object]:
    """A job over the files."""
    data = {"sources": [{"kind": "csv", "path": pattern}], "key": key, "columns": TYPES if declared else {}}
    return {"name": "bench", "data": data, "target": {"column": "y"}}


# ---- what a worker does


def copy(pattern: str, target: str, declared: bool) -> None:
    """The contender."""
    from refit.schema import SQL_TYPES

    columns = ", ".join(f"'{name}': '{SQL_TYPES[kind]}'" for name, kind in TYPES.items())  # type: ignore[index]
    reading = f"columns={{{columns}}}, auto_detect=false" if declared else "sample_size=-1"
    with duckdb.connect() as connection:
        rows = f"SELECT * FROM read_csv('{pattern}', {reading}, header=true, ignore_errors=true)"  # noqa: S608 -- our own words
        connection.execute(f"COPY ({rows}) TO '{target}' (FORMAT parquet)")


def ingest(home: str, described: dict[str, object]) -> None:
    """The ingest and the statistics of its rows."""
    from refit.config import parse_job
    from refit.drift import measure_drift
    from refit.ingestion import ingest as bring_up_to_date
    from refit.layout import Layout

    job = parse_job(described)
    snapshot = bring_up_to_date(job, Layout(Path(home)))
    measure_drift(job, snapshot, None, Layout(Path(home)), version=None)


def work(name: str, arguments: list[object]) -> None:
    """Do one thing and print its seconds and the peak memory of this process."""
    import refit.drift
    import refit.ingestion  # noqa: F401 -- imports are not measured

    todo: dict[str, Callable[..., None]] = {"copy": copy, "ingest": ingest}
    started = time.perf_counter()
    todo[name](*arguments)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


# ---- what is measured


def run(name: str, *arguments: object) -> tuple[float, float]:
    """Seconds and peak megabytes of one worker."""
    command = [sys.executable, __file__, "--work", name, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return told["seconds"], told["megabytes"]


def pair(folder: Path, pattern: str, runs: int, *, key: list[str], declared: bool) -> tuple[float, float, float]:
    """Medians over turns: seconds of refit, seconds of COPY, peak megabytes of refit."""
    ours, theirs, memory = [], [], []
    for _ in range(runs):
        shutil.rmtree(folder / "home", ignore_errors=True)
        seconds, megabytes = run("ingest", str(folder / "home"), job(pattern, key=key, declared=declared))
        ours.append(seconds)
        memory.append(megabytes)
        theirs.append(run("copy", pattern, str(folder / "copy.parquet"), declared)[0])
    return statistics.median(ours), statistics.median(theirs), statistics.median(memory)


def main(gigabytes: float, runs: int) -> None:
    """Measure and print."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, DuckDB {duckdb.__version__}; {runs} runs")
    with tempfile.TemporaryDirectory(prefix="refit-bench-") as name:
        folder = Path(name)
        rows = int(gigabytes * ROWS_PER_GIGABYTE)
        first = measure_size(folder, rows, runs)
        measure_memory(folder, rows)
        measure_increment(folder, rows, first)
        measure_unchanged(folder)


def measure_size(folder: Path, rows: int, runs: int) -> float:
    """The main figure, in three ways; returns the seconds of the first ingest with a key."""
    path = folder / "a.csv"
    generate(path, 0, rows)
    print(f"{path.stat().st_size / 1e9:.2f} GB, {rows:,} rows, {len(TYPES)} columns, 0.1 % bad rows")
    cases = {"key of two columns": (["id", "moment"], True, 1.5), "no key": ([], True, 2.0), "no key, types inferred": ([], False, None)}
    seconds = {}
    for label, (key, declared, limit) in cases.items():
        ours, theirs, memory = pair(folder, str(path), runs, key=key, declared=declared)
        seconds[label] = ours
        told = f"limit {limit}" if limit else ""
        print(f"  {label:<24} refit {ours:6.2f} s   COPY {theirs:6.2f} s   ratio {ours / theirs:5.2f}  {told:<10} peak {memory:6.0f} MB")
    path.unlink()
    return seconds["key of two columns"]


def measure_memory(folder: Path, rows: int) -> None:
    """Peak memory over a quarter of the rows, all, and twice as many."""
    peaks = []
    for factor in (0.25, 1, 2):
        path = folder / "m.csv"
        generate(path, 0, int(rows * factor))
        shutil.rmtree(folder / "home", ignore_errors=True)
        peaks.append(
            (path.stat().st_size / 1e9, run("ingest", str(folder / "home"), job(str(path), key=["id", "moment"], declared=True))[1])
        )
        path.unlink()
    print("  peak memory: " + ", ".join(f"{size:.2f} GB {peak:.0f} MB" for size, peak in peaks) + " (limit 1500, flat)")


def measure_increment(folder: Path, rows: int, first: float) -> None:
    """One file in a hundred is new."""
    (folder / "in").mkdir()
    for k in range(101):
        generate(folder / "in" / f"{k:03}.csv", k * rows // 100, (k + 1) * rows // 100)
    (folder / "in" / "100.csv").rename(folder / "new.csv")
    shutil.rmtree(folder / "home", ignore_errors=True)
    described = job(str(folder / "in" / "*.csv"), key=["id", "moment"], declared=True)
    whole = run("ingest", str(folder / "home"), described)[0]
    (folder / "new.csv").rename(folder / "in" / "100.csv")
    more = run("ingest", str(folder / "home"), described)[0]
    shares = f"{more / whole:.1%} of that, {more / first:.1%} of the same rows as one file"
    print(f"  100 files {whole:.2f} s, one more {more:.2f} s: {shares} (limit 5 %)")
    shutil.rmtree(folder / "in")


def measure_unchanged(folder: Path) -> None:
    """A thousand files, nothing new."""
    (folder / "many").mkdir()
    for k in range(1000):
        generate(folder / "many" / f"{k:04}.csv", k * 1000, (k + 1) * 1000)
    shutil.rmtree(folder / "home", ignore_errors=True)
    described = job(str(folder / "many" / "*.csv"), key=["id", "moment"], declared=True)
    whole = run("ingest", str(folder / "home"), described)[0]
    time.sleep(3)  # files younger than two seconds are not trusted by their times
    run("ingest", str(folder / "home"), described)
    again = statistics.median(run("ingest", str(folder / "home"), described)[0] for _ in range(3))
    print(f"  1,000 files {whole:.2f} s, nothing new {again:.2f} s (limit 2 s)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
