"""How much refit's fit costs above a bare one, against the script that most people write, and what checkpoints and resuming cost.

Each measurement is a process of its own, contenders take turns, ratios are of medians. A step's seconds are those of an epoch over its
steps; the first epoch, in which Keras traces and compiles, is not counted. refit fits as a run does: checkpoints every 60 seconds,
TensorBoard, progress. ``--quick`` shows that everything runs: its numbers mean nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Numbers = dict[str, float]
CNN, MLP = ("images", 128), ("rows", 1024)
MAX_ABOVE_BARE = {"images": 1.03, "rows": 1.10}
MIN_FASTER = {"images": 1.0, "rows": 2.5}
WINDOW_ROWS = 262_144
MAX_STALL, STALL_SECONDS, MIN_RESTORE, MAX_RESUME_SECONDS = 1.3, 0.020, 1e9, 3.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int = 2_000_000
    images: int = 20_000
    epochs: int = 4
    steps: int = 150
    units: int = 5_000
    runs: int = 3


QUICK = Size(8_000, 1_000, 2, 2, 100, 1)


# ---- what one process does


class _Clock:
    """Moments at which epochs ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tell(self, progress: object) -> None:
        if getattr(progress, "is_epoch_end", False):
            self.times.append(time.perf_counter())

    def step_seconds(self, steps: int) -> float:
        """Of a step, after the first epoch."""
        return statistics.median(after - before for before, after in zip(self.times, self.times[1:], strict=False)) / steps


def prepare(kind: str, folder: str, size: int) -> Numbers:
    """Generate the data and ingest them."""
    from batches import works

    started = time.perf_counter()
    (works.prepare_images(folder, size, WINDOW_ROWS) if kind == "images" else works.prepare_rows(folder, size, 0, WINDOW_ROWS))
    return {"seconds": time.perf_counter() - started}


def refit(folder: str, batch_size: int, epochs: int, run_name: str) -> Numbers:
    """The fit as a run does it."""
    from batches import ours

    fit = {"batch_size": batch_size, "epochs": epochs, "early_stopping": None, "checkpoint": {"every_seconds": 60, "every_epochs": None}}
    clock = _Clock()
    steps = ours.fit_train(Path(folder), run_name, fit, window_rows=WINDOW_ROWS, on_progress=clock.tell)
    return {"step": clock.step_seconds(steps)}


def bare(folder: str, batch_size: int, epochs: int, steps: int) -> Numbers:
    """Keras's fit alone on one batch that is always in memory."""
    import tensorflow as tf
    from batches import ours

    train = ours.load_train(Path(folder), "resident", window_rows=WINDOW_ROWS)
    constant = tf.data.Dataset.from_tensors(next(iter(train.open(batch_size)))).repeat()
    return _keras_fit(folder, constant, epochs, steps, [])


def usual(folder: str, batch_size: int, epochs: int, steps: int) -> Numbers:
    """The script that most people write, around the same model."""
    import keras
    from batches import peers

    opened = peers.PEERS["slices unscaled" if Path(folder).name == "images" else "pandas"](Path(folder))
    with tempfile.TemporaryDirectory() as name:
        callbacks = [
            keras.callbacks.BackupAndRestore(f"{name}/backup"),
            keras.callbacks.ModelCheckpoint(f"{name}/best.keras", monitor="loss", save_best_only=True),
            keras.callbacks.TensorBoard(f"{name}/logs"),
        ]
        return _keras_fit(folder, opened(batch_size), epochs, steps, callbacks)


def _keras_fit(folder: str, dataset: object, epochs: int, steps: int, callbacks: list[object]) -> Numbers:
    import keras
    from batches import ours

    clock = _Clock()
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: clock.times.append(time.perf_counter()))
    model = ours.build_model(Path(folder), window_rows=WINDOW_ROWS)
    model.fit(dataset, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=[*callbacks, told])
    return {"step": clock.step_seconds(steps)}


