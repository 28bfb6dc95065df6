"""Several devices share each batch and come to what one comes to; here they are two logical CPUs, in a process of their own."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from refit.batches import Position, read_batches
from refit.devices import choose_devices
from refit.errors import CodeError, JobError
from refit.export import export_model
from refit.fitting import fit_model, load_fitted
from refit.layout import Layout, RunLayout
from refit.records import FitRecord
from refit.splits import Rows
from tests.refit.small import job_of, keep, stored
from tests.refit.test_resume import InterruptedFitError, check_same

REPOSITORY = Path(__file__).parents[2]
SECONDS, PAUSE = 300, 0.3
NUM_TRAIN, NUM_VALIDATION, BATCH_SIZE, EPOCHS = 135, 257, 32, 3  # the last batches have 7 rows and one
STEPS = 5
TWO = """
import sys
from pathlib import Path
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.refit.test_devices import prove_on_two

prove_on_two(Path(sys.argv[1]))
"""
PLAIN = {  # one that takes a step of the wrong size ends elsewhere, which Adam would not
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "clipnorm": 0.05},
    "class_weight": "balanced",
    "early_stopping": None,
}
STATEFUL = {
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "decay": {"kind": "plateau", "patience": 1},
    "checkpoint": {"every_steps": 1},
    "callbacks": [{"use": "tests.refit.test_devices:Interrupter"}],
}
NOISY = {"batch_norm": True, "dropout": 0.3}


class Interrupter(keras.callbacks.Callback):
    """Interrupts the fit where it is told to; the steps before are slow, so that each is saved."""

    at = None

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002 -- Keras's signature
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002 -- Keras's signature
        if Interrupter.at and self.epoch == Interrupter.at[0]:
            time.sleep(PAUSE)
        if (self.epoch, batch) == Interrupter.at:
            raise InterruptedFitError


def rows():
    generator = np.random.default_rng(3)
    number, word = generator.normal(size=NUM_TRAIN + NUM_VALIDATION), generator.integers(0, 4, NUM_TRAIN + NUM_VALIDATION)
    return stored(number=number, word=[f"w{value}" for value in word], y=(number + word > 2).astype(np.int64))


def job_for(devices, fit=PLAIN, options=None, **more):
    options = {"hidden_units": [16], "l2": 0.01, "dropout": 0.0, **(options or {})}
    return job_of("y", fit={"epochs": EPOCHS, "batch_size": BATCH_SIZE, "devices": devices, **fit}, model__options=options, **more)


def kept(folder, job):
    return keep(folder / "data", job, rows(), sides=np.repeat([0, 1], [NUM_TRAIN, NUM_VALIDATION]))


def fit(folder, job) -> FitRecord:
    known = kept(folder, job)
    return fit_model(job, known.plan, known.open("train"), known.open("validation"), RunLayout(folder))


def weights(folder):
    return keras.saving.load_model(RunLayout(folder).keras_model).get_weights()


def unshared_error():
    job = job_for("all", {**PLAIN, "batch_size": 67})  # and one row
    try:
        choose_devices(job, NUM_TRAIN)
    except JobError as error:
        return str(error)
    return ""


def shared_batches(folder):
    """Rows of each device for each batch of two epochs, and the batches themselves."""
    job = job_for("all")
    known = kept(folder, job)
    batches = read_batches(known.open("train"), batch_size=BATCH_SIZE, seed=job.seed, start=Position(0, 2))
    devices = choose_devices(job, NUM_TRAIN)
    parts = iter(devices.share(batches))
    found = []
    for whole, _ in zip(batches, range(2 * STEPS), strict=False):
        local = [devices.strategy.experimental_local_results(values) for values in tf.nest.flatten(next(parts))]
        joined = [np.concatenate([part.numpy() for part in values]) for values in local]
        is_same = all(np.array_equal(left, right) for left, right in zip(joined, tf.nest.flatten(whole), strict=True))
        found.append(([len(part) for part in local[0]], is_same))
    return found


def prove_on_two(folder: Path) -> None:
    """All that needs two devices; prints what came of it."""
    found = {name: fit(folder / name, job_for(name)) for name in ("all", "auto")}
    noisy = job_for("all", STATEFUL, NOISY)
    found["undisturbed"] = fit(folder / "undisturbed", noisy)
    Interrupter.at = (1, 3)
    with contextlib.suppress(CodeError):
        fit(folder / "resumed", noisy)
    Interrupter.at = None
    found["resumed"] = fit(folder / "resumed", noisy)
    said = {name: json.loads(record.model_dump_json()) for name, record in found.items()}
    more = {"batches": shared_batches(folder / "batches"), "has_strategy": tf.distribute.has_strategy(), "unshared": unshared_error()}
    sys.stdout.write(json.dumps({"records": said, **more}))


@pytest.fixture(autouse=True, scope="module")
def _tests_may_be_named():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFIT_CODE", "models,refit,tests")
        yield


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", TWO, str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return folder, {name: FitRecord.model_validate(record) for name, record in said["records"].items()}, said


def test_two_devices_come_to_what_one_comes_to(proved):
    folder, records, _ = proved
    one, two = records["auto"], records["all"]
    assert one.history.keys() == two.history.keys()
    for name, values in one.history.items():
        np.testing.assert_allclose(two.history[name], values, atol=1e-6, err_msg=name)
    for left, right in zip(weights(folder / "all"), weights(folder / "auto"), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_the_record_says_which_devices_took_part_and_how(proved):
    _, records, _ = proved
    assert (records["auto"].devices, records["auto"].strategy) == (("CPU:0",), None)
    assert (records["all"].devices, records["all"].strategy) == (("CPU:0", "CPU:1"), "mirrored")
    assert records["all"].precision == "float32"
    assert records["all"].steps_per_execution == 1


def test_a_batch_is_shared_out_in_order_as_even_as_can_be(proved):
    sizes, are_same = zip(*proved[2]["batches"], strict=True)
    full, short = [BATCH_SIZE // 2] * 2, [3, 4]
    assert list(sizes) == [full, full, short, *[full] * 4, short, full, full]
    assert all(are_same)


def test_interrupted_within_an_epoch_a_shared_fit_goes_on_as_if_nothing_had_happened(proved):
    _, records, _ = proved
    check_same(records["resumed"], records["undisturbed"])
    [found] = records["resumed"].resumed_at
    assert STEPS < found.step <= STEPS + 3  # within the second epoch


def test_a_last_batch_with_too_few_rows_is_refused(proved):
    assert (
        "the last batch of an epoch is too small to be shared. Expected: a row for each of 2 devices. Received: 1." in proved[2]["unshared"]
    )


def test_what_two_devices_have_fitted_is_exported_and_predicts_on_one(proved, tmp_path):
    home, run, job = proved[0], RunLayout(proved[0] / "all"), job_for("all")
    plan = kept(tmp_path, job).plan
    model = load_fitted(job, plan, run)
    record = export_model(model, plan, Rows("test", rows()), Layout(home), run)
    assert record.max_difference < 1e-5
    inputs = {"number": tf.constant([0.5, -1.0]), "word": tf.constant(["w1", "w3"])}
    np.testing.assert_array_equal(keras.saving.load_model(run.keras_model)(inputs), model(inputs))


def test_one_device_fits_the_same_where_it_is_all_and_after_a_shared_fit(proved, tmp_path):
    _, records, said = proved
    record = fit(tmp_path, job_for("all"))
    assert (record.devices, record.strategy) == (("CPU:0",), None)
    check_same(record, records["auto"])
    assert not said["has_strategy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps_per_execution", 4),
        ("jit_compile", True),
        ("precision", "mixed_float16"),
        ("optimizer", {"name": "sgd", "gradient_accumulation_steps": 2}),
        ("optimizer", {"name": "sgd", "use_ema": True, "ema_overwrite_frequency": 2}),
    ],
)
def test_what_several_devices_cannot_do_is_refused_with_the_job(key, value):
    job_for("auto", {key: value})
    with pytest.raises(JobError, match="devices: all"):
        job_for("all", {key: value})
