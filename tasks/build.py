"""The model, built once to see that it can be, before any time goes into fitting."""

from prefect import task

from refit.records import BatchesRecord, BuildRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def build(run: Run, plan: BatchesRecord) -> BuildRecord:
    """Build, check against the target, describe."""
    from refit import fitting, gate

    def produce() -> BuildRecord:
        gate.check_gate(run.job.gate, plan.target.kind)
        return fitting.describe_model(run.job, plan)

    return run_stage(run.paths, "build", BuildRecord, produce)
