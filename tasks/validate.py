"""The snapshot against the job and the champion's data. Never retried: bad data stay bad until somebody mends them."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from refit.records import DriftRecord, SnapshotRecord, ValidationRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def validate(run: Run, snapshot: SnapshotRecord) -> ValidationRecord:
    """Check schema, expectations, labels and drift; all failures together, after they were shown."""
    from refit import validation

    def produce() -> ValidationRecord:
        record = validation.validate_snapshot(run.job, snapshot, run.layout)
        _show_inputs(run, snapshot)
        if record.drift:
            _show_drift(run, record.drift)
        return validation.raise_failed(record, snapshot)

    return run_stage(run.paths, "validate", ValidationRecord, produce)


def _show_inputs(run: Run, snapshot: SnapshotRecord) -> None:
    counts = ("read", "kept", "rejected", "filtered", "duplicate", "superseded")
    newest = list(reversed(snapshot.sources))[:100]
    table = [{"input": source.name, **{count: getattr(source, f"num_{count}") for count in counts}} for source in newest]
    create_table_artifact(table=table, key=f"inputs-{run.key}", description=f"Inputs of snapshot {snapshot.id}, the newest first")


def _show_drift(run: Run, drift: DriftRecord) -> None:
    """A table for people; an event for automations where a column has drifted."""
    if drift.why_not is None:
        table = [
            {
                "column": c.name,
                "verdict": c.verdict,
                "PSI": round(c.psi, 4),
                c.test: round(c.statistic, 4),
                "p, corrected": f"{c.p_adjusted:.2g}",
                "missing before": f"{c.missing_old:.2%}",
                "missing now": f"{c.missing_new:.2%}",
            }
            for c in drift.columns
        ]
        told = f"{drift.num_new:,} new rows against the {drift.num_old:,} of version {drift.champion}"
        create_table_artifact(table=table, key=f"drift-{run.key}", description=told)
    if drift.drifted:
        emit_event(
            event="refit.drift",
            resource={"prefect.resource.id": f"refit.job.{run.job.name}", "prefect.resource.name": run.job.name},
            payload={"run": run.id, "version": drift.champion, "columns": {c.name: c.verdict for c in drift.drifted}},
        )
