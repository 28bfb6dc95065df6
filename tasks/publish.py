"""Publish atomically, and only against the champion that the candidate was judged against."""

from prefect import get_run_logger, task

from refit.errors import ChampionMovedError
from refit.records import EvaluationRecord, ExportRecord, GateRecord, PublishRecord
from refit.runs import Run
from refit.stages import forget_stages, run_stage
from tasks.policy import STAGE


@task(**STAGE)
def publish(run: Run, exported: ExportRecord, scores: EvaluationRecord, verdict: GateRecord) -> PublishRecord | None:
    """Publish where the verdict says so; None where the champion moved meanwhile and judgement must be passed again."""
    from refit import judgement

    try:
        return run_stage(run.paths, "publish", PublishRecord, lambda: judgement.publish_verdict(run, exported, scores, verdict))
    except ChampionMovedError as error:
        get_run_logger().warning("%s Evaluating again.", error)
        forget_stages(run.paths, "evaluate", "gate")
        return None
