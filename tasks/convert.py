"""Parquet to tf.data: statistics of the train split, and how rows become batches."""

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
        columns = [column.name for column in snapshot.columns]
        return batches.plan_batches(run.job, snapshot, splits.read_rows(snapshot, run.layout, run.paths, "train", columns))

    return run_stage(run.paths, "convert", BatchesRecord, produce)
