"""Parquet to tf.data: statistics of the train split, and how rows become batches."""

from functools import partial

from prefect import task

from refit.records import BatchesRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def convert(run: Run, snapshot: SnapshotRecord) -> BatchesRecord:
    """Decide features, target, elements and steps per epoch."""
    from refit import batches, splits

    def produce() -> BatchesRecord:
        split = run.job.split
        draw: splits.Draw = "pool" if split.resplit_each_epoch or split.k_fold else "split"
        sides = splits.pool_sides(run.paths) if split.k_fold else splits.read_sides(run.paths)
        read = partial(splits.read_rows, snapshot, run.layout, run.paths, draw=draw)
        return batches.plan_batches(run.job, snapshot, run.layout, sides, read)

    return run_stage(run.paths, "convert", BatchesRecord, produce)
