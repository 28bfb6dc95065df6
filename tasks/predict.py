"""Rows of a file with a published model. Retried where a disk or the network may have failed; an output is there whole or not at all."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from refit.layout import home_layout
from refit.records import DriftRecord
from refit.served import Request, Served
from tasks.policy import STAGE, may_pass


@task(retries=2, retry_delay_seconds=10, retry_condition_fn=may_pass, **STAGE)
def predict_rows(served: Served, request: Request) -> str:
    """Predict, and show what was done; returns it in a sentence. An event for automations goes out where a column has drifted."""
    from rich import get_console

    from refit import prediction
    from refit.progress import prediction_bar
    from refit.wording import counted

    with prediction_bar(get_console()) as show:
        record = prediction.predict(served, request, home_layout(), on_progress=show)
    rejected = f", {record.num_rejected:,} rejected" if record.num_rejected else ""
    told = f"{counted(record.num_scored, 'row')} predicted by {record.model}, version {record.version}{rejected}: {record.output}"
    lines = [f"# {record.model}", "", told, "", *(f"- drift of `{column.name}`: {column.verdict}" for column in record.drift.drifted)]
    key = f"prediction-{served.name.lower().replace('_', '-')}"
    create_markdown_artifact(markdown="\n".join(lines), key=key, description=told)
    _announce_drift(served, record.drift)
    return told


def _announce_drift(served: Served, drift: DriftRecord) -> None:
    if drift.drifted:
        emit_event(
            event="refit.drift",
            resource={"prefect.resource.id": f"refit.job.{served.name}", "prefect.resource.name": served.name},
            payload={"run": served.run, "version": served.version, "columns": {c.name: c.verdict for c in drift.drifted}},
        )
