"""From scores to a published version: the comparison and the verdict on one side, the publication on the other."""

from datetime import UTC, datetime

import numpy as np

from refit import gate, registry
from refit.answers import HALF
from refit.config import Job, TargetKind
from refit.evaluation import Scores, read_scores
from refit.layout import Layout, RunLayout
from refit.metrics import default_metric
from refit.records import (
    BatchesRecord,
    BuildRecord,
    Comparison,
    EvaluationRecord,
    ExportRecord,
    GateRecord,
    PublishRecord,
)
from refit.runs import Run, current_user
from refit.stages import read_stage

PUBLISHED = ("promote", "first")


def judge(job: Job, plan: BatchesRecord, exported: ExportRecord, scores: EvaluationRecord, layout: Layout, run: RunLayout) -> GateRecord:
    """Compare the candidate row by row with the champion, and with the best earlier version, and pass the verdict."""
    told, built = read_scores(run), read_stage(run, "build", BuildRecord)
    return gate.decide(
        job.gate,
        plan.target.kind,
        scores,
        exported,
        _compare(job, plan, told, told.champion, (exported.threshold, scores.champion.threshold if scores.champion else HALF)),
        best=_compare(job, plan, told, told.best, (exported.threshold, scores.best.threshold if scores.best else HALF)),
        num_parameters=built.num_parameters if built else None,
        is_held=registry.is_held(layout, job.name),
    )


def rank_by(job: Job, kind: TargetKind) -> str | None:
    """The metric by which the best earlier version is found; None where the rule needs none.

    A rule that asks for proof lets no loss through that could add up; ``not_be_worse`` does.
    """
    return compared_metric(job, kind) if job.gate.champion.must == "not_be_worse" else None


def compared_metric(job: Job, kind: TargetKind) -> str:
    """The metric that decides between two models."""
    return job.gate.champion.metric or default_metric(kind)


def _compare(job: Job, plan: BatchesRecord, told: Scores, rival: np.ndarray | None, thresholds: tuple[float, float]) -> Comparison | None:
    if rival is None:
        return None
    kind, confidence = plan.target.kind, job.gate.champion.confidence
    metric = compared_metric(job, kind)
    return gate.compare(metric, kind, told.labels, told.candidate, rival, confidence=confidence, seed=job.seed, thresholds=thresholds)


def publish_verdict(run: Run, exported: ExportRecord, scores: EvaluationRecord, verdict: GateRecord) -> PublishRecord:
    """Publish the candidate where the verdict says so.

    Raises:
        ChampionMovedError: the champion is not the one that the candidate was judged against.
    """
    if verdict.verdict not in PUBLISHED:
        return PublishRecord(version=None)
    layout, name = run.layout, run.job.name
    version = registry.publish(
        layout,
        name,
        layout.resolve(exported.path),
        run=run.id,
        verdict=verdict.verdict,
        reason=" ".join(reason.text for reason in verdict.reasons),
        metrics=scores.metrics["test"],
        expected_champion=verdict.judged_against,
        keep_versions=run.job.export.keep_versions,
        by=current_user(),
        at=datetime.now(UTC),
    )
    return PublishRecord(version=version, path=layout.relative(layout.model(name).version(version)))
