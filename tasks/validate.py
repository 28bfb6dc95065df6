"""The snapshot against the job. Never retried: bad data stay bad until somebody mends them."""

from prefect import task

from refit.records import SnapshotRecord, ValidationRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def validate(run: Run, snapshot: SnapshotRecord) -> ValidationRecord:
    """Check columns, kinds, key and labels; all failures together."""
    from refit import validation

    return run_stage(run.paths, "validate", ValidationRecord, lambda: validation.validate_snapshot(run.job, snapshot, run.layout))
