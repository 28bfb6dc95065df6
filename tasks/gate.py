"""One verdict, with reasons and numbers."""

from prefect import task

from refit.records import BatchesRecord, EvaluationRecord, ExportRecord, GateRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def gate(run: Run, plan: BatchesRecord, exported: ExportRecord, scores: EvaluationRecord) -> GateRecord:
    """Judge the candidate by the job's rules."""
    from refit import judgement

    return run_stage(run.paths, "gate", GateRecord, lambda: judgement.judge(run.job, plan, exported, scores, run.layout, run.paths))
