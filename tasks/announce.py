"""The state in which a flow run ends: named after the verdict, so that lists of runs can be read at a glance."""

from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed

from refit.records import RunRecord, Verdict

STATE_NAMES: dict[Verdict, str] = {
    "promote": "Promoted",
    "first": "First version",
    "keep": "Kept champion",
    "incompatible": "Incompatible",
    "skipped": "Skipped",
}


def announce(record: RunRecord) -> State[str]:
    """A completed state that carries the run's id; an event for automations goes out with it."""
    verdict = record.verdict or "keep"
    message = " ".join(record.reasons)
    emit_event(
        event=f"refit.{verdict}",
        resource={"prefect.resource.id": f"refit.job.{record.job}", "prefect.resource.name": record.job},
        payload={"run": record.run, "version": record.model_version, "metrics": record.metrics, "message": message},
    )
    version = f" Version {record.model_version}." if record.model_version and verdict in ("promote", "first") else ""
    return Completed(name=STATE_NAMES[verdict], message=f"{message}{version}"[:2000], data=record.run)
