"""Candidate and champion on the same test rows, each from its own SavedModel."""

from prefect import task

from refit.records import BatchesRecord, EvaluationRecord, ExportRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def evaluate(run: Run, snapshot: SnapshotRecord, plan: BatchesRecord, exported: ExportRecord) -> EvaluationRecord:
    """Score both; keep every prediction."""
    from refit import evaluation, splits

    def produce() -> EvaluationRecord:
        columns = [column.name for column in snapshot.columns]
        is_held_out = not (run.job.split.k_fold or run.job.split.resplit_each_epoch)
        validation = splits.read_rows(snapshot, run.layout, run.paths, "validation", columns) if is_held_out else None
        test = splits.read_rows(snapshot, run.layout, run.paths, "test", columns)
        return evaluation.evaluate(run.job.name, plan, exported, validation, test, run.layout, run.paths)

    return run_stage(run.paths, "evaluate", EvaluationRecord, produce)
