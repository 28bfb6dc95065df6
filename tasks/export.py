"""The SavedModel from raw columns, proved in a process that has only TensorFlow."""

from prefect import task

from refit.records import BatchesRecord, ExportRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE


@task(**STAGE)
def export(run: Run, snapshot: SnapshotRecord, plan: BatchesRecord) -> ExportRecord:
    """Export the fitted model and prove it on test rows."""
    from refit import export as exporting
    from refit import fitting, splits

    def produce() -> ExportRecord:
        columns = [feature.name for feature in plan.features]
        rows = splits.read_rows(snapshot, run.layout, run.paths, "test", columns)
        return exporting.export_model(fitting.load_fitted(run.job, plan, run.paths), plan, rows, run.layout, run.paths)

    return run_stage(run.paths, "export", ExportRecord, produce)
