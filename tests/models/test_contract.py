"""One contract for every builder in ``models``: shapes, learning, saving and loading, any batch size."""

import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from refit.batches import Position, read_batches
from refit.config import Job
from refit.errors import CodeError
from refit.fitting import assemble_model
from tests.refit.small import job_of, packed, plan_of, stored

NUM_ROWS = 48
LABELS = {
    "binary": np.arange(NUM_ROWS) % 2,
    "classes": np.arange(NUM_ROWS) % 3,
    "regression": (np.arange(NUM_ROWS) % 5).astype(np.float64),
}
UNITS = {"binary": 1, "classes": 3, "regression": 1}
BUILDERS = [f"models.{module.name}:build_model" for module in pkgutil.iter_modules(models.__path__)]
OPTIONS = {
    "models.convnet:build_model": [
        {"filters": [4], "hidden_units": 8},
        {"filters": [4, 4, 4, 4], "hidden_units": 8, "l2": 1e-4, "dropout": 0},
        {"filters": [4], "hidden_units": 8, "flip": True, "shift": 0.1, "rotation": 0.02, "zoom": 0.1},
    ],
    "models.dense:build_model": [{"hidden_units": [16]}, {"hidden_units": [], "l1": 1e-4}, {"hidden_units": [8, 8], "batch_norm": True}],
}


def table_of(shape, kind):
    """Rows whose columns tell the label."""
    label = LABELS[kind]
    generator = np.random.default_rng(0)
    image = np.clip(generator.integers(0, 30, (NUM_ROWS, 6, 5, 2)) + label[:, None, None, None] * 45, 0, 255).astype(np.uint8)
    number = [None if i % 9 == 0 else float(label[i]) + 0.1 * generator.normal() for i in range(NUM_ROWS)]
    word = [None if i % 8 == 0 else f"w{int(label[i])}" for i in range(NUM_ROWS)]
    tables = {"table": {"number": number, "word": word}, "image": {"image": image}}
    tables["mixed"] = {**tables["table"], **tables["image"]}
    return stored(**tables[shape], y=label)


def job_for(builder, options, kind):
    fit = {"batch_size": 16, "optimizer": {"name": "adam", "learning_rate": 0.01}}
    return job_of("y", model={"build": builder, "options": options}, target__kind=kind, fit=fit)


def cases():
    """Every kind of target over the builder's own shape, every shape, every set of options; not their product."""
    for builder in BUILDERS:
        shapes, options = (("image", "mixed") if "convnet" in builder else ("table", "image", "mixed")), OPTIONS[builder]
        chosen = [(options[0], kind, shapes[0]) for kind in LABELS]
        chosen += [(options[0], "classes", shape) for shape in shapes[1:]] + [(more, "binary", shapes[-1]) for more in options[1:]]
        for number, (picked, kind, shape) in enumerate(chosen):
            name = f"{builder.removeprefix('models.').partition(':')[0]}-{kind}-{shape}-{number}"
            yield pytest.param((builder, picked, kind, shape), id=name)


@pytest.fixture(params=cases())
def case(request):
    builder, options, kind, shape = request.param
    table, job = table_of(shape, kind), job_for(builder, options, kind)
    plan, train, _ = packed(job, table, table)
    batch = next(iter(read_batches(train, batch_size=32, seed=0, start=Position(0, 0))))
    return job, plan, assemble_model(job, plan), batch


def predict(model, features, num_rows=None):
    return np.asarray(model({name: values[:num_rows] for name, values in features.items()}, training=False))


def test_every_builder_has_options_in_this_contract():
    assert sorted(BUILDERS) == sorted(OPTIONS)


def test_the_contract(case, tmp_path):
    """One model goes all the way, for building it is what takes the time."""
    job, plan, model, (features, label) = case
    _check_output(model, features, plan.target.kind)
    _check_learning(model, features, label)
    _check_batch_sizes(model, features)
    _check_weights(job, plan, model, features, tmp_path / "model.weights.h5")
    _check_whole_model(model, features, tmp_path / "model.keras")


def _check_output(model, features, kind):
    predicted = predict(model, features)
    assert model.output_shape == (None, UNITS[kind])
    assert (predicted.shape, predicted.dtype) == ((32, UNITS[kind]), np.float32)
    assert np.isfinite(predicted).all()
    if kind == "classes":
        np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)
    if kind == "binary":
        assert ((predicted >= 0) & (predicted <= 1)).all()


def _check_learning(model, features, label):
    model.run_eagerly = True  # a graph takes seconds to trace and one step to use
    losses = [float(model.train_on_batch(features, label, return_dict=True)["loss"]) for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def _check_batch_sizes(model, features):
    whole = predict(model, features)
    for size in (1, 7):
        np.testing.assert_allclose(predict(model, features, size), whole[:size], rtol=1e-4, atol=1e-5)


def _check_weights(job, plan, model, features, path):
    expected = predict(model, features)
    model.save_weights(path)
    rebuilt = assemble_model(job, plan)
    rebuilt.optimizer.build(rebuilt.trainable_variables)
    rebuilt.load_weights(path)
    np.testing.assert_array_equal(predict(rebuilt, features), expected)


def _check_whole_model(model, features, path):
    expected = predict(model, features)
    model.save(path)
    keras.backend.clear_session()
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(predict(loaded, features), expected, rtol=1e-5, atol=1e-6)


# ---- what does not fit


def test_a_convnet_over_a_table_is_refused_with_the_way_out():
    table = table_of("table", "classes")
    job = job_for("models.convnet:build_model", {}, "classes")
    with pytest.raises(CodeError, match=r"needs an image feature; for tables take models\.dense"):
        assemble_model(job, plan_of(job, table))


@pytest.mark.parametrize(("shape", "name"), [("table", "dense"), ("image", "convnet"), ("mixed", "convnet")])
def test_a_builder_is_chosen_by_the_features(shape, name):
    job = job_of("y", fit__batch_size=16)
    assert assemble_model(job, plan_of(job, table_of(shape, "classes"))).name == name


def test_an_option_that_the_builder_does_not_take_is_told_with_the_nearest():
    job = job_for("models.dense:build_model", {"hiden_units": [3]}, "classes")
    with pytest.raises(CodeError, match=r'takes no option "hiden_units"\. Did you mean "hidden_units"\?'):
        assemble_model(job, plan_of(job, table_of("table", "classes")))


def test_the_same_job_builds_the_same_weights_each_time():
    job = job_of("y", fit__batch_size=16)
    plan = plan_of(job, table_of("mixed", "classes"))
    first, second = assemble_model(job, plan), assemble_model(job, plan)
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(a.value), tf.convert_to_tensor(b.value))


def test_another_seed_builds_other_weights():
    table = table_of("mixed", "classes")
    jobs: list[Job] = [job_of("y", fit__batch_size=16, seed=seed) for seed in (0, 1)]
    first, second = (assemble_model(job, plan_of(job, table)).trainable_variables[0].numpy() for job in jobs)
    assert (first != second).any()
