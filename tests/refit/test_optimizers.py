"""Optimizers and schedules: the job's table is Keras's, each of them learns, and rates follow their formulas."""

import inspect
import math
import re
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import schedules

from refit.config import OPTIMIZERS, Decay, EarlyStoppingConfig, FitConfig, OptimizerConfig, OptimizerName, dotted, find_faults, parse_job
from refit.errors import JobError
from refit.fitting import assemble_model
from refit.optimizers import build_optimizer, build_schedule
from tests.refit.small import job_of, plan_of, stored

RATE, STEPS, EPOCHS = 0.1, 4, 12
LEAST = {"name": "penguins", "data": {"sources": [{"kind": "csv", "path": "a.csv"}]}, "target": {"column": "species"}}
NOT_FOR_ONE_MODEL = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}


def fit_config(**said):
    return FitConfig.model_validate(said)


def faults(**fit):
    return {dotted(fault.path): fault.message for fault in find_faults(LEAST | {"fit": fit})}


def argument_names(keras_class):
    parameters = inspect.signature(keras_class.__init__).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self", "name"}


# ---- the table


def test_the_table_names_every_optimizer_of_keras_for_one_model():
    classes = {name for name, value in vars(keras.optimizers).items() if inspect.isclass(value)}
    assert {kind.keras_class for kind in OPTIMIZERS.values()} == classes - NOT_FOR_ONE_MODEL
    assert tuple(OPTIMIZERS) == get_args(OptimizerName)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_arguments_that_keras_gives_it(name):
    keras_class = getattr(keras.optimizers, OPTIMIZERS[name].keras_class)
    assert {"learning_rate", *OPTIMIZERS[name].arguments} == argument_names(keras_class)
    assert OPTIMIZERS[name].learning_rate == inspect.signature(keras_class.__init__).parameters["learning_rate"].default


def test_the_job_has_a_key_for_every_argument_and_no_other():
    taken = {argument for kind in OPTIMIZERS.values() for argument in kind.arguments}
    assert set(OptimizerConfig.model_fields) == {"name", "learning_rate", *taken}


def test_every_schedule_of_keras_can_be_had():
    classes = {name for name, value in vars(schedules).items() if inspect.isclass(value)} - {"LearningRateSchedule"}
    built = {build_schedule(fit_config(epochs=EPOCHS, decay=decay), STEPS)["class_name"] for decay, _ in DECAYS.values() if _ is not None}
    assert built == classes


# ---- the page that tells of them

PAGE = (Path(__file__).parents[2] / "docs" / "job-file.md").read_text().partition("\n## fit\n")[2].partition("\n## ")[0]
ROWS = [[set(re.findall(r"`(\w+)`", cell)) for cell in line.split("|")[1:3]] for line in PAGE.splitlines() if line.startswith("| `")]


def told_of(name):
    return next(keys for names, keys in ROWS if name in names)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_page_tells_an_optimizers_own_arguments(name):
    common = set.intersection(*(set(kind.arguments) for kind in OPTIMIZERS.values()))
    assert told_of(name) == set(OPTIMIZERS[name].arguments) - common
    assert all(any(argument in names for names, _ in ROWS) for argument in common)


@pytest.mark.parametrize("decay", get_args(get_args(Decay)[0]), ids=lambda decay: decay.__name__)
def test_the_page_tells_the_keys_of_a_decay(decay):
    (kind,) = get_args(decay.model_fields["kind"].annotation)
    assert set(decay.model_fields) - {"kind"} <= told_of(kind)


def test_the_page_tells_every_key_of_the_fit():
    assert set(FitConfig.model_fields) <= {name for names, _ in ROWS for name in names}
    assert set(EarlyStoppingConfig.model_fields) <= told_of("early_stopping")


# ---- optimizers

