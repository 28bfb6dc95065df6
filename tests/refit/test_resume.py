"""A fit that is interrupted anywhere goes on in a new process as if nothing had happened."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from refit.checkpoints import remove_checkpoints
from refit.errors import CodeError
from refit.fitting import fit_model
from refit.layout import RunLayout
from refit.progress import FitProgress, ignore_progress
from refit.records import FitRecord
from tests.refit.small import job_of, keep, stored
from tests.refit.test_datasets_trained import train

REPOSITORY = Path(__file__).parents[2]
SECONDS = 120
STEPS = 7
FASHION = "fashion"
FIT = """
import sys
from pathlib import Path
from tests.refit.test_resume import fit_slowly

fit_slowly(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
"""

# What differs from the fit below, by name. Dropout, batch norm, Adam, plateau and early stopping with restored weights are in all of
# them where nothing else is said.
CASES = {
    "plain": {},
    "much at once": {
        "fit.callbacks": [{"use": "tests.refit.test_resume:Counter"}],
        "fit.steps_per_execution": 3,
        "fit.validation_freq": 2,
        "fit.optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "fit.decay": {"kind": "cosine", "warmup_steps": 10},
        "batches.engine": "streaming",
        "batches.window_rows": 1024,
    },
    "groups of steps": {"fit.steps_per_execution": 3},
    "every second epoch validated": {"fit.validation_freq": 2},
    "momentum and cosine": {
        "fit.optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
        "fit.decay": {"kind": "cosine", "warmup_steps": 10},
    },
    "drawn anew": {"split.resplit_each_epoch": True},
    "streaming": {"batches.engine": "streaming", "batches.window_rows": 1024},
    "moving average of weights": {
        "fit.optimizer": {"name": "adam", "learning_rate": 0.005, "use_ema": True, "ema_overwrite_frequency": 10},
    },
    "accumulated gradients": {"fit.optimizer": {"name": "adam", "learning_rate": 0.005, "gradient_accumulation_steps": 3}},
    "bfloat16": {"fit.precision": "mixed_bfloat16"},
    "no early stopping": {"fit.early_stopping": None, "fit.epochs": 6},
}


class Stopper(keras.callbacks.Callback):
    """Stops in the middle of the third epoch; keeps nothing, and is told of an epoch's beginning again."""

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002 -- Keras's signature
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002 -- Keras's signature
        if (self.epoch, batch) == (2, 3):
            self.model.stop_training = True


class Slow(keras.callbacks.Callback):
    """Ends the fit in the validation of an epoch, where it is asked to."""

    epoch = None

    def on_test_batch_end(self, batch, logs=None):  # noqa: ARG002 -- Keras's signature
        if self.model.stop_training and Slow.epoch:
            raise InterruptedFitError


class Counter(keras.callbacks.Callback):
    """A user's callback with a state: it stops the fit after so many epochs that it has seen, and draws a number in each."""

    def __init__(self):
        super().__init__()
        self.drawn = np.zeros(0)

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002 -- Keras's signature
        self.drawn = np.append(self.drawn, np.random.random())  # noqa: NPY002 -- threads of other libraries draw from Python's generator
        logs["drawn"] = float(self.drawn.sum())
        if len(self.drawn) == 9:
            self.model.stop_training = True

    def get_state(self):
        return {"drawn": self.drawn, "name": "counter"}

    def set_state(self, state):
        assert state["name"] == "counter"
        self.drawn = state["drawn"]


@pytest.fixture(autouse=True)
def _tests_may_be_named(monkeypatch):
    monkeypatch.setenv("REFIT_CODE", "models,refit,tests")


@functools.cache
def digits():
    bunch = load_digits()
    label = np.where(np.random.default_rng(0).random(300) < 0.3, (bunch.target[:300] + 1) % 10, bunch.target[:300])
    return bunch.images[:300, ..., np.newaxis].astype(np.uint8), label


def fit_digits(folder: Path, on_progress=ignore_progress, *, case: str = "plain", **more) -> FitRecord:
    """Dropout, batch norm, plateau and early stopping: everything whose state a resumed fit could lose."""
    images, label = digits()
    options = {
        "features": {"image": {"kind": "image", "scale": 0.0625}},
        "model.options": {"filters": [8], "hidden_units": 64, "dropout": 0.2},
        "fit": {
            "epochs": 30,
            "batch_size": 32,
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "decay": {"kind": "plateau", "patience": 1},
            "early_stopping": {"monitor": "val_loss", "patience": 3},
            "checkpoint": {"every_steps": 1, "keep": 2},
        },
        **CASES[case],
        **{f"fit.{name}": value for name, value in more.items()},
    }
    job = job_of("y", **{name.replace(".", "__"): value for name, value in options.items()})
    known = keep(folder / "data", job, stored(image=images, y=label), sides=np.repeat([0, 1], [220, 80]))
    is_pool = job.split.resplit_each_epoch
    train, validation = (known.open("pool"), None) if is_pool else (known.open("train"), known.open("validation"))
    return fit_model(job, known.plan, train, validation, RunLayout(folder), on_progress=on_progress)


def fit_slowly(folder: Path, case: str, pause: float) -> None:
    """In a process of its own: tells when training begins, and prints the record."""
    told = []

    def tell(_: FitProgress) -> None:
        if not told:
            told.append(sys.stdout.write("training\n"))
            sys.stdout.flush()
        time.sleep(pause)

    record = fit_fashion(folder, tell) if case == FASHION else fit_digits(folder, tell, case=case)
    sys.stdout.write(record.model_dump_json())


def fit_fashion(folder: Path, on_progress=ignore_progress) -> FitRecord:
    """A tenth of Fashion-MNIST with augmentation."""
    options = {"filters": [8, 16], "hidden_units": 32, "flip": True, "shift": 0.1}
    fit = {"epochs": 5, "batch_size": 64, "checkpoint": {"every_steps": 3}, "early_stopping": None}
    changes = {"batches__sample": 0.1, "model__options": options, "fit": fit}
    return train("fashion_mnist", folder, on_progress, **changes)[1]


def start(folder: Path, case: str = "plain", pause: float = 0.0) -> "subprocess.Popen[str]":
    environment = {**os.environ, "REFIT_HOME": str(folder), "PREFECT_HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", FIT, str(folder), case, str(pause)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkpoints(folder: Path) -> list[str]:
    found = RunLayout(folder).checkpoints_dir
    return sorted(path.name for path in found.glob("[0-9]*")) if found.is_dir() else []


def interrupt(folder: Path, seconds: float, *, case: str = "plain", number: int = signal.SIGKILL) -> tuple[int, str]:
    """Send a signal so long after training began; returns the exit status and what was said."""
    process = start(folder, case, 0.05)
    guard = threading.Timer(SECONDS, process.kill)
    guard.start()
    try:
        if process.stdout.readline() == "training\n":  # else nothing was left to train
            time.sleep(seconds)
            process.send_signal(number)
        _, told = process.communicate()
    finally:
        guard.cancel()
    return process.returncode, told


def finish(folder: Path, case: str = "plain") -> FitRecord:
    output, errors = start(folder, case).communicate(timeout=SECONDS)
    assert output, errors
    return FitRecord.model_validate_json(output.splitlines()[-1])


def check_same(record: FitRecord, expected: FitRecord) -> None:
    for name in ("weights_sha256", "history", "best_epoch", "num_epochs", "validation_epochs", "best_checkpoint"):
        assert getattr(record, name) == getattr(expected, name)


def read_board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of every event file: (step, value) in the order in which they were written."""
    found = {}
    for place in sorted(path for path in RunLayout(folder).tensorboard_dir.iterdir()):
        board = EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
        for tag in board.Tags()["tensors"]:
            found[f"{place.name}/{tag}"] = [(event.step, make_ndarray(event.tensor_proto).tolist()) for event in board.Tensors(tag)]
    rates = found["train/batch_learning_rate"]
    assert [step for step, _ in rates] == list(range(len(rates)))
    return {tag: points for tag, points in found.items() if tag not in ("train/job", "train/keras")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return fit_digits(folder), folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a fit that was killed in mid-epoch, after a plateau; to be copied."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(InterruptedFitError):
        fit_digits(folder, interrupt_at(11, 3))
    return folder


class InterruptedFitError(Exception):
    """What stops a fit here, in its own process."""


def interrupt_at(epoch, step=1):
    def tell(progress: FitProgress) -> None:
        if (progress.epoch, progress.step) >= (epoch, step):
            raise InterruptedFitError

    return tell


def test_the_fit_that_is_killed_here_has_something_to_lose(undisturbed):
    record, _ = undisturbed
    rates = record.history["learning_rate"]
    assert len(set(rates)) > 2  # plateaus
    assert 5 < record.num_epochs < 30  # stopped early
    assert record.best_epoch == record.num_epochs - 4
    assert record.resumed_at == ()


def test_killed_twice_at_any_moment_it_goes_on_as_if_nothing_had_happened(undisturbed, tmp_path):
    record, folder = undisturbed
    for seconds in (0.6, 0.9):
        assert interrupt(tmp_path, seconds)[0] == -signal.SIGKILL
    found = finish(tmp_path)
    check_same(found, record)
    steps = [resumed.step for resumed in found.resumed_at]
    assert 1 <= len(steps) <= 2  # one where the second was killed before it had saved anything
    assert steps == sorted(steps)
    for run in (tmp_path, folder):
        remove_checkpoints(RunLayout(run).checkpoints_dir, but=record.best_checkpoint)
        assert checkpoints(run) == [record.best_checkpoint]
    assert read_board(tmp_path) == read_board(folder)


def test_asked_to_end_it_saves_its_state_and_leaves_at_once(undisturbed, tmp_path):
    started = time.monotonic()
    status, told = interrupt(tmp_path, 0.5, number=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert time.monotonic() - started < SECONDS / 2
    assert "the next start goes on from there" in told
    newest = json.loads((RunLayout(tmp_path).checkpoints_dir / checkpoints(tmp_path)[-1] / "state.json").read_text())
    found = fit_digits(tmp_path)
    check_same(found, undisturbed[0])
    assert [r.step for r in found.resumed_at] == [newest["epoch"] * STEPS + newest["step"]]


def test_a_damaged_newest_checkpoint_costs_a_step_and_nothing_else(killed, undisturbed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    before, newest = checkpoints(folder)[-2:]  # others may wait to be removed
    arrays = RunLayout(folder).checkpoints_dir / newest / "arrays.bin"
    arrays.write_bytes(arrays.read_bytes()[:1000])
    record = fit_digits(folder)
    check_same(record, undisturbed[0])
    epoch, step = map(int, before.split("-"))
    assert [r.step for r in record.resumed_at] == [epoch * STEPS + step]


@pytest.mark.slow
def test_a_fit_that_is_interrupted_twice_records_both(undisturbed, tmp_path):
    for epoch in (2, 11):
        with pytest.raises(InterruptedFitError):
            fit_digits(tmp_path, interrupt_at(epoch))
    record = fit_digits(tmp_path)
    check_same(record, undisturbed[0])
    assert [r.epoch for r in record.resumed_at] == [2, 11]


def stop(*_):
    raise InterruptedFitError


@pytest.mark.slow
def test_a_fit_that_was_stopped_within_an_epoch_still_ends_that_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("refit.checkpoints.CheckpointWriter.is_writing", False)  # each checkpoint is waited for
    callbacks = [{"use": f"tests.refit.test_resume:{name}"} for name in ("Stopper", "Slow")]
    expected = fit_digits(tmp_path / "undisturbed", callbacks=callbacks)
    monkeypatch.setattr("tests.refit.test_resume.Slow.epoch", 2)
    with pytest.raises(CodeError, match=r'Slow" failed in on_test_batch_end: InterruptedFitError'):
        fit_digits(tmp_path / "run", callbacks=callbacks)
    monkeypatch.setattr("tests.refit.test_resume.Slow.epoch", None)
    found = fit_digits(tmp_path / "run", callbacks=callbacks)
    check_same(found, expected)
    assert found.num_epochs == 3
    assert 14 < found.resumed_at[0].step <= 18


def test_a_fit_interrupted_after_it_stopped_early_only_finishes(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("refit.fitting._save", stop)
        with pytest.raises(InterruptedFitError):
            fit_digits(tmp_path)
    told = []
    record = fit_digits(tmp_path, told.append)
    check_same(record, undisturbed[0])
    assert told == []


def test_a_checkpoint_of_another_job_is_not_taken_up(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    record = fit_digits(folder, epochs=2)
    assert (record.resumed_at, record.num_epochs) == ((), 2)


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric", "ignore:Learning rate reduction is conditioned")
@pytest.mark.slow
def test_a_fit_interrupted_before_its_first_validation_goes_on(tmp_path):
    with pytest.raises(InterruptedFitError):
        fit_digits(tmp_path, interrupt_at(1), epochs=4, validation_freq=2)
    assert fit_digits(tmp_path, epochs=4, validation_freq=2).num_epochs == 4


def test_a_users_callback_is_heard_and_goes_on_with_what_it_knew(tmp_path):
    case, folder = "much at once", tmp_path / "run"
    with pytest.raises(InterruptedFitError):
        fit_digits(folder, interrupt_at(5), case=case)
    assert fit_digits(folder, case=case).num_epochs == 9


@pytest.mark.parametrize("case", ["much at once", pytest.param("drawn anew", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric", "ignore:Learning rate reduction is conditioned")
def test_whatever_is_fitted_it_goes_on_from_the_step_where_it_was(case, tmp_path):
    expected = fit_digits(tmp_path / "undisturbed", case=case)
    for epoch, step in ((1, 3), (3, STEPS)):
        with pytest.raises(InterruptedFitError):
            fit_digits(tmp_path / "run", interrupt_at(epoch, step), case=case)
    found = fit_digits(tmp_path / "run", case=case)
    check_same(found, expected)
    assert len(found.resumed_at) == 2
    assert read_board(tmp_path / "run") == read_board(tmp_path / "undisturbed")


@pytest.mark.slow
def test_killed_ten_times_on_fashion_mnist_with_augmentation(tmp_path):
    check_killed(FASHION, tmp_path, fit_fashion(tmp_path / "undisturbed"), kills=10, seconds=2.5, run="runs/fashion_mnist/run")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again_at_random_it_ends_with_the_same_digest(case, tmp_path):
    check_killed(case, tmp_path, fit_digits(tmp_path / "undisturbed", case=case), kills=7, seconds=1.5)


def check_killed(case, tmp_path, expected, *, kills, seconds, run="."):
    generator, statuses = random.Random(case), []
    while len(statuses) < kills and -signal.SIGKILL in (statuses or [-signal.SIGKILL])[-1:]:
        statuses.append(interrupt(tmp_path / "run", generator.uniform(0, seconds), case=case)[0])
    found = finish(tmp_path / "run", case)
    steps = [r.step for r in found.resumed_at]
    sys.stdout.write(f"{case}: {statuses.count(-signal.SIGKILL)} kills, resumed after steps {steps}, {found.weights_sha256}\n")
    check_same(found, expected)
    assert read_board(tmp_path / "run" / run) == read_board(tmp_path / "undisturbed" / run)