def checkpoint(units: int) -> Numbers:
    """A dense layer of ``units`` squared weights with Adam: the stall of saving it, a plain copy of the same bytes, and reading it back."""
    import keras
    import numpy as np

    from refit.checkpoints import CheckpointRecord, CheckpointWriter, read_newest

    model = keras.Sequential([keras.Input((units,)), keras.layers.Dense(units)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    record = CheckpointRecord(belongs_to="", epoch=0, step=0, steps_per_epoch=1, history={}, validation_epochs=[], callbacks={})
    copies = [np.array(variable) for variable in variables]
    found: dict[str, list[float]] = {"stall": [], "copy": [], "restore": []}
    with tempfile.TemporaryDirectory() as name:
        writer = CheckpointWriter(Path(name), keep=1)
        for _ in range(6):
            found["stall"].append(_seconds(lambda: writer.save(record, {"all": [keras.ops.convert_to_tensor(v) for v in variables]})))
            writer.wait()
            found["copy"].append(
                _seconds(lambda: list(map(np.copyto, copies, map(np.asarray, map(keras.ops.convert_to_tensor, variables)))))
            )

            def restore() -> None:
                read = read_newest(Path(name), belongs_to="")
                for variable, values in zip(variables, read.arrays("all") if read else (), strict=True):
                    variable.assign(np.array(values))

            found["restore"].append(_seconds(restore))
    medians = {name: statistics.median(values[1:]) for name, values in found.items()}
    return medians | {"bytes": float(sum(copy.nbytes for copy in copies))}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Left(Exception):  # noqa: N818 -- no error
    """Ends a fit as if the process were killed."""


def first_steps(folder: str, batch_size: int, run_name: str, last: int) -> Numbers:
    """Fit until a report of a step after ``last``."""
    from batches import ours

    def tell(progress: object) -> None:
        if getattr(progress, "step", 0) > last:
            raise _Left

    fit = {"batch_size": batch_size, "epochs": 100, "early_stopping": None, "checkpoint": {"every_steps": 1}}
    with contextlib.suppress(_Left):
        ours.fit_train(Path(folder), run_name, fit, window_rows=WINDOW_ROWS, on_progress=tell)
    return {}


WORKS: dict[str, Callable[..., Numbers]] = {w.__name__: w for w in (prepare, refit, bare, usual, checkpoint, first_steps)}


# ---- telling


def run(name: str, *arguments: object) -> Numbers:
    """One worker in a process of its own, and how long that took."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--work", name, json.dumps(arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} {arguments} failed:\n{done.stderr[-3000:]}")
    told: Numbers = json.loads(done.stdout.splitlines()[-1])
    return told | {"process": time.perf_counter() - started}


def turns(runs: int, works: dict[str, tuple[object, ...]]) -> dict[str, Numbers]:
    """Medians of each worker's numbers, workers taking turns."""
    found: dict[str, list[Numbers]] = {name: [] for name in works}
    for number in range(runs):
        for name, arguments in works.items():
            own = (f"fit-{number}",) if name == "refit" else ()
            found[name].append(run(str(arguments[0]), *arguments[1:], *own))
    return {name: {key: statistics.median(told[key] for told in all_told) for key in all_told[0]} for name, all_told in found.items()}


def judge(value: float, goal: float, *, is_limit: bool) -> str:
    """The value with its goal, and whether that was reached."""
    is_met = value <= goal if is_limit else value >= goal
    return f"{value:.3f} ({'at most' if is_limit else 'at least'} {goal:g}: {'reached' if is_met else 'MISSED'})"


def measure_steps(size: Size, folder: Path, kind: str, batch_size: int) -> None:
    """A step of refit's fit against a bare one and the usual script."""
    path = str(folder / kind)
    run("prepare", kind, path, size.images if kind == "images" else size.rows)
    works: dict[str, tuple[object, ...]] = {
        "refit": ("refit", path, batch_size, size.epochs),
        "bare": ("bare", path, batch_size, size.epochs, size.steps),
        "usual": ("usual", path, batch_size, size.epochs, size.steps),
    }
    found = turns(size.runs, works)
    ours, theirs, script = (found[name]["step"] for name in works)
    print(f"\n{'Small CNN, 32 x 32 x 3' if kind == 'images' else 'MLP, 28 columns of a table'}, batch {batch_size}: ms a step")
    told = judge(ours / theirs, MAX_ABOVE_BARE[kind], is_limit=True)
    print(f"  refit {1e3 * ours:.2f}, bare fit of a constant batch {1e3 * theirs:.2f}: {told}")
    print(f"  the usual script {1e3 * script:.2f}: refit is faster by {judge(script / ours, MIN_FASTER[kind], is_limit=False)}")


def measure_checkpoint(size: Size) -> None:
    """Saving and reading a large state."""
    found = turns(size.runs, {"": ("checkpoint", size.units)})[""]
    limit = MAX_STALL * found["copy"] + STALL_SECONDS
    print(f"\nA state of {found['bytes'] / 1e6:,.0f} MB ({size.units**2 / 1e6:.0f}M parameters, Adam)")
    told = judge(found["stall"] / limit, 1.0, is_limit=True)
    print(f"  stall {1e3 * found['stall']:.0f} ms, plain copy {1e3 * found['copy']:.0f} ms; of {MAX_STALL} copies plus 20 ms: {told}")
    print(f"  restore, GB/s: {judge(found['bytes'] / found['restore'] / 1e9, MIN_RESTORE / 1e9, is_limit=False)}")


def measure_resume(size: Size, folder: Path) -> None:
    """A start that resumes late in a late epoch against an ordinary start."""
    path, batch_size = str(folder / "images"), CNN[1]
    if not (folder / "images").exists():
        run("prepare", "images", path, size.images)
    ordinary = [run("first_steps", path, batch_size, f"fresh-{number}", 0) for number in range(size.runs)]
    run("first_steps", path, batch_size, "deep", 1)
    _deepen(folder)
    resumed = [run("first_steps", path, batch_size, "deep", 0) for _ in range(size.runs)]
    plain, late = (statistics.median(told["process"] for told in found) for found in (ordinary, resumed))
    told = judge(late - plain, MAX_RESUME_SECONDS, is_limit=True)
    print(f"\nFrom the start of the process to the first step: {plain:.2f} s; resumed in epoch 60, near its end: {late:.2f} s")
    print(f"  more by, s: {told}")


def _deepen(folder: Path) -> None:
    """Say of a run's newest checkpoint that it is of a late position."""
    from refit.layout import Layout

    checkpoints = Layout(folder / "images" / "home").run("images", "deep").checkpoints_dir
    newest = max(path for path in checkpoints.iterdir() if not path.name.startswith("."))
    state = json.loads((newest / "state.json").read_text())
    state |= {"epoch": 59, "step": state["steps_per_epoch"] - 3}
    (newest / "state.json").write_text(json.dumps(state))
    newest.rename(checkpoints / f"{state['epoch']:06d}-{state['step']:09d}")


PARTS: dict[str, Callable[[Size, Path], None]] = {
    "cnn": lambda size, folder: measure_steps(size, folder, *CNN),
    "mlp": lambda size, folder: measure_steps(size, folder, *MLP),
    "checkpoint": lambda size, _: measure_checkpoint(size),
    "resume": measure_resume,
}


def main(size: Size, parts: Sequence[str]) -> None:
    """Measure and print."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras", "numpy"))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; Python {platform.python_version()}; {versions}")
    with tempfile.TemporaryDirectory(prefix="refit-bench-") as name:
        for part in parts or PARTS:
            PARTS[part](size, Path(name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(WORKS[sys.argv[2]](*json.loads(sys.argv[3]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"what is measured: {', '.join(PARTS)}; by default everything")
        parser.add_argument("--quick", action="store_true", help="small data, to see that everything runs")
        parser.add_argument("--runs", type=int, help="turns of each contender")
        chosen = parser.parse_args()
        size = QUICK if chosen.quick else Size()
        unknown = set(chosen.parts) - set(PARTS)
        if unknown:
            parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
        main(replace(size, runs=chosen.runs or size.runs), chosen.parts)
