"""From scores to a published version: the comparison and the verdict on one side, the publication on the other."""

from datetime import UTC, datetime

from refit import gate, registry
from refit.config import Job
from refit.evaluation import read_scores
from refit.layout import Layout, RunLayout
from refit.metrics import default_metric
from refit.records import (
    BatchesRecord,
    Comparison,
    EvaluationRecord,
    ExportRecord,
    GateRecord,
    PublishRecord,
)
from refit.runs import Run, current_user

PUBLISHED = ("promote", "first")


def judge(job: Job, plan: BatchesRecord, exported: ExportRecord, scores: EvaluationRecord, layout: Layout, run: RunLayout) -> GateRecord:
    """Compare candidate and champion row by row and pass the verdict."""
    held = registry.is_held(layout, job.name)
    return gate.decide(job.gate, plan.target.kind, scores, exported, _compare(job, plan, scores, run), is_held=held)


def _compare(job: Job, plan: BatchesRecord, scores: EvaluationRecord, run: RunLayout) -> Comparison | None:
    candidate, champion = read_scores(run)
    if scores.champion is None or champion is None:
        return None
    kind, rule = plan.target.kind, job.gate.champion
    metric = rule.metric or default_metric(kind)
    return gate.compare(
        metric, kind, candidate.labels, candidate.predictions, champion.predictions, confidence=rule.confidence, seed=job.seed
    )


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
