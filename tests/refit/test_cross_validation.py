"""Folds: what their fits come to, and that a fold that was fitted is not fitted again."""

from functools import partial

import numpy as np
import pytest

from refit import cross_validation
from refit.batches import open_side, plan_batches
from refit.cross_validation import cross_validate, summarise_folds
from refit.errors import DataError
from refit.fitting import fit_model
from refit.records import FitRecord, write_array
from refit.splits import pool_sides, read_rows
from tests.refit.small import job_of, keep, stored
from tests.refit.test_fitting import small_job, table


def fit(best, losses):
    return FitRecord(
        num_epochs=len(losses),
        best_epoch=best,
        history={"loss": losses, "val_loss": losses, "val_auc": [1 - loss for loss in losses]},
        validation_epochs=list(range(len(losses))),
        weights_sha256="",
        devices=(),
        examples_per_second=1.0,
    )


def test_metrics_are_those_of_the_best_epochs_and_the_median_fold_says_how_long_to_fit():
    folds = summarise_folds([fit(0, [0.2, 0.5]), fit(2, [0.6, 0.5, 0.4]), fit(1, [0.5, 0.3, 0.9])])
    assert [fold.metrics["loss"] for fold in folds.folds] == [0.2, 0.4, 0.3]
    assert folds.metrics["auc"].mean == pytest.approx(0.7)
    assert folds.metrics["loss"].deviation == pytest.approx(0.1)
    assert folds.num_epochs == 2


def test_without_early_stopping_the_last_validated_epoch_counts():
    folds = summarise_folds([fit(None, [0.2, 0.5]), fit(None, [0.6, 0.5])])
    assert [fold.best_epoch for fold in folds.folds] == [1, 1]
    assert folds.num_epochs == 2


def test_a_job_without_folds_is_refused(tmp_path):
    small = keep(tmp_path, job_of("y"), stored(a=[float(k) for k in range(40)], y=[k % 2 for k in range(40)]))
    with pytest.raises(DataError, match="asks for no folds"):
        cross_validate(job_of("y"), small.snapshot, small.layout, small.layout.run("small", "run"))


@pytest.fixture
def divided(tmp_path):
    """Rows in three folds and a test split."""
    job = small_job(epochs=3).model_copy(update={"split": job_of("y", split__k_fold={"folds": 3}).split})
    small = keep(tmp_path, job, table(120, 0), np.repeat([0, 1, 2], [70, 20, 30]))
    run = small.layout.run("small", "run")
    write_array(run.folds, np.where(small.sides < 2, np.arange(120) % 3, 255).astype(np.uint8))
    return job, small, run


def test_each_fold_is_fitted_by_itself_and_only_once(divided, monkeypatch):
    job, small, run = divided
    folds = cross_validate(job, small.snapshot, small.layout, run)
    assert len({fold.weights_sha256 for fold in folds.folds}) == 3
    assert {name for fold in folds.folds for name in fold.metrics} == {"loss", "accuracy", "auc"}
    assert all(list(run.fold(k).tensorboard_dir.glob("validation/*tfevents*")) for k in range(3))
    monkeypatch.setattr(cross_validation, "fit_model", None)  # whoever called it would fail
    assert cross_validate(job, small.snapshot, small.layout, run) == folds


def test_the_last_fit_learns_from_all_folds_for_as_long_as_it_is_told(divided):
    job, small, run = divided
    sides = pool_sides(run)
    plan = plan_batches(job, small.snapshot, small.layout, sides, partial(read_rows, small.snapshot, small.layout, run, draw="pool"))
    assert (plan.num_train, plan.num_validation) == (90, 0)
    fit = fit_model(job, plan, open_side(small.snapshot, plan, small.layout, sides, "train"), None, run, num_epochs=2)
    assert (fit.num_epochs, fit.best_epoch, fit.validation_epochs) == (2, None, [])


def test_validation_rows_are_drawn_anew_for_each_epoch_and_the_same_each_time(tmp_path):
    job = small_job(epochs=3).model_copy(update={"split": job_of("y", split__resplit_each_epoch=True).split})
    small = keep(tmp_path, job, table(120, 0), np.repeat([0, 1], [96, 24]))
    runs = [small.layout.run("small", name) for name in ("first", "second")]
    first, second = (fit_model(job, small.plan, small.open("pool"), None, run) for run in runs)
    assert first.validation_epochs == [0, 1, 2]
    assert (first.history, first.weights_sha256) == (second.history, second.weights_sha256)
    held_out = fit_model(job, small.plan, small.open("train"), small.open("validation"), small.layout.run("small", "third"))
    assert held_out.history["val_loss"] != first.history["val_loss"]
