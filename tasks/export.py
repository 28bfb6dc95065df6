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
        model, rule = fitting.load_fitted(run.job, plan, run.paths), run.job.target.rule
        if rule == "half":
            return exporting.export_model(model, plan, rows, run.layout, run.paths)
        validation = splits.read_rows(snapshot, run.layout, run.paths, "validation", [*columns, plan.target.name])
        threshold = exporting.find_threshold(model, plan, rule, validation)
        return exporting.export_model(model, plan, rows, run.layout, run.paths, threshold=threshold)

    return run_stage(run.paths, "export", ExportRecord, produce)
