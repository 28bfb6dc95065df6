"""Fits that cannot be: what a clumsy or hostile job, a failing callback, a full disk or full memory tells whom it concerns."""

import errno
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from refit import guests
from refit.errors import CodeError, FitError, StorageError
from refit.fitting import describe_model, fit_model, telling_memory
from refit.full_disk import full_disk, is_disk_full
from refit.initial_weights import load_initial_weights
from refit.layout import RunLayout
from refit.references import CODE_VARIABLE
from tests.refit.small import job_of, packed, plan_of, stored

CALLBACKS = """\
import keras

class Failing(keras.callbacks.Callback):
    def __init__(self, epoch=0, state=False):
        super().__init__()
        self.epoch, self.state = epoch, 1 / state if state is None else state

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyError("val_f1")

class Leaving(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise SystemExit(0)

class Forgetful(keras.callbacks.Callback):
    def get_state(self):
        raise RuntimeError("no state")
    def set_state(self, state): ...

class Dividing(keras.callbacks.Callback):
    def __init__(self, by):
        super().__init__()
        self.share = 1 / by

def no_callback():
    return 3

def of_a_function():
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["val_f1"])
"""
ROWS = 32


def table(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, ROWS))
    return stored(a=a, b=b, y=(a + b > 0).astype(int))


def small_job(**fit):
    fit = {"epochs": 2, "batch_size": 8, "early_stopping": None, **fit}
    return job_of("y", model__options={"hidden_units": [4]}, fit=fit)


def run_fit(job, folder):
    plan, train, validation = packed(job, table(0), table(1))
    return fit_model(job, plan, train, validation, RunLayout(folder))


# ---- callbacks


@pytest.fixture
def module(tmp_path, monkeypatch):
    path = tmp_path / "callbacks_of_a_test.py"
    path.write_text(CALLBACKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "callbacks_of_a_test")
    yield path
    sys.modules.pop("callbacks_of_a_test", None)


def watched_by(name, **options):
    return small_job(callbacks=[{"use": f"callbacks_of_a_test:{name}", "options": options}])


def with_builder_allowed(monkeypatch):
    monkeypatch.setenv(CODE_VARIABLE, "callbacks_of_a_test,models")


@pytest.mark.parametrize(
    ("name", "told", "line"),
    [
        ("Failing", "failed in on_epoch_end: KeyError: 'val_f1'", "raise KeyError"),
        ("Leaving", "failed in on_epoch_end: SystemExit: 0", "raise SystemExit"),
        ("Forgetful", "failed in get_state: RuntimeError: no state", "raise RuntimeError"),
        ("of_a_function", "failed in <lambda>: KeyError: 'val_f1'", "LambdaCallback("),
    ],
)
def test_a_callback_that_fails_is_named_with_its_line(name, told, line, module, tmp_path, monkeypatch):
    with_builder_allowed(monkeypatch)
    with pytest.raises(CodeError, match=re.escape(f'"callbacks_of_a_test:{name}" {told}')) as failure:
        run_fit(watched_by(name), tmp_path / "run")
    number = next(number for number, text in enumerate(CALLBACKS.splitlines(), 1) if line in text)
    assert f"{module}, line {number}" in str(failure.value)
    assert failure.value.where == "fit.callbacks.0"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("Failing", {"epok": 1}, 'takes no option "epok". Did you mean "epoch"?'),
        ("Dividing", {}, "needs the option by"),
        ("Dividing", {"by": 0}, "cannot be made: ZeroDivisionError: division by zero"),
        ("Leaving", {"epoch": 1}, "cannot be made: TypeError"),
        ("no_callback", {}, "is no callback. Expected: a keras.callbacks.Callback. Received: int."),
        ("Faling", {}, 'does not exist in callbacks_of_a_test. Did you mean "Failing"?'),
    ],
)
def test_a_callback_that_cannot_be_made_is_told_before_the_fit(name, options, told, module, monkeypatch):
    with_builder_allowed(monkeypatch)
    job = watched_by(name, **options)
    with pytest.raises(CodeError) as failure:
        describe_model(job, plan_of(job, table(0)))
    assert told in str(failure.value)


