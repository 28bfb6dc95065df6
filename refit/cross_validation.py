"""k-fold cross-validation: what a fit can be expected to reach, with its spread, and for how many epochs it should learn.

The rows that are not tested are cut into folds. Each fold validates a fit on the others, which takes its own statistics from those. The
model that is exported and judged then learns from all of those rows, for as many epochs as were best in the median fold.
"""

import statistics
from collections.abc import Callable
from functools import partial

from refit.batches import open_side, plan_batches
from refit.checkpoints import remove_checkpoints
from refit.config import Job
from refit.errors import DataError
from refit.fitting import fit_model
from refit.layout import Layout, RunLayout
from refit.progress import OnProgress, ignore_progress
from refit.records import FitRecord, FoldRecord, FoldsRecord, SnapshotRecord, Spread
from refit.splits import fold_sides, read_rows
from refit.stages import run_stage


def cross_validate(
    job: Job,
    snapshot: SnapshotRecord,
    layout: Layout,
    run: RunLayout,
    *,
    tell: Callable[[int], OnProgress] = lambda _: ignore_progress,
) -> FoldsRecord:
    """Fit every fold that is not fitted yet.

    Args:
        job: with ``split.k_fold``.
        snapshot: the data.
        layout: where they lie.
        run: the run, whose folder ``folds/<number>`` holds what a fit leaves: checkpoints, event files, weights, record.
        tell: gives for the number of a fold (from 0) what is told of its fit.

    Raises:
        DataError: the job asks for no folds, or a fold cannot be fitted.
    """
    if job.split.k_fold is None:
        raise DataError("the job asks for no folds.", where="split.k_fold")
    numbers = range(job.split.k_fold.folds)
    fits = [run_stage(run.fold(k), "fit", FitRecord, partial(_fit_fold, job, snapshot, layout, run, k, tell)) for k in numbers]
    for number, fit in zip(numbers, fits, strict=True):
        remove_checkpoints(run.fold(number).checkpoints_dir, but=fit.best_checkpoint)
    return summarise_folds(fits)


def _fit_fold(
    job: Job, snapshot: SnapshotRecord, layout: Layout, run: RunLayout, fold: int, tell: Callable[[int], OnProgress]
) -> FitRecord:
    sides = fold_sides(run, fold)
    plan = plan_batches(job, snapshot, layout, sides, partial(read_rows, snapshot, layout, run, draw=fold))
    train, validation = (open_side(snapshot, plan, layout, sides, side) for side in ("train", "validation"))
    return fit_model(job, plan, train, validation, run.fold(fold), on_progress=tell(fold))


def summarise_folds(fits: list[FitRecord]) -> FoldsRecord:
    """Metrics of each fold at its best epoch, their mean and spread, and the median of the best epochs."""
    folds = tuple(_describe(fit) for fit in fits)
    names = [name for name in folds[0].metrics if all(name in fold.metrics for fold in folds)]
    return FoldsRecord(
        folds=folds,
        metrics={name: _spread([fold.metrics[name] for fold in folds]) for name in names},
        num_epochs=round(statistics.median_low(fold.best_epoch + 1 for fold in folds)),
    )


def _describe(fit: FitRecord) -> FoldRecord:
    epoch = fit.validation_epochs[-1] if fit.best_epoch is None else fit.best_epoch
    at = fit.validation_epochs.index(epoch)
    metrics = {name.removeprefix("val_"): values[at] for name, values in fit.history.items() if name.startswith("val_")}
    return FoldRecord(num_epochs=fit.num_epochs, best_epoch=epoch, metrics=metrics, weights_sha256=fit.weights_sha256)


def _spread(values: list[float]) -> Spread:
    return Spread(mean=statistics.fmean(values), deviation=statistics.stdev(values), low=min(values), high=max(values))
