"""How fast rows become batches: refit's two engines against what people use, and against bounds of the machine.

Each measurement is a process of its own, contenders take turns, ratios are of medians. Batches are taken within a graph, as
Keras's ``fit`` takes them, and used for nothing. refit reads its train split, which is 95 % of the rows; the others read all.
Peers that are not installed (``pip install 'refit[bench]'``) are left out and named. ``--quick`` shows that everything runs:
small data, one process, numbers that mean nothing. Memory is taken as Linux tells it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from batches import AbsentError, data

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PACKAGES = ("tensorflow", "keras", "numpy", "pyarrow", "pandas", "datasets")
BATCH_SIZES = (256, 1024)
STREAM_BATCH = 1024
MAX_WINDOWS, MAX_FIRST_SECONDS, MAX_FIT, MIN_DECODING, MIN_LOADING = 4.0, 1.0, 1.05, 0.6, 0.6

Numbers = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured; ``gigabytes`` are the sizes of the data that is streamed to see memory."""

    rows: int = 2_000_000
    records: int = 200_000
    images: int = 50_000
    window_rows: int = 262_144
    gigabytes: tuple[float, ...] = (1.0,)
    seconds: float = 5.0
    runs: int = 3
    fit_steps: int = 20
    is_quick: bool = False


QUICK = Size(10_000, 1_000, 1_000, 2_048, (0.002,), 0.1, 1, 2, is_quick=True)


@dataclass(frozen=True)
class Contender:
    """One way to batches. ``goals``: refit's speed as a multiple of it, at each batch size, where one is set."""

    name: str
    label: str
    goals: tuple[float, ...] = ()
    is_rival: bool = True


CONSTANT = Contender("constant", "a constant batch: the bound of this measurement", is_rival=False)
TABLE = (
    Contender("resident", "refit, resident", is_rival=False),
    Contender("streaming", "refit, streaming", is_rival=False),
    Contender("keras", "Keras fit(x=numpy dict), strings as codes", (2, 3)),
    Contender("records", "TFRecord in file order, batch, parse_example", (5, 9)),
    Contender("records shuffled", "the same with shuffle(10k)"),
    Contender("pandas", "pandas, from_tensor_slices, shuffle(10k), batch", (35, 85)),
    Contender("huggingface", "Hugging Face to_tf_dataset", (90, 250)),
    CONSTANT,
)
IMAGES = (
    Contender("resident", "refit, resident", is_rival=False),
    Contender("streaming", "refit, streaming", is_rival=False),
    Contender("keras images", "Keras fit(x=numpy array)", (0.75, 0.75)),
    Contender("slices", "from_tensor_slices, shuffle(10k), batch, map to [0, 1]", (2.5, 3.5)),
    Contender("slices unscaled", "the same without the map"),
    CONSTANT,
)


# ---- running workers


@dataclass(frozen=True)
class Found:
    """What a worker told in each of its runs, or why there is nothing."""

    runs: tuple[Numbers, ...] = ()
    why_not: str = ""

    def __getitem__(self, name: str) -> float:
        """The median of a number over the runs."""
        return statistics.median(numbers[name] for numbers in self.runs)


def work(name: str, arguments: list[object]) -> dict[str, object]:
    """Do one thing in this process: its numbers, or why there are none."""
    from batches.works import WORKS

    try:
        return dict(WORKS[name](*arguments))
    except AbsentError as error:
        return {"why_not": str(error)}


