"""refit's side of the benchmark: the only module here that calls refit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from batches import data
from refit.batches import Position, open_side, plan_batches, read_batches
from refit.config import Job, parse_job
from refit.fitting import assemble_model, fit_model
from refit.ingestion import ingest, read_head
from refit.layout import Layout, RunLayout
from refit.progress import OnProgress
from refit.records import BatchesRecord, SnapshotRecord
from refit.slicing import count_steps
from refit.splits import read_rows, read_sides, split_rows

TABLE_FEATURES = {
    **{name: {"kind": "numeric"} for name in data.FLOATS},
    **{name: {"kind": "category", "max_tokens": 10_000, "encoding": "embedding"} for name in (*data.WHOLE, *data.WORDS)},
}
IMAGE_FEATURES = {data.IMAGE: {"kind": "image"}}
RUN = "bench"


@dataclass(frozen=True)
class Train:
    """The train split, ready to be read.

    Attributes:
        row_bytes: bytes of a row as it is kept in memory.
        window_rows: rows that streaming shuffles at a time.
        open: a dataset of batches without end, from the batch size.
    """

    row_bytes: int
    window_rows: int
    open: Callable[[int], tf.data.Dataset]


@dataclass(frozen=True)
class Planned:
    """What the flow's first stages have left."""

    job: Job
    snapshot: SnapshotRecord
    plan: BatchesRecord
    layout: Layout
    run: RunLayout


def describe_job(folder: Path, *, window_rows: int, fit: dict[str, Any] | None = None) -> Job:
    """The job over a folder of the benchmark's data: 95 % of the rows are the train split."""
    is_images = folder.name == "images"
    tree: dict[str, Any] = {
        "name": "images" if is_images else "rows",
        "data": {"sources": [{"kind": "parquet", "path": str(folder / "source" / "*.parquet")}], "key": [data.KEY]},
        "features": IMAGE_FEATURES if is_images else TABLE_FEATURES,
        "target": {"column": data.LABEL, "kind": "classes" if is_images else "binary"},
        "split": {"by": "hash", "validation": 0.025, "test": 0.025},
        "fit": fit or {"batch_size": 256},
        "batches": {"window_rows": window_rows},
    }
    return parse_job(tree)


def prepare(folder: Path, *, window_rows: int) -> None:
    """Ingest, split and plan, as the flow's stages do."""
    job, layout = describe_job(folder, window_rows=window_rows), Layout(folder / "home")
    run = layout.run(job.name, RUN)
    snapshot = ingest(job, layout)
    split_rows(snapshot, job, layout, run)
    plan = plan_batches(job, snapshot, layout, read_sides(run), partial(read_rows, snapshot, layout, run))
    plan.write(run.stage("convert"))


def read_planned(folder: Path, *, window_rows: int) -> Planned:
    """What ``prepare`` has left in the folder."""
    job, layout = describe_job(folder, window_rows=window_rows), Layout(folder / "home")
    run, snapshot = layout.run(job.name, RUN), read_head(layout.dataset(job.dataset))
    if snapshot is None:
        raise FileNotFoundError(layout.home)
    return Planned(job, snapshot, BatchesRecord.read(run.stage("convert")), layout, run)


def load_train(folder: Path, engine: str, *, window_rows: int) -> Train:
    """Open the train split with an engine: ``resident`` or ``streaming``."""
    known = read_planned(folder, window_rows=window_rows)
    plan = known.plan.model_copy(update={"engine": engine})
    source = open_side(known.snapshot, plan, known.layout, read_sides(known.run), "train")

    def open_dataset(batch_size: int) -> tf.data.Dataset:
        return read_batches(source, batch_size=batch_size, seed=known.job.seed, start=Position(0, 0))

    return Train(plan.row_bytes, plan.window_rows, open_dataset)


def fit_train(folder: Path, run_name: str, fit: dict[str, Any], *, window_rows: int, on_progress: OnProgress) -> int:
    """Fit the train split, resident, as a run does, but for validation; returns the steps of an epoch."""
    known = read_planned(folder, window_rows=window_rows)
    job = describe_job(folder, window_rows=window_rows, fit=fit)
    train = open_side(known.snapshot, known.plan.model_copy(update={"engine": "resident"}), known.layout, read_sides(known.run), "train")
    steps = count_steps(train.num_rows, job.fit.batch_size)
    plan = known.plan.model_copy(update={"batch_size": job.fit.batch_size, "steps_per_epoch": steps})
    fit_model(job, plan, train, None, known.layout.run(job.name, run_name), on_progress=on_progress)
    return steps


def build_model(folder: Path, *, window_rows: int) -> Any:  # noqa: ANN401 -- Keras is untyped
    """The compiled model that refit chooses for the job."""
    known = read_planned(folder, window_rows=window_rows)
    return assemble_model(known.job, known.plan)


def shard_files(folder: Path, *, window_rows: int) -> list[str]:
    """The shards that refit reads, in order."""
    known = read_planned(folder, window_rows=window_rows)
    home = known.layout.dataset(known.job.dataset)
    return [str(home.shard(shard.digest)) for shard in known.snapshot.shards]
