"""Raw inputs to a snapshot. Retried where a disk or the network may have failed; what was read is not read again."""

from prefect import task

from refit.progress import ingest_bar
from refit.records import SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE, may_pass


@task(retries=2, retry_delay_seconds=10, retry_condition_fn=may_pass, **STAGE)
def ingest(run: Run) -> SnapshotRecord:
    """Bring the data set up to date and return its snapshot."""
    from rich import get_console

    from refit import ingestion

    def produce() -> SnapshotRecord:
        with ingest_bar(get_console()) as show:
            return ingestion.ingest(run.job, run.layout, on_progress=show)

    return run_stage(run.paths, "ingest", SnapshotRecord, produce)
