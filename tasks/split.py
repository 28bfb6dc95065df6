"""Train, validation and test: no row comes into the test split after it was trained on."""

from prefect import task

from refit.records import SnapshotRecord, SplitRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def split(run: Run, snapshot: SnapshotRecord) -> SplitRecord:
    """Assign every row, record who is on which side, and see whether training has met the test rows under other keys."""
    from refit import splits, validation

    def produce() -> SplitRecord:
        record = splits.split_rows(snapshot, run.job, run.layout, run.paths)
        checks = validation.check_sides(run.job, snapshot, run.layout, splits.read_sides(run.paths))
        return record.model_copy(update={"checks": checks})

    return run_stage(run.paths, "split", SplitRecord, produce)
