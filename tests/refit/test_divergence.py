"""A fit that diverges: it says where, or goes back to what was good and on with a lower rate."""

import keras
import numpy as np
import pytest

from refit.callbacks import StopOnNaN
from refit.divergence import lower_rate
from refit.errors import DivergedError
from refit.optimizers import build_optimizer
from tests.refit.test_fitting import STEPS, run_fit, small_job

EPOCHS = 10


def growing_job(**fit):
    """A linear regression whose rate grows by three of its steps until no weight can bear it."""
    steep = {
        "epochs": EPOCHS,
        "optimizer": {"name": "sgd", "learning_rate": 30.0},
        "decay": {"kind": "cosine", "warmup_epochs": 4, "final_fraction": 0.9},
        "checkpoint": {"every_seconds": None},
        "steps_per_execution": 1,
        **fit,
    }
    job = small_job("value", **steep)
    return job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": []}})})


def rates_of(optimizer):
    return (
        [float(optimizer.learning_rate(step)) for step in range(4)]
        if callable(optimizer.learning_rate)
        else [float(optimizer.learning_rate)]
    )


def test_it_ends_with_the_place_and_what_was_finite_last(tmp_path):
    text = r"the loss is (nan|inf) in epoch \d+, step \d+; the last finite values were loss [\d.e+-]+ · mae"
    with pytest.raises(DivergedError, match=text) as failure:
        run_fit(growing_job(), tmp_path)
    assert "fit.optimizer.learning_rate" in failure.value.remedy
    assert "fit.on_divergence" in failure.value.remedy


def test_a_loss_that_never_was_finite_is_told_so():
    with pytest.raises(DivergedError, match=r"the loss is nan in epoch 3, step 1; it never was finite"):
        StopOnNaN(2, {}).on_train_batch_end(0, {"loss": float("nan")})


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovered")
    return run_fit(growing_job(on_divergence={"restarts": 9, "factor": 0.1}), folder)


def test_with_a_lower_rate_it_goes_on_from_what_was_good(recovered):
    record, _, run = recovered
    assert record.num_epochs == EPOCHS
    assert record.restarts
    assert [restart.factor for restart in record.restarts] == pytest.approx([0.1 ** (n + 1) for n in range(len(record.restarts))])
    first = record.restarts[0]
    assert (first.epoch, first.step) == (first.diverged_epoch, first.diverged_epoch * STEPS)  # the checkpoint before
    assert record.resumed_at == ()
    assert np.isfinite(record.history["loss"]).all()
    assert record.history["loss"][-1] < 10.0
    assert run.weights.exists()


@pytest.mark.slow
def test_it_ends_the_same_each_time(recovered, tmp_path):
    again = run_fit(growing_job(on_divergence={"restarts": 9, "factor": 0.1}), tmp_path)[0]
    assert (again.weights_sha256, again.restarts) == (recovered[0].weights_sha256, recovered[0].restarts)


class InterruptedFitError(Exception):
    """What stops a fit here."""


@pytest.mark.parametrize("epochs_later", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_interrupted_afterwards_it_goes_on_as_it_was_going(epochs_later, recovered, tmp_path):
    job = growing_job(on_divergence={"restarts": 9, "factor": 0.1})
    last = recovered[0].restarts[-1]
    seen = []

    def interrupt(progress):
        if progress.is_epoch_end:
            seen.append(progress.epoch)
        if len(seen) > last.diverged_epoch + epochs_later:
            raise InterruptedFitError

    with pytest.raises(InterruptedFitError):
        run_fit(job, tmp_path, on_progress=interrupt)
    found = run_fit(job, tmp_path)[0]
    assert found.resumed_at or not epochs_later
    assert (found.weights_sha256, found.restarts) == (recovered[0].weights_sha256, recovered[0].restarts)
    assert found.history == recovered[0].history


def test_after_its_restarts_it_fails_and_says_how_often_it_tried(tmp_path):
    with pytest.raises(DivergedError, match=r"begun again 2 times, with 0\.81 of the job's learning rate at last") as failure:
        run_fit(growing_job(on_divergence={"restarts": 2, "factor": 0.9}), tmp_path)
    assert "learning_rate" in failure.value.remedy


@pytest.mark.parametrize("decay", [{"kind": "constant"}, {"kind": "exponential", "factor": 0.5}, {"kind": "cosine", "warmup_steps": 2}])
def test_the_whole_schedule_is_lower(decay, recovered):
    job = small_job(decay=decay)
    lowered = lower_rate(job, recovered[0].restarts[:1])
    rates = [rates_of(build_optimizer(j.fit, STEPS)) for j in (job, lowered)]
    np.testing.assert_allclose(rates[1], np.array(rates[0]) * 0.1, rtol=1e-6)


class Exploding(keras.callbacks.Callback):
    """Puts a number that is not finite into the weights, once."""

    left = 0

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002 -- Keras's signature
        if Exploding.left and self.model.optimizer.iterations.numpy() == 5 * STEPS:
            Exploding.left -= 1
            self.model.trainable_variables[0].assign(self.model.trainable_variables[0] * np.nan)


def test_a_rate_that_a_plateau_has_dropped_is_lowered_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("REFIT_CODE", "models,refit,tests")
    Exploding.left = 1
    job = small_job(
        epochs=7,
        optimizer={"name": "sgd", "learning_rate": 1e-12},
        decay={"kind": "plateau", "factor": 0.5, "patience": 2},
        callbacks=[{"use": "tests.refit.test_divergence:Exploding"}],
        on_divergence={"restarts": 1, "factor": 0.1},
    )
    job = job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": []}})})
    record = run_fit(job, tmp_path)[0]
    np.testing.assert_allclose(np.array(record.history["learning_rate"]) / 1e-12, [1, 1, 0.5, 0.5, 0.25, 0.025, 0.0125], rtol=1e-5)
    assert record.restarts[0].epoch == 5