EVERY_ARGUMENT = {
    "momentum": 0.5,
    "nesterov": True,
    "beta_1": 0.8,
    "beta_2": 0.95,
    "epsilon": 1e-5,
    "amsgrad": True,
    "rho": 0.8,
    "centered": True,
    "initial_accumulator_value": 0.2,
    "beta_2_decay": -0.7,
    "epsilon_1": 1e-20,
    "epsilon_2": 0.002,
    "clip_threshold": 2.0,
    "relative_step": False,
    "learning_rate_power": -0.4,
    "l1_regularization_strength": 0.001,
    "l2_regularization_strength": 0.001,
    "l2_shrinkage_regularization_strength": 0.001,
    "beta": 0.1,
    "ns_steps": 3,
    "rms_rate": 0.3,
    "exclude_layers": ["output"],
    "exclude_embeddings": False,
    "muon_a": 3.4,
    "muon_b": -4.7,
    "muon_c": 2.0,
    "adam_beta_1": 0.8,
    "adam_beta_2": 0.95,
    "adam_weight_decay": 0.001,
    "adam_lr_ratio": 0.5,
    "warmup_steps": 3,
    "weight_decay": 0.001,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 5,
    "loss_scale_factor": 8.0,
    "gradient_accumulation_steps": 2,
}


def tiny_model(config):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(8, activation="tanh", name="hidden"), keras.layers.Dense(1, name="output")]
    )
    model.compile(optimizer=build_optimizer(config, STEPS), loss="mse")
    return model


