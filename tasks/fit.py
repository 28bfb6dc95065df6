"""Fit the candidate. Never retried here: a failed fit is a finding, and a killed one resumes from its checkpoint."""

import contextlib
import time
from typing import cast
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from refit.checkpoints import remove_checkpoints
from refit.progress import FitProgress, OnProgress, describe, terminal_bar
from refit.records import BatchesRecord, FitRecord, FoldsRecord, SnapshotRecord, WarmStart
from refit.runs import Run
from refit.stages import run_stage
from tasks.policy import STAGE

_ARTIFACT_SECONDS = 2.0


@task(tags=["fit"], **STAGE)
def fit(run: Run, snapshot: SnapshotRecord, plan: BatchesRecord, folds: FoldsRecord) -> FitRecord:
    """Fit and checkpoint; progress goes to the terminal and to a Prefect artifact."""
    from rich import get_console

    from refit import batches, fitting, splits, warm_start

    start = None
    if run.job.fit.warm_start:  # settled once: the champion may move before the fit is complete
        start = run_stage(run.paths, "start", WarmStart, lambda: warm_start.take_over(run.job, plan, run.layout, run.paths))

    def produce() -> FitRecord:
        sides = splits.pool_sides(run.paths) if folds.folds else splits.read_sides(run.paths)
        is_pool = run.job.split.resplit_each_epoch
        train = batches.open_side(snapshot, plan, run.layout, sides, "pool" if is_pool else "train")
        is_held_out = not is_pool and not folds.folds
        validation = batches.open_side(snapshot, plan, run.layout, sides, "validation") if is_held_out else None
        with terminal_bar(get_console()) as show:
            tell = tell_both(show, run)
            return fitting.fit_model(
                run.job, plan, train, validation, run.paths, num_epochs=folds.num_epochs, start=start, on_progress=tell
            )

    record = run_stage(run.paths, "fit", FitRecord, produce)
    remove_checkpoints(run.paths.checkpoints_dir, but=record.best_checkpoint)
    run.paths.start_weights.unlink(missing_ok=True)
    return record


def tell_both(show: OnProgress, run: Run, what: str = "fit") -> OnProgress:
    """Tell the terminal each time, and Prefect at the end of epochs, at most every two seconds."""
    artifact = cast(UUID, create_progress_artifact(progress=0.0, key=f"{what}-{run.key}", description="Epochs done"))
    next_time = time.monotonic()

    def tell(progress: FitProgress) -> None:
        nonlocal next_time
        show(progress)
        if progress.is_fit_end or (progress.is_epoch_end and time.monotonic() >= next_time):
            next_time = time.monotonic() + _ARTIFACT_SECONDS
            share = 100.0 if progress.is_fit_end else 100 * (progress.epoch + 1) / progress.num_epochs
            told = f"Epoch {progress.epoch + 1} of {progress.num_epochs}: {describe(progress.values)}"
            with contextlib.suppress(httpx.HTTPError, PrefectException):  # a server that is away is no reason to end a fit
                update_progress_artifact(artifact, share, description=told)

    return tell
