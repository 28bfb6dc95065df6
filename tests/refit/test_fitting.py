"""The fit: the same each time, by the schedule that the job names, with the best weights and everything in TensorBoard."""

import gc
import math
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from refit import references
from refit.batches import read_in_order
from refit.errors import CodeError, FitError, JobError
from refit.fitting import assemble_model, describe_model, fit_model, load_fitted
from refit.layout import RunLayout
from tests.refit.small import job_of, packed, plan_of, stored

BATCH, ROWS = 16, 64
STEPS = ROWS // BATCH


def table(num_rows, seed, noise=0.0):
    """Two numbers and a word; the label is the sign of a sum, or the opposite for some rows."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, num_rows))
    label = (a + b > 0) ^ (generator.random(num_rows) < noise)
    return stored(a=a, b=b, c=np.where(a > 1, "high", "low").tolist(), y=label.astype(int), value=a - 2 * b)


TRAIN, VALIDATION = table(ROWS, 0), table(40, 1)


def small_job(target="y", **fit):
    fit = {"epochs": 2, "batch_size": BATCH, "early_stopping": None, "optimizer": {"name": "sgd", "learning_rate": 0.1}, **fit}
    features = {"a": {"kind": "numeric"}, "b": {"kind": "numeric"}, "c": {"kind": "category"}}
    return job_of(target, features=features, model__options={"hidden_units": [8], "dropout": 0.2, "batch_norm": True}, fit=fit)


def run_fit(job, folder, train=TRAIN, validation=VALIDATION, **more):
    plan, left, right = packed(job, train, validation)
    run = RunLayout(folder)
    return fit_model(job, plan, left, right, run, **more), plan, run


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    job = small_job()
    first, again, other = (
        run_fit(j, tmp_path / name)[0] for name, j in [("a", job), ("b", job), ("c", job.model_copy(update={"seed": 1}))]
    )
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.history == again.history
    assert (first.num_epochs, first.best_epoch, first.resumed_at, first.validation_epochs) == (2, None, (), [0, 1])


def test_what_a_fit_leaves_is_the_fitted_model(tmp_path):
    job = small_job()
    record, plan, run = run_fit(job, tmp_path)
    whole = keras.saving.load_model(run.keras_model, safe_mode=True)
    features, _ = next(iter(read_in_order(packed(job, TRAIN, VALIDATION)[2], batch_size=40)))
    np.testing.assert_allclose(whole(features), load_fitted(job, plan, run)(features), rtol=1e-6)
    assert sorted(path.name for path in run.model_dir.iterdir()) == ["model.keras", "weights.weights.h5"]
    assert {record.best_checkpoint, "000002-000000000"} <= {path.name for path in run.checkpoints_dir.iterdir()}


def test_missing_weights_are_told(tmp_path):
    job = small_job()
    with pytest.raises(FitError, match="weights of the run cannot be loaded"):
        load_fitted(job, plan_of(job, TRAIN), RunLayout(tmp_path))


# ---- the learning rate


def cosine(step, steps, final, warmup=0):
    if step < warmup:
        return step / warmup
    share = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2


# The rate that the next step would take, after ``step`` steps and as a share of the first.
# Source: https://keras.io/api/optimizers/learning_rate_schedules/
DECAYS = {
    "constant": ({"kind": "constant"}, lambda _step, _steps: 1.0),
    "step": ({"kind": "step", "every_epochs": 2, "factor": 0.3}, lambda step, _steps: 0.3 ** (step // (2 * STEPS))),
    "exponential": ({"kind": "exponential", "factor": 0.8}, lambda step, _steps: 0.8 ** (step / STEPS)),
    "cosine": ({"kind": "cosine", "final_fraction": 0.1}, lambda step, steps: cosine(step, steps, 0.1)),
    "warm-up": ({"kind": "cosine", "warmup_steps": 6}, lambda step, steps: cosine(step, steps, 0.0, 6)),
}


@pytest.mark.parametrize(
    "name", ["cosine", "step", *(pytest.param(name, marks=pytest.mark.slow) for name in ("constant", "exponential", "warm-up"))]
)
def test_the_learning_rate_follows_the_formula(name, tmp_path):
    decay, share = DECAYS[name]
    epochs = 4
    record, _, _ = run_fit(small_job(epochs=epochs, decay=decay), tmp_path)
    expected = [0.1 * share(epoch * STEPS, epochs * STEPS) for epoch in range(1, epochs + 1)]
    np.testing.assert_allclose(record.history["learning_rate"], expected, rtol=1e-5, atol=1e-8)


def test_a_plateau_drops_the_rate_after_its_patience(tmp_path):
    # With a monitor that cannot improve, a rate below float32's resolution, the rate halves every second epoch.
    optimizer = {"name": "sgd", "learning_rate": 1e-12}
    job = small_job(epochs=6, optimizer=optimizer, decay={"kind": "plateau", "monitor": "val_loss", "factor": 0.5, "patience": 2})
    job = job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": []}})})
    rates = run_fit(job, tmp_path)[0].history["learning_rate"]
    np.testing.assert_allclose(np.array(rates) / 1e-12, [1, 1, 0.5, 0.5, 0.25, 0.25], rtol=1e-5)


# ---- early stopping


def noisy_job(**more):
    job = small_job(
        epochs=14, optimizer={"name": "adam", "learning_rate": 0.1}, early_stopping={"monitor": "val_loss", "patience": 2}, **more
    )
    return job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": [32, 32], "dropout": 0.0}})})


def validation_loss(job, plan, run, validation):
    model = load_fitted(job, plan, run)
    right = packed(job, table(ROWS, 0, noise=0.4), validation)[2]
    return model.evaluate(read_in_order(right, batch_size=256), verbose=0, return_dict=True)["loss"]


def test_early_stopping_restores_the_best_weights(tmp_path):
    job, validation = noisy_job(), table(40, 1, noise=0.4)
    record, plan, run = run_fit(job, tmp_path, table(ROWS, 0, noise=0.4), validation)
    losses = record.history["val_loss"]
    assert record.num_epochs < job.fit.epochs
    assert record.best_epoch == int(np.argmin(losses)) == record.num_epochs - 3
    assert validation_loss(job, plan, run, validation) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_a_fit_that_uses_all_its_epochs_keeps_the_best_weights_too(tmp_path):
    job = noisy_job()
    job = job.model_copy(
        update={
            "fit": job.fit.model_copy(update={"epochs": 5, "early_stopping": job.fit.early_stopping.model_copy(update={"patience": 50})})
        }
    )
    validation = table(40, 1, noise=0.4)
    record, plan, run = run_fit(job, tmp_path, table(ROWS, 0, noise=0.4), validation)
    assert record.num_epochs == 5
    assert record.best_epoch == int(np.argmin(record.history["val_loss"])) < 4
    assert validation_loss(job, plan, run, validation) == pytest.approx(min(record.history["val_loss"]), rel=1e-5)


def test_the_best_epoch_is_the_one_whose_weights_were_kept_with_a_min_delta(tmp_path):
    job = small_job(epochs=4, optimizer={"name": "sgd", "learning_rate": 1e-4}, early_stopping={"patience": 9, "min_delta": 0.5})
    job = job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": []}})})
    record, plan, run = run_fit(job, tmp_path)
    right = packed(job, TRAIN, VALIDATION)[2]
    kept = load_fitted(job, plan, run).evaluate(read_in_order(right, batch_size=256), verbose=0, return_dict=True)["loss"]
    assert record.history["val_loss"][record.best_epoch] == pytest.approx(kept, rel=1e-7)


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric")
def test_validation_every_second_epoch_is_recorded_as_such(tmp_path):
    job = small_job(epochs=4, validation_freq=2, early_stopping={"monitor": "val_loss", "patience": 5})
    record, _, _ = run_fit(job, tmp_path)
    assert record.validation_epochs == [1, 3]
    assert (len(record.history["val_loss"]), len(record.history["loss"])) == (2, 4)
    assert record.best_epoch == [1, 3][int(np.argmin(record.history["val_loss"]))]


# ---- what else a job may say


@pytest.mark.parametrize("name", ["weights.weights.h5", "model.keras"])
def test_a_fit_can_start_from_the_weights_of_another(name, tmp_path):
    job = small_job(optimizer={"name": "sgd", "learning_rate": 1e-12})
    _, plan, run = run_fit(job, tmp_path / "first")
    second = small_job(initial_weights=str(run.model_dir / name), optimizer={"name": "adam", "learning_rate": 1e-12})
    kernels = [load_fitted(j, plan, r).get_weights()[-2] for j, r in [(job, run), (second, run_fit(second, tmp_path / "second")[2])]]
    np.testing.assert_allclose(*kernels, rtol=1e-6)
    other = small_job(initial_weights=str(run.model_dir / name)).model_copy(update={"seed": 5})
    assert run_fit(other, tmp_path / "third")[0].num_epochs == 2


@pytest.mark.parametrize("name", ["none.weights.h5", "none.keras"])
def test_initial_weights_that_are_not_there_are_told(name, tmp_path):
    with pytest.raises(FitError, match="initial weights cannot be loaded"):
        run_fit(small_job(initial_weights=str(tmp_path / name)), tmp_path)


def test_a_fit_ends_when_another_epoch_would_take_too_long(tmp_path):
    record, _, _ = run_fit(small_job(epochs=5, max_minutes=1e-4), tmp_path)
    assert (record.num_epochs, record.stopped_by) == (1, "max_minutes")


def test_layers_compute_in_the_precision_that_the_job_names_and_others_do_not(tmp_path):
    job = small_job(precision="mixed_bfloat16")
    model = assemble_model(job, plan_of(job, TRAIN))
    assert [layer.compute_dtype for layer in model.layers if isinstance(layer, keras.layers.Dense)] == ["bfloat16", "float32"]  # and head
    assert {weight.dtype for weight in model.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert run_fit(job, tmp_path)[0].precision == "mixed_bfloat16"


def test_something_else_than_a_callback_is_told(tmp_path):
    job = small_job(callbacks=[{"use": "refit.callbacks:Resumable"}])
    with pytest.raises((CodeError, TypeError), match=r"callback|Protocol"):
        run_fit(job, tmp_path)


# ---- faults


def test_a_diverging_fit_ends_with_epoch_and_step(tmp_path):
    job = small_job("value", epochs=3, optimizer={"name": "sgd", "learning_rate": 1e30})
    with pytest.raises(FitError, match=r"loss is (nan|inf) in epoch \d+, step \d+; the last finite values were loss [\d.e+-]+") as failure:
        run_fit(job, tmp_path)
    assert "learning_rate" in failure.value.remedy
    assert not RunLayout(tmp_path).weights.exists()


@pytest.mark.parametrize(
    ("fit", "where"),
    [
        ({"early_stopping": {"monitor": "val_acuracy"}}, "fit.early_stopping.monitor"),
        ({"decay": {"kind": "plateau", "monitor": "val_acuracy"}}, "fit.decay.monitor"),
    ],
)
def test_a_monitor_that_is_not_logged_is_told_with_the_nearest(fit, where):
    job = small_job(**fit)
    with pytest.raises(JobError, match=r'no value "val_acuracy" is logged\. Did you mean "val_accuracy"\?') as failure:
        assemble_model(job, plan_of(job, TRAIN))
    assert failure.value.where == where


def wrong_builder(what):
    def build_model(features, target):
        x = features.vector()
        if what == "width":
            return keras.Model(features.inputs, keras.layers.Dense(3)(x))
        if what == "two outputs":
            return keras.Model(features.inputs, [target.head(x), keras.layers.Dense(1)(x)])
        if what == "rank":
            return keras.Model(features.inputs, keras.layers.Reshape((1, 1))(target.head(x)))
        if what == "failing":
            raise KeyError("depth")
        return "a model"

    return build_model


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("width", r"does not fit the target.*\[batch, 1\].*\(None, 3\)"),
        ("two outputs", "does not fit the target"),
        ("rank", r"does not fit the target.*\(None, 1, 1\)"),
        ("nothing", r"returned no model.*Received: str"),
        ("failing", r"failed: KeyError: 'depth'"),
    ],
)
def test_a_builder_whose_model_does_not_fit_is_told(what, told, monkeypatch):
    monkeypatch.setattr(references, "load", lambda _: wrong_builder(what))
    job = small_job()
    job = job.model_copy(update={"model": job.model.model_copy(update={"options": {}})})
    with pytest.raises(CodeError, match=told):
        assemble_model(job, plan_of(job, TRAIN))


# ---- what is told


def test_the_build_record_describes_the_model():
    job = small_job()
    record = describe_model(job, plan_of(job, TRAIN))
    model = assemble_model(job, plan_of(job, TRAIN))
    assert (record.build, record.options, record.num_parameters) == ("models.dense:build_model", job.model.options, model.count_params())
    assert "output" in record.summary


def test_progress_is_told_at_the_end_of_every_epoch(tmp_path):
    told = []
    run_fit(small_job(epochs=3), tmp_path, on_progress=told.append)
    ends = [progress for progress in told if progress.is_epoch_end]
    assert [(p.epoch, p.num_epochs, p.step, p.steps_per_epoch) for p in ends] == [(n, 3, STEPS, STEPS) for n in range(3)]
    assert all({"loss", "val_loss", "accuracy"} <= p.values.keys() for p in ends)
    places = [(p.epoch, p.step) for p in told]
    assert places == sorted(places)


def test_progress_says_which_epoch_was_the_last(tmp_path):
    told = []
    job = small_job(epochs=30, early_stopping={"patience": 1, "min_delta": 1e9})
    run_fit(job, tmp_path, on_progress=told.append)
    assert [progress.is_fit_end for progress in told if progress.is_epoch_end][-1]
    assert sum(progress.is_fit_end for progress in told) == 1
    assert told[-1].epoch + 1 < told[-1].num_epochs


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    job = small_job(epochs=3)
    record, _, run = run_fit(job, tmp_path_factory.mktemp("board"))
    events = {
        side: EventAccumulator(str(run.tensorboard_dir / side), size_guidance={"tensors": 0}).Reload() for side in ("train", "validation")
    }
    return job, record, events


def scalars(events, tag):
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


@pytest.mark.parametrize(
    ("side", "tag", "name"),
    [
        ("train", "epoch_loss", "loss"),
        ("train", "epoch_accuracy", "accuracy"),
        ("train", "epoch_learning_rate", "learning_rate"),
        ("validation", "epoch_loss", "val_loss"),
        ("validation", "epoch_auc", "val_auc"),
    ],
)
def test_tensorboard_holds_every_epoch(side, tag, name, board):
    _, record, events = board
    found = scalars(events[side], tag)
    assert sorted(found) == [0, 1, 2]
    np.testing.assert_allclose([found[epoch] for epoch in range(3)], record.history[name], rtol=1e-6)


def test_tensorboard_holds_the_learning_rate_of_every_step(board):
    job, _, events = board
    rates = scalars(events["train"], "batch_learning_rate")
    assert sorted(rates) == list(range(3 * STEPS))
    assert set(rates.values()) == {np.float32(job.fit.optimizer.rate)}


def test_tensorboard_shows_the_graph_of_the_model(board):
    _, _, events = board
    names = {node.name.split("/")[0] for node in events["train"].Graph().node}
    assert any("dense" in name for name in names), names


def test_tensorboard_holds_each_value_of_the_validation_once(board):
    _, _, events = board
    assert set(events["validation"].Tags()["tensors"]) == {"epoch_loss", "epoch_accuracy", "epoch_auc"}


def test_tensorboard_holds_the_job_as_it_was(board):
    job, _, events = board
    (event,) = events["train"].Tensors("job")
    text = event.tensor_proto.string_val[0].decode()
    assert yaml.safe_load("\n".join(line[4:] for line in text.splitlines())) == job.model_dump(mode="json")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_fit_leaves_no_memory_behind(tmp_path):
    held_by_one = 3 * 4 * 2000 * 2000  # weights and Adam's two moments
    job = small_job(epochs=1, optimizer={"name": "adam"})
    job = job.model_copy(update={"model": job.model.model_copy(update={"options": {"hidden_units": [2000, 2000]}})})

    def fit_again(number):
        run_fit(job, tmp_path / str(number))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    held = [fit_again(number) for number in range(6)]
    assert held[5] - held[1] < 2 * held_by_one, held  # it would be four times as much, and what is free is not given back at once