def points():
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    return x, x @ np.array([[1.0], [-2.0], [0.5]], "float32")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_with_a_schedule_and_is_saved_with_the_model(name, tmp_path):
    config = fit_config(optimizer={"name": name, "learning_rate": 0.01}, epochs=EPOCHS, decay={"kind": "cosine", "final_fraction": 0.5})
    model, (x, y) = tiny_model(config), points()
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before
    assert type(model.optimizer).__name__ == OPTIMIZERS[name].keras_class
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 * cosine(3 * STEPS, EPOCHS * STEPS, 0.5), rel=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    loaded.train_on_batch(x, y)
    assert int(loaded.optimizer.iterations) == 3 * STEPS + 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_argument_reaches_keras(name):
    said = {argument: value for argument, value in EVERY_ARGUMENT.items() if argument in OPTIMIZERS[name].arguments}
    assert set(OPTIMIZERS[name].arguments) - set(said) == {"clipnorm", "clipvalue"}
    model, (x, y) = tiny_model(fit_config(optimizer={"name": name, **said})), points()
    held = model.optimizer.get_config()
    assert {argument: held[argument] for argument in said} == said
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(x, y, batch_size=8, verbose=0)
    assert all(np.isfinite(variable.numpy()).all() for variable in model.trainable_variables)
    assert any((variable.numpy() != old).any() for variable, old in zip(model.trainable_variables, before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_left_out_is_kerass_default(name):
    ours = build_optimizer(fit_config(optimizer={"name": name}), STEPS).get_config()
    keras_own = getattr(keras.optimizers, OPTIMIZERS[name].keras_class)().get_config()
    assert {**ours, "name": ""} == {**keras_own, "name": ""}


@pytest.mark.parametrize("argument", ["clipnorm", "clipvalue"])
def test_gradients_are_clipped(argument):
    model = tiny_model(fit_config(optimizer={"name": "sgd", "learning_rate": 1.0, argument: 1e-3}))
    x, y = points()
    before = [variable.numpy() for variable in model.trainable_variables]
    model.train_on_batch(x, 1e3 * y)
    moved = [np.abs(variable.numpy() - old) for variable, old in zip(model.trainable_variables, before, strict=True)]
    size = max(np.linalg.norm(part) for part in moved) if argument == "clipnorm" else max(part.max() for part in moved)
    assert size == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("more", [{"early_stopping": None}, {"early_stopping": {"restore_best": False}}])
def test_the_average_of_the_weights_is_what_the_fit_ends_with(more):
    config = fit_config(optimizer={"name": "sgd", "learning_rate": RATE, "use_ema": True, "ema_momentum": 0.5}, **more)
    model, (x, y) = tiny_model(config), points()
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: seen.append(model.get_weights()[0]))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    average = seen[0]
    for weights in seen[1:]:
        average = (average + weights) / 2
    np.testing.assert_allclose(model.get_weights()[0], average, rtol=1e-4, atol=1e-6)


def test_a_schedule_counts_the_steps_whose_gradients_are_accumulated():
    config = fit_config(optimizer={"name": "sgd", "learning_rate": RATE, "gradient_accumulation_steps": 4}, decay={"kind": "exponential"})
    model, (x, y) = tiny_model(config), points()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert float(model.optimizer.learning_rate) == pytest.approx(RATE * 0.95**2, rel=1e-5)


# ---- schedules: the rate of the step with this number, from 0, as a share of the first
# Source: https://keras.io/api/optimizers/learning_rate_schedules/


def cosine(step, steps, final, warmup=0):
    if step < warmup:
        return step / warmup
    share = min((step - warmup) / (steps - warmup), 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2


def restarts(step, first, longer, lower, final):
    top, length = 1.0, first
    while step >= length:
        step, length, top = step - length, length * longer, top * lower
    return final + (1 - final) * top * (1 + math.cos(math.pi * step / length)) / 2


def cycled(step, steps):
    length = steps * max(1, math.ceil(step / steps))
    return 0.2 + 0.8 * (1 - step / length)


WHOLE = EPOCHS * STEPS
DECAYS = {
    "constant": ({"kind": "constant"}, None),
    "plateau": ({"kind": "plateau"}, None),
    "step": ({"kind": "step", "every_epochs": 2, "factor": 0.3}, lambda step: 0.3 ** (step // (2 * STEPS))),
    "piecewise": (
        {"kind": "piecewise", "boundaries": [1, 3], "factors": [1.0, 0.5, 0.1]},
        lambda step: 1.0 if step < STEPS else 0.5 if step < 3 * STEPS else 0.1,
    ),
    "exponential": ({"kind": "exponential", "factor": 0.8}, lambda step: 0.8 ** (step / STEPS)),
    "inverse time": ({"kind": "inverse_time", "decay_rate": 0.5, "every_epochs": 2}, lambda step: 1 / (1 + 0.5 * step / (2 * STEPS))),
    "inverse time in stairs": (
        {"kind": "inverse_time", "decay_rate": 0.5, "staircase": True},
        lambda step: 1 / (1 + 0.5 * (step // STEPS)),
    ),
    "line": ({"kind": "polynomial", "final_fraction": 0.2}, lambda step: 0.2 + 0.8 * (1 - min(step / WHOLE, 1))),
    "power": ({"kind": "polynomial", "power": 2.0, "decay_epochs": 4}, lambda step: (1 - min(step / (4 * STEPS), 1)) ** 2),
    "cycles": ({"kind": "polynomial", "final_fraction": 0.2, "decay_epochs": 3, "cycle": True}, lambda step: cycled(step, 3 * STEPS)),
    "cosine": ({"kind": "cosine", "final_fraction": 0.1}, lambda step: cosine(step, WHOLE, 0.1)),
    "warm-up in steps": ({"kind": "cosine", "warmup_steps": 6}, lambda step: cosine(step, WHOLE, 0.0, 6)),
    "warm-up in epochs": ({"kind": "cosine", "warmup_epochs": 2.5}, lambda step: cosine(step, WHOLE, 0.0, 10)),
    "restarts": (
        {"kind": "cosine_restarts", "first_epochs": 1, "m_mul": 0.5, "final_fraction": 0.1},
        lambda step: restarts(step, STEPS, 2, 0.5, 0.1),
    ),
    "restarts of one length": (
        {"kind": "cosine_restarts", "first_epochs": 2, "t_mul": 1.0},
        lambda step: restarts(step, 2 * STEPS, 1, 1.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", [name for name, (_, share) in DECAYS.items() if share is not None])
def test_every_decay_follows_its_formula_at_every_step(name):
    decay, share = DECAYS[name]
    schedule = build_schedule(fit_config(epochs=EPOCHS, optimizer={"learning_rate": RATE}, decay=decay), STEPS)
    rate = tf.function(schedules.deserialize(schedule))
    found = [float(rate(tf.constant(step, tf.int64))) for step in range(WHOLE + 2)]
    np.testing.assert_allclose(found, [RATE * share(step) for step in range(WHOLE + 2)], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_without_a_schedule_the_rate_is_a_number(name):
    assert build_schedule(fit_config(optimizer={"learning_rate": RATE}, decay=DECAYS[name][0]), STEPS) == RATE


@pytest.mark.parametrize("name", DECAYS)
def test_every_decay_goes_with_an_epoch_of_one_step(name):
    optimizer = build_optimizer(fit_config(epochs=EPOCHS, decay=DECAYS[name][0]), 1)
    assert float(optimizer.learning_rate) >= 0


# ---- what is refused


@pytest.mark.parametrize(
    ("optimizer", "path", "says"),
    [
        ({"name": "admaw"}, ".name", 'no optimizer is called "admaw". Did you mean "adamw"? Known: sgd, adam, adamw, adamax,'),
        ({"name": "AdamW"}, ".name", 'Did you mean "adamw"?'),
        ({"name": "xyz"}, ".name", 'no optimizer is called "xyz". Known: sgd, adam, '),
        ({"name": 3}, ".name", "Received: 3."),
        ({"name": "adam", "rho": 0.9}, "", "adam takes no rho, which is for rmsprop, adadelta. adam takes learning_rate, beta_1, beta_2,"),
        (
            {"name": "muon", "beta_1": 0.9},
            "",
            "muon takes no beta_1, which is for adam, adamw, adamax, nadam, lamb, lion, schedule_free_adamw. ",
        ),
        ({"name": "muon", "beta_1": 0.9}, "", 'Did you mean "adam_beta_1"?'),
        ({"name": "sgd", "rho": 0.9, "amsgrad": True}, "", "sgd takes no amsgrad, which is for adam, adamw. sgd takes no rho,"),
        ({"momentun": 0.9}, ".momentun", 'unknown key. Did you mean "momentum"?'),
        ({"clipnorm": 1, "clipvalue": 1}, "", "only one of clipnorm and clipvalue can be set."),
        ({"clipnorm": 1, "clipvalue": 1, "global_clipnorm": 1}, "", "only one of clipnorm and clipvalue and global_clipnorm can be set."),
        ({"gradient_accumulation_steps": 1}, ".gradient_accumulation_steps", "greater than or equal to 2. Received: 1."),
        ({"ema_momentum": 0.9}, "", "ema_momentum is for use_ema: true."),
        ({"use_ema": False, "ema_momentum": 0.9, "ema_overwrite_frequency": 9}, "", "ema_overwrite_frequency are for use_ema: true."),
        ({"name": "lion", "beta_1": 0}, "", "lion needs a beta_1 above 0."),
        ({"name": "schedule_free_adamw", "beta_1": 0}, "", "schedule_free_adamw needs a beta_1 above 0."),
        ({"name": "muon", "exclude_layers": ["(output"]}, ".exclude_layers", '"(output" is no regular expression: missing )'),
        ({"amsgrad": "maybe"}, ".amsgrad", "Received: 'maybe'."),
        ({"learning_rate": 0}, ".learning_rate", "greater than 0"),
    ],
)
def test_an_impossible_optimizer_is_refused_in_words(optimizer, path, says):
    found = faults(optimizer=optimizer)
    assert list(found) == [f"fit.optimizer{path}"]
    assert says in found[f"fit.optimizer{path}"]


@pytest.mark.parametrize(
    ("fit", "path", "says"),
    [
        (
            {"decay": {"kind": "piecewise", "boundaries": [3, 3], "factors": [1, 1, 1]}},
            "fit.decay",
            "boundaries must rise. Received: [3, 3]",
        ),
        ({"decay": {"kind": "piecewise", "boundaries": [3], "factors": [1]}}, "fit.decay", "1 boundaries need 2 factors. Received: 1"),
        ({"decay": {"kind": "piecewise", "boundaries": [], "factors": [1]}}, "fit.decay.boundaries", "at least 1 item"),
        ({"decay": {"kind": "polynomial", "cycle": True}}, "fit.decay", "cycle needs decay_epochs"),
        ({"decay": {"kind": "cosine", "warmup_steps": 3, "warmup_epochs": 1}}, "fit.decay", "warmup_steps or warmup_epochs, not both"),
        ({"decay": {"kind": "cosine", "warmup_epochs": 31}}, "fit", "warmup_epochs 31 is above epochs 30"),
        ({"decay": {"kind": "cosine_restarts", "first_epochs": 1, "t_mul": 0.5}}, "fit.decay.t_mul", "greater than or equal to 1"),
        ({"decay": {"kind": "cosin"}}, "fit.decay.kind", 'no kind "cosin". Did you mean "cosine"?'),
        ({"early_stopping": {"start_from_epoch": 30}}, "fit", "start_from_epoch 30 leaves none of 30 epochs to be watched"),
        ({"early_stopping": {"mode": "up"}}, "fit.early_stopping.mode", "'auto', 'min' or 'max'"),
        ({"precision": "mixed_float16", "optimizer": {"loss_scale_factor": 2}}, "fit", "mixed_float16 finds its own scale"),
        ({"optimizer": {"use_ema": True}}, "fit", "set ema_overwrite_frequency, or early_stopping.restore_best: false"),
        ({"precision": "float16"}, "fit.precision", "'mixed_bfloat16'"),
        ({"jit_compile": "yes"}, "fit.jit_compile", "'auto', True or False"),
        ({"max_minutes": 0}, "fit.max_minutes", "greater than 0"),
        ({"initial_weights": "weights.pt"}, "fit.initial_weights", "its name ends in .weights.h5 or .keras"),
        ({"callbacks": [{"use": "models/own.py"}]}, "fit.callbacks.0.use", "match pattern"),
    ],
)
def test_an_impossible_fit_is_refused_in_words(fit, path, says):
    found = faults(**fit)
    assert list(found) == [path]
    assert says in found[path]


def test_the_defaults_are_those_of_before():
    fit = parse_job(LEAST).fit
    assert (fit.optimizer.name, fit.optimizer.rate, fit.optimizer.arguments) == ("adam", 0.001, {})
    assert (fit.precision, fit.jit_compile, fit.max_minutes, fit.initial_weights) == ("auto", "auto", None, None)
    assert (fit.callbacks, fit.early_stopping.restore_best) == ([], True)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("binary", "loss, accuracy, auc, val_loss, val_accuracy, val_auc"),
        ("classes", "loss, accuracy, val_loss, val_accuracy"),
        ("regression", "loss, rmse, mae, val_loss, val_rmse, val_mae"),
    ],
)
def test_a_monitor_that_is_not_logged_is_refused_with_those_that_are(kind, known):
    table = stored(a=np.arange(8.0), y=np.arange(8) % (2 if kind == "binary" else 4))
    job = job_of("y", target__kind=kind, fit={"batch_size": 4, "early_stopping": {"monitor": "val_los"}})
    with pytest.raises(JobError, match=r'no value "val_los" is logged\. Did you mean "val_loss"\?') as failure:
        assemble_model(job, plan_of(job, table))
    assert (failure.value.where, failure.value.expected) == ("fit.early_stopping.monitor", f"one of {known}")
