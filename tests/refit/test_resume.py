"""A fit killed by SIGKILL goes on in a new process as if nothing had happened."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from refit.fitting import fit_model
from refit.layout import RunLayout
from refit.progress import FitProgress, ignore_progress
from refit.records import FitRecord
from tests.refit.small import job_of, packed, stored

REPOSITORY = Path(__file__).parents[2]
SECONDS = 120
FIT = """
import sys, time
from pathlib import Path
from tests.refit.test_resume import fit_digits

pause = float(sys.argv[2])
print(fit_digits(Path(sys.argv[1]), lambda progress: time.sleep(pause * progress.is_epoch_end)).model_dump_json())
"""


def fit_digits(folder: Path, on_progress=ignore_progress, **more) -> FitRecord:
    """Dropout, batch norm, plateau and early stopping: everything whose state a resumed fit could lose."""
    bunch = load_digits()
    images = bunch.images[:300, ..., np.newaxis].astype(np.uint8)
    label = np.where(np.random.default_rng(0).random(300) < 0.3, (bunch.target[:300] + 1) % 10, bunch.target[:300])
    train, validation = (stored(image=images[part], y=label[part]) for part in (slice(0, 220), slice(220, 300)))
    fit = {
        "epochs": 30,
        "batch_size": 32,
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "decay": {"kind": "plateau", "patience": 1},
        "early_stopping": {"monitor": "val_loss", "patience": 3},
        **more,
    }
    job = job_of(
        "y",
        features={"image": {"kind": "image", "scale": 0.0625}},
        model__options={"filters": [8], "hidden_units": 64, "dropout": 0.2},
        fit=fit,
    )
    return fit_model(job, *packed(job, train, validation), RunLayout(folder), on_progress=on_progress)


def start(folder: Path, pause: float) -> "subprocess.Popen[str]":
    environment = {**os.environ, "REFIT_HOME": str(folder), "PREFECT_HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", FIT, str(folder), str(pause)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def checkpoints(folder: Path) -> list[str]:
    found = RunLayout(folder).checkpoints_dir
    return sorted(path.name for path in found.glob("[0-9]*")) if found.is_dir() else []


def kill_after(folder: Path, step: int) -> None:
    """SIGKILL as soon as the checkpoint of that step is there."""
    process = start(folder, 0.05)
    try:
        deadline = time.monotonic() + SECONDS
        while not any(int(name) >= step for name in checkpoints(folder)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit_digits(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a fit that was killed in its twelfth epoch, after a plateau; to be copied."""
    folder = tmp_path_factory.mktemp("killed")
    kill_after(folder, 11 * 7)
    return folder


def check_same(record: FitRecord, expected: FitRecord) -> None:
    for name in ("weights_sha256", "history", "best_epoch", "num_epochs", "validation_epochs"):
        assert getattr(record, name) == getattr(expected, name)


def test_the_fit_that_is_killed_here_has_something_to_lose(undisturbed):
    rates = undisturbed.history["learning_rate"]
    assert len(set(rates)) > 2  # plateaus
    assert 5 < undisturbed.num_epochs < 30  # stopped early
    assert undisturbed.best_epoch == undisturbed.num_epochs - 4
    assert undisturbed.resumed_at == ()


def test_a_killed_fit_goes_on_in_a_new_process_as_if_nothing_had_happened(killed, undisturbed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    newest = int(checkpoints(folder)[-1])
    with start(folder, 0) as process:
        output, _ = process.communicate(timeout=SECONDS)
    record = FitRecord.model_validate_json(output.splitlines()[-1])
    check_same(record, undisturbed)
    assert [(r.epoch, r.step) for r in record.resumed_at] == [(newest // 7, newest)]
    assert not RunLayout(folder).checkpoints_dir.exists()


def test_a_damaged_newest_checkpoint_costs_an_epoch_and_nothing_else(killed, undisturbed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    before, newest = checkpoints(folder)[-2:]  # a third may wait to be removed
    arrays = RunLayout(folder).checkpoints_dir / newest / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:1000])
    record = fit_digits(folder)
    check_same(record, undisturbed)
    assert [r.step for r in record.resumed_at] == [int(before)]


class InterruptedFitError(Exception):
    """What stops a fit here, in its own process."""


def stop(*_):
    raise InterruptedFitError


def interrupt_in(epoch):
    def tell(progress: FitProgress) -> None:
        if progress.epoch == epoch:
            raise InterruptedFitError

    return tell


def test_a_fit_that_is_interrupted_twice_records_both(undisturbed, tmp_path):
    for epoch in (2, 11):
        with pytest.raises(InterruptedFitError):
            fit_digits(tmp_path, interrupt_in(epoch))
    record = fit_digits(tmp_path)
    check_same(record, undisturbed)
    assert [r.epoch for r in record.resumed_at] == [2, 11]


def test_a_fit_interrupted_after_it_stopped_early_only_finishes(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("refit.fitting._save", stop)
        with pytest.raises(InterruptedFitError):
            fit_digits(tmp_path)
    told = []
    record = fit_digits(tmp_path, told.append)
    check_same(record, undisturbed)
    assert told == []


def test_a_checkpoint_of_another_job_is_not_taken_up(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    record = fit_digits(folder, epochs=2)
    assert (record.resumed_at, record.num_epochs) == ((), 2)


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric", "ignore:Learning rate reduction is conditioned")
def test_a_fit_interrupted_before_its_first_validation_goes_on(tmp_path):
    with pytest.raises(InterruptedFitError):
        fit_digits(tmp_path, interrupt_in(1), epochs=4, validation_freq=2)
    assert fit_digits(tmp_path, epochs=4, validation_freq=2).num_epochs == 4
