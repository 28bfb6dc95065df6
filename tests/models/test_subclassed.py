"""The model with a ``train_step`` of its own does what Keras's step does, on mixed rows."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from models.subclassed import MixupModel
from refit.config import NumericFeature
from refit.contract import make_features
from refit.fitting import assemble_model, fit_model
from refit.layout import Layout
from tests.refit.small import job_of, packed, plan_of, stored

NUM_ROWS = 96
SHARE = 0.75


def table():
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=NUM_ROWS)
    return stored(number=numbers, word=[f"w{int(n > 0.5)}" for n in numbers], weight=1.0 + (numbers > 0), y=(numbers > 0).astype(np.int64))


def job_for(**fit):
    model = {"build": "models.subclassed:build_model", "options": {"hidden_units": [8], "dropout": 0.0, "alpha": 0.4}}
    return job_of("y", model=model, target__kind="binary", fit={"batch_size": 32, "epochs": 2, "early_stopping": None, **fit})


@pytest.fixture
def model():
    job = job_for(optimizer={"name": "sgd", "learning_rate": 1e-12})
    return assemble_model(job, plan_of(job, table()))


def test_the_loss_is_that_of_both_labels_in_the_shares_of_the_rows(model, monkeypatch):
    monkeypatch.setattr(MixupModel, "_draw_share", lambda _: tf.constant(SHARE))
    job = job_for()
    rows = make_features(plan_of(job, table()))
    labels, weights = np.arange(16) % 3 == 0, np.linspace(0.5, 2, 16)
    told = model.train_on_batch(rows, tf.constant(labels, tf.int32), sample_weight=tf.constant(weights, tf.float32), return_dict=True)
    encoded = model.encoder(rows).numpy()
    predicted = model.trunk(SHARE * encoded + (1 - SHARE) * np.roll(encoded, 1, axis=0)).numpy()[:, 0]

    def mean_loss(y, w):
        return np.mean(w * -np.where(y, np.log(predicted), np.log(1 - predicted)))

    expected = SHARE * mean_loss(labels, weights) + (1 - SHARE) * mean_loss(np.roll(labels, 1), np.roll(weights, 1))
    assert float(told["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(told["accuracy"]) == pytest.approx(np.mean((predicted > 0.5) == labels))


def test_shares_are_the_larger_part_of_a_symmetric_beta(model):
    draw = tf.function(model._draw_share)
    shares = np.array([float(draw()) for _ in range(2000)])
    assert scipy.stats.kstest(shares, lambda x: 2 * scipy.stats.beta(0.4, 0.4).cdf(x) - 1).pvalue > 0.001


def test_penalties_on_weights_count_once():
    inputs = {"x": keras.Input((1,), name="x")}
    encoder = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs["x"]), name="encoder")
    mixed = keras.Input((1,))
    heavy = keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(3.0))
    model = MixupModel(encoder, keras.Model(mixed, heavy(mixed), name="trunk"), alpha=0.4)
    model.compile(keras.optimizers.SGD(0.0), "mean_squared_error")
    assert float(model.train_on_batch({"x": np.zeros((4, 1))}, np.zeros((4, 1)))) == pytest.approx(3.0)


def test_evaluation_mixes_nothing(model):
    job = job_for()
    rows = make_features(plan_of(job, table()))
    first, second = (model.test_on_batch(rows, tf.zeros(16, tf.int32), return_dict=True)["loss"] for _ in range(2))
    assert float(first) == float(second)


@pytest.mark.parametrize(
    "fit",
    [
        {"sample_weight": "weight", "precision": "mixed_float16"},
        {"class_weight": "balanced", "precision": "mixed_bfloat16", "steps_per_execution": 3},
    ],
    ids=["float16", "bfloat16"],
)
def test_it_is_fitted_with_weights_in_any_precision(fit, tmp_path):
    job = job_for(optimizer={"name": "adam", "learning_rate": 0.02}, epochs=4, **fit)
    plan, train, validation = packed(job, table(), table())
    record = fit_model(job, plan, train, validation, Layout(tmp_path).run("small", "run"))
    assert record.history["val_loss"][-1] < record.history["val_loss"][0]
    loaded = keras.saving.load_model(Layout(tmp_path).run("small", "run").keras_model, compile=False, safe_mode=True)
    assert isinstance(loaded, MixupModel)
    assert loaded.alpha == 0.4


def test_the_same_job_mixes_the_same_and_each_batch_anew(model):
    job = job_for(optimizer={"name": "sgd", "learning_rate": 1e-12})
    plan = plan_of(job, table())
    rows, labels = make_features(plan), tf.constant(np.arange(16) % 2, tf.int32)
    again = assemble_model(job, plan)
    told = [[float(m.train_on_batch(rows, labels, return_dict=True)["loss"]) for _ in range(3)] for m in (model, again)]
    assert told[0] == told[1]
    assert len(set(told[0])) == 3


def test_xla_compiles_its_step():
    job = job_for(jit_compile=True).model_copy(update={"features": {"number": NumericFeature(kind="numeric")}})  # strings it cannot
    plan = plan_of(job, table())
    model, rows = assemble_model(job, plan), make_features(plan)
    assert np.isfinite(float(model.train_on_batch(rows, tf.zeros(16, tf.int32), return_dict=True)["loss"]))
