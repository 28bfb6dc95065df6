"""k-fold cross-validation, where the job asks for it: estimates with spread, and for how many epochs to fit."""

from prefect import task

from refit.progress import OnProgress, terminal_bar
from refit.records import FoldsRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.fit import tell_both
from tasks.policy import STAGE


@task(tags=["fit"], **STAGE)
def cross_validate(run: Run, snapshot: SnapshotRecord) -> FoldsRecord:
    """Fit every fold that is not fitted yet; without ``split.k_fold`` there is nothing to do."""
    if run.job.split.k_fold is None:
        return FoldsRecord()
    from rich import get_console

    from refit import cross_validation

    def produce() -> FoldsRecord:
        with terminal_bar(get_console()) as show:

            def tell(fold: int) -> OnProgress:
                return tell_both(show, run, f"fold-{fold + 1}")

            return cross_validation.cross_validate(run.job, snapshot, run.layout, run.paths, tell=tell)

    return run_stage(run.paths, "folds", FoldsRecord, produce)