def test_an_error_of_nobodys_callback_stays_what_it_is():
    with pytest.raises(KeyError, match="elsewhere"), guests.telling_guests({}):
        raise KeyError("elsewhere")


# ---- initial weights


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.keras", None, "there is no such file"),
        ("a.weights.h5", None, "there is no such file"),
        ("a.keras", b"hello", "this is no file of Keras's, or not a whole one; 5 bytes"),
        ("a.weights.h5", b"hello", "this is no file of Keras's, or not a whole one; 5 bytes"),
        ("a.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(9), "Unable to synchronously open file"),
    ],
)
def test_initial_weights_that_cannot_be_read_are_told_before_the_fit(name, content, told, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    job = small_job(initial_weights=str(tmp_path / name))
    with pytest.raises(FitError, match=re.escape(told)) as failure:
        describe_model(job, plan_of(job, table(0)))
    assert failure.value.where == f"fit.initial_weights: {tmp_path / name}"


def net(units, layers=1):
    keras.backend.clear_session()
    x = inputs = keras.Input((3,))
    for number in range(layers):
        x = keras.layers.Dense(units, name=f"dense_{number}")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("name", ["other.keras", "other.weights.h5"])
@pytest.mark.parametrize(("units", "layers"), [(4, 1), (2, 2)])
def test_weights_of_another_model_are_told_in_one_line(name, units, layers, tmp_path):
    other = net(units, layers)
    other.save(tmp_path / name) if name.endswith(".keras") else other.save_weights(tmp_path / name)
    with pytest.raises(FitError) as failure:
        load_initial_weights(net(2, 3), tmp_path / name)
    assert len(str(failure.value).splitlines()) == 1


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path):
    net(4).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(FitError, match=re.escape("dense_0/kernel is (3, 2) in the model and (3, 4) in the file")):
        load_initial_weights(net(2), tmp_path / "other.weights.h5")


# ---- a full device and a full disk


def exhaust_memory():
    with tf.device("CPU:0"):
        tf.zeros([1 << 40, 1 << 10])


def test_a_device_whose_memory_is_full_says_which_batch_to_try():
    with pytest.raises(FitError, match="the device's memory is full: OOM when allocating tensor") as failure, telling_memory(64):
        exhaust_memory()
    assert "Try fit.batch_size: 32" in failure.value.remedy
    assert "{{" not in str(failure.value)


@pytest.mark.slow
def test_a_model_that_is_too_large_for_the_device_is_told_as_such():
    job = job_of("y", model__options={"hidden_units": [1 << 40]})
    with pytest.raises(FitError, match="no memory for the weights of the model") as failure:
        describe_model(job, plan_of(job, table(0)))
    assert failure.value.where == "model.options"


@pytest.mark.parametrize("name", ["checkpoints_dir", "tensorboard_dir", "model_dir"])
def test_a_file_in_place_of_a_folder_of_the_run_is_told(name, tmp_path):
    run = RunLayout(tmp_path)
    getattr(run, name).touch()
    with pytest.raises(StorageError, match="cannot be written: File exists") as failure:
        run_fit(small_job(), tmp_path)
    assert failure.value.where == str(getattr(run, name))


def test_tensorflow_saying_that_the_disk_is_full_is_no_lack_of_memory():
    text = "/runs/a/part-00000.data; No space left on device"
    with pytest.raises(StorageError, match="the disk is full"), telling_memory(64):
        raise tf.errors.ResourceExhaustedError(None, None, text)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("Unable to write: errno = 28, error message = 'No space left on device'"), True),
        (ValueError("a bad batch"), False),
    ],
)
def test_a_full_disk_is_known_however_it_is_told(error, is_full):
    assert is_disk_full(error) is is_full
    outer = RuntimeError("could not save")
    outer.__cause__ = error
    assert is_disk_full(outer) is is_full
    assert full_disk("home").remedy
