"""Candidate, champion and the best earlier version on the same test rows, each from its own SavedModel; and the baselines beside them."""

from prefect import task

from refit.records import BaselinesRecord, BatchesRecord, EvaluationRecord, ExportRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def evaluate(run: Run, snapshot: SnapshotRecord, plan: BatchesRecord, exported: ExportRecord) -> EvaluationRecord:
    """Score them; keep every prediction. The baselines are made once, for they do not depend on the champion."""
    from refit import baselines, evaluation, judgement, splits

    def score() -> BaselinesRecord:
        return baselines.score_baselines(run.job, snapshot, plan, run.layout, run.paths)

    beside = run_stage(run.paths, "baselines", BaselinesRecord, score)

    def produce() -> EvaluationRecord:
        columns = [column.name for column in snapshot.columns]
        is_held_out = not (run.job.split.k_fold or run.job.split.resplit_each_epoch)
        validation = splits.read_rows(snapshot, run.layout, run.paths, "validation", columns) if is_held_out else None
        test = splits.read_rows(snapshot, run.layout, run.paths, "test", columns)
        rank_by = judgement.rank_by(run.job, plan.target.kind)
        record = evaluation.evaluate(run.job.name, plan, exported, validation, test, run.layout, run.paths, rank_by=rank_by)
        return record.model_copy(update={"baselines": beside.metrics, "no_baselines": beside.why_not})

    return run_stage(run.paths, "evaluate", EvaluationRecord, produce)
