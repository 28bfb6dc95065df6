"""Train, validation and test: a row never changes sides."""

from prefect import task

from refit.records import SnapshotRecord, SplitRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def split(run: Run, snapshot: SnapshotRecord) -> SplitRecord:
    """Assign every row and record who is on which side."""
    from refit import splits

    return run_stage(run.paths, "split", SplitRecord, lambda: splits.split_rows(snapshot, run.job.split, run.layout, run.paths))