def run(size: Size, name: str, *arguments: object) -> dict[str, object]:
    """One worker: a process of its own, but for a quick look."""
    if size.is_quick:
        return work(name, list(arguments))
    command = [sys.executable, __file__, "--work", name, json.dumps(arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"why_not": f"failed with status {done.returncode}: {''.join(last)}"}
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def take_turns(size: Size, works: dict[str, tuple[object, ...]]) -> dict[str, Found]:
    """Run each work so many times, one after the other; one that cannot be done is not tried again."""
    told: dict[str, list[Numbers]] = {label: [] for label in works}
    why_not: dict[str, str] = {}
    for _ in range(size.runs):
        for label, (name, *arguments) in works.items():
            if label in why_not:
                continue
            numbers = run(size, str(name), *arguments)
            if "why_not" in numbers:
                why_not[label] = str(numbers["why_not"])
            else:
                told[label].append({key: float(str(value)) for key, value in numbers.items()})
    return {label: Found(tuple(runs), why_not.get(label, "")) for label, runs in told.items()}


# ---- telling


class Report:
    """Lines of the table as they are measured, and what was missed, for the end."""

    def __init__(self, *, judges: bool) -> None:
        """Nothing is told yet; without ``judges`` nothing is called reached or missed."""
        self.judges = judges
        self.missed: list[str] = []
        self.slower: list[str] = []
        self.unmeasured: list[str] = []

    def judge(self, what: str, value: float, goal: float, *, is_limit: bool = False, form: str = ".2f") -> str:
        """Words for a value and its goal; remembers a miss."""
        told = f"{value:{form}} ({'at most' if is_limit else 'at least'} {goal:g}"
        if not self.judges:
            return f"{told})"
        is_met = value <= goal if is_limit else value >= goal
        told = f"{told}: {'reached' if is_met else 'MISSED'})"
        if not is_met:
            self.missed.append(f"{what}: {told}")
        return told

    def lack(self, what: str, why_not: str) -> str:
        """Words for what could not be measured; remembers it."""
        self.unmeasured.append(f"{what}: {why_not}")
        return why_not

    def compare(self, what: str, ratio: float, goal: float | None) -> str:
        """Words for how many times faster refit is; remembers where it is slower."""
        if ratio < 1 and self.judges:
            self.slower.append(f"{what}: {ratio:.2f} of its speed")
        return f"{ratio:.2f}" if goal is None else self.judge(what, ratio, goal)

    def close(self) -> None:
        """Say plainly where refit loses."""
        told = {"What was not measured": self.unmeasured}
        if self.judges:
            told |= {"Where refit is slower than a contender": self.slower, "What was to be reached and was not": self.missed}
        for title, lines in told.items():
            print(f"\n{title}:")
            print("\n".join(f"  {line}" for line in lines) or "  nothing")


def print_speeds(report: Report, title: str, contenders: tuple[Contender, ...], found: dict[str, Found]) -> None:
    """A table of one kind of data: rows a second at each batch size, refit against each contender."""
    print(f"\n{title}")
    print(f"  {'batch':>5}  {'':<56}{'rows/s':>11}{'us CPU/row':>12}{'load s':>8}{'peak MB':>9}   refit resident / this")
    ours = found["resident"]
    for place, batch_size in enumerate(BATCH_SIZES):
        for contender in contenders:
            numbers = found[contender.name]
            what = f"{title.partition(':')[0]}, batch {batch_size}, {contender.label}"
            if numbers.why_not:
                print(f"  {batch_size:>5}  {contender.label:<56}{report.lack(what, numbers.why_not)}")
                continue
            rows = numbers[f"rows {batch_size}"]
            cells = f"{rows:>11,.0f}{numbers[f'cpu {batch_size}']:>12.2f}{numbers['load']:>8.2f}{numbers['peak']:>9,.0f}"
            ratio = ""
            if contender.is_rival and not ours.why_not:
                goal = contender.goals[place] if contender.goals else None
                ratio = report.compare(what, ours[f"rows {batch_size}"] / rows, goal)
            print(f"  {batch_size:>5}  {contender.label:<56}{cells}   {ratio}")
    for engine in ("resident", "streaming"):
        print_first(report, f"{title.partition(':')[0]}, {engine}: first batch after load", found[engine])


def print_first(report: Report, what: str, numbers: Found) -> None:
    """Seconds from loaded rows to the first batch of a fresh process."""
    if numbers.why_not:
        print(f"  {what}: {report.lack(what, numbers.why_not)}")
        return
    print(f"  {what}: {report.judge(what, numbers[f'first {BATCH_SIZES[0]}'], MAX_FIRST_SECONDS, is_limit=True)} s")


# ---- what is measured


def speeds_of(size: Size, folder: Path, contenders: tuple[Contender, ...]) -> dict[str, Found]:
    """Every contender over the same data, by turns."""
    return take_turns(size, {c.name: ("speed", str(folder), c.name, list(BATCH_SIZES), size.seconds, size.window_rows) for c in contenders})


def measure_table(size: Size, folder: Path, report: Report) -> None:
    """Rows of mixed columns."""
    found = speeds_of(size, folder / "rows", TABLE)
    title = (
        f"Table: {size.rows:,} rows of 20 float32, 4 int64, 4 string columns and a label (TFRecords of {size.records:,}); {size.runs} runs"
    )
    print_speeds(report, title, TABLE, found)


def measure_images(size: Size, folder: Path, report: Report) -> None:
    """Small images."""
    found = speeds_of(size, folder / "images", IMAGES)
    print_speeds(report, f"Images: {size.images:,} of 32 x 32 x 3 uint8; {size.runs} runs", IMAGES, found)


def measure_streaming(size: Size, folder: Path, report: Report) -> None:
    """Streaming against decoding, and its memory as the data grow."""
    rows = str(folder / "rows")
    works: dict[str, tuple[object, ...]] = {
        "decoding": ("decode", rows, size.seconds, size.window_rows),
        "streaming": ("speed", rows, "streaming", list(BATCH_SIZES), size.seconds, size.window_rows),
    }
    found = take_turns(size, works)
    print(f"\nStreaming: windows of {size.window_rows:,} rows")
    decoding = found["decoding"]["rows"]
    print(f"  decoding alone, pyarrow on one thread, strings as dictionaries: {decoding:,.0f} rows/s")
    if found["streaming"].why_not:
        print(f"  refit: {report.lack('Streaming', found['streaming'].why_not)}")
        return
    for batch_size in BATCH_SIZES:
        speed = found["streaming"][f"rows {batch_size}"]
        what = f"Streaming, batch {batch_size}, share of decoding"
        print(f"  refit, batch {batch_size:>4}: {speed:,.0f} rows/s, share {report.judge(what, speed / decoding, MIN_DECODING)}")
    for gigabytes in size.gigabytes:
        measure_stream_memory(size, folder, report, gigabytes)


def measure_stream_memory(size: Size, folder: Path, report: Report, gigabytes: float) -> None:
    """Extra memory over one epoch of the data."""
    num_rows = int(gigabytes * 1e9 / data.ROW_BYTES)
    path = folder / f"rows-{gigabytes:g}"
    prepared = run(size, "prepare_rows", str(path), num_rows, 0, size.window_rows)
    what = f"Streaming {gigabytes:g} GB, extra memory in windows"
    if "why_not" in prepared:
        print(f"  {what}: {report.lack(what, str(prepared['why_not']))}")
        return
    found = take_turns(replace(size, runs=1), {"": ("stream", str(path), STREAM_BATCH, size.window_rows, num_rows)})[""]
    if found.why_not:
        print(f"  {what}: {report.lack(what, found.why_not)}")
        return
    told = report.judge(what, found["windows"], MAX_WINDOWS, is_limit=True)
    print(f"  {gigabytes:g} GB ({num_rows:,} rows): {found['extra']:,.0f} MB extra, in windows of {found['window']:,.0f} MB: {told}")


def measure_loading(size: Size, folder: Path, report: Report) -> None:
    """Loading against pyarrow's own reader."""
    print("\nLoading the train split, resident, against pyarrow read_table on all cores")
    for name in ("rows", "images"):
        path = str(folder / name)
        found = take_turns(size, {"refit": ("load", path, size.window_rows), "pyarrow": ("read_table", path, size.window_rows)})
        ours, theirs = found["refit"], found["pyarrow"]
        what = f"Loading {name}, share of read_table's speed"
        if ours.why_not or theirs.why_not:
            print(f"  {name}: {report.lack(what, ours.why_not or theirs.why_not)}")
            continue
        told = report.judge(what, theirs["seconds"] / ours["seconds"], MIN_LOADING)
        cells = f"refit {ours['seconds']:.2f} s, {ours['peak']:,.0f} MB; pyarrow {theirs['seconds']:.2f} s, {theirs['peak']:,.0f} MB"
        print(f"  {name:<7} {cells}; share {told}")


def measure_fit(size: Size, folder: Path, report: Report) -> None:
    """A real fit of the small CNN."""
    turns = max(size.runs, 1 if size.is_quick else 3)
    arguments = ("fit", str(folder / "images"), size.fit_steps, turns, size.window_rows)
    found = take_turns(replace(size, runs=1), {"": arguments})[""]
    print(f"\nFit of models.convnet on the images, batch 256, {size.fit_steps} steps an epoch, {turns} turns in one process")
    if found.why_not:
        print(f"  {report.lack('Fit', found.why_not)}")
        return
    told = report.judge("Fit, epoch against a constant batch", found["refit"] / found["constant"], MAX_FIT, is_limit=True, form=".3f")
    print(f"  epoch {found['refit']:.2f} s, from one constant batch {found['constant']:.2f} s: {told}")


PARTS: dict[str, Callable[[Size, Path, Report], None]] = {
    "table": measure_table,
    "images": measure_images,
    "streaming": measure_streaming,
    "loading": measure_loading,
    "fit": measure_fit,
}
NEEDED = {"rows": {"table", "streaming", "loading"}, "images": {"images", "loading", "fit"}}


def prepare(size: Size, folder: Path, parts: list[str]) -> None:
    """Generate and ingest what the parts read."""
    records = size.records if "table" in parts else 0
    works: dict[str, tuple[object, ...]] = {
        "rows": ("prepare_rows", str(folder / "rows"), size.rows, records, size.window_rows),
        "images": ("prepare_images", str(folder / "images"), size.images, size.window_rows),
    }
    for name, (work_name, *arguments) in works.items():
        if NEEDED[name] & set(parts):
            told = run(size, str(work_name), *arguments)
            if "why_not" in told:
                sys.exit(f"the {name} cannot be prepared: {told['why_not']}")


def versions() -> Iterator[str]:
    """Versions of what takes part."""
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{package} not installed"


def main(size: Size, parts: list[str]) -> None:
    """Measure and print."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; Python {platform.python_version()}; {', '.join(versions())}")
    if size.is_quick:
        print("A quick look: that it runs. The numbers mean nothing.")
    report = Report(judges=not size.is_quick)
    with tempfile.TemporaryDirectory(prefix="refit-bench-") as name:
        folder = Path(name)
        prepare(size, folder, parts)
        for part in parts:
            PARTS[part](size, folder, report)
    report.close()


def parse(arguments: list[str]) -> tuple[Size, list[str]]:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what is measured: {', '.join(PARTS)}; by default everything")
    parser.add_argument("--quick", action="store_true", help="small data in one process, to see that everything runs")
    parser.add_argument("--large", action="store_true", help="stream 8 GB too (takes minutes and 20 GB of disk)")
    parser.add_argument("--runs", type=int, help="turns of each contender")
    parser.add_argument("--seconds", type=float, help="how long batches are taken in each turn")
    chosen = parser.parse_args(arguments)
    unknown = [part for part in chosen.parts if part not in PARTS]
    if unknown:
        parser.error(f'there is no part "{unknown[0]}"; there are {", ".join(PARTS)}')
    size = QUICK if chosen.quick else Size()
    size = replace(size, runs=chosen.runs or size.runs, seconds=chosen.seconds or size.seconds)
    if chosen.large:
        size = replace(size, gigabytes=(*size.gigabytes, 8.0))
    return size, chosen.parts or list(PARTS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main(*parse(sys.argv[1:]))
