"""Fit the candidate. Never retried here: a failed fit is a finding, and a killed one resumes from its checkpoint."""

import time
from typing import cast
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from refit.progress import FitProgress, OnProgress, describe, terminal_bar
from refit.records import BatchesRecord, FitRecord, SnapshotRecord
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE

_ARTIFACT_SECONDS = 2.0


@task(tags=["fit"], **STAGE)
def fit(run: Run, snapshot: SnapshotRecord, plan: BatchesRecord) -> FitRecord:
    """Fit and checkpoint; progress goes to the terminal and to a Prefect artifact."""
    from rich import get_console

    from refit import batches, fitting

    def produce() -> FitRecord:
        train = batches.load_side(snapshot, plan, run.layout, run.paths, "train")
        validation = batches.load_side(snapshot, plan, run.layout, run.paths, "validation")
        with terminal_bar(get_console()) as show:
            tell = _tell_both(show, run)
            return fitting.fit_model(run.job, plan, train, validation, run.paths, on_progress=tell)

    return run_stage(run.paths, "fit", FitRecord, produce)


def _tell_both(show: OnProgress, run: Run) -> OnProgress:
    """Tell the terminal each time, and Prefect at the end of epochs, at most every two seconds."""
    artifact = cast(UUID, create_progress_artifact(progress=0.0, key=f"fit-{run.key}", description="Epochs done"))
    next_time = time.monotonic()

    def tell(progress: FitProgress) -> None:
        nonlocal next_time
        show(progress)
        is_last = progress.epoch + 1 == progress.num_epochs
        if progress.is_epoch_end and (is_last or time.monotonic() >= next_time):
            next_time = time.monotonic() + _ARTIFACT_SECONDS
            share = 100 * (progress.epoch + 1) / progress.num_epochs
            update_progress_artifact(artifact, share, description=f"Epoch {progress.epoch + 1}: {describe(progress.values)}")

    return tell
