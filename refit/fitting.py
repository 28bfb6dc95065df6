"""The fit: model and optimizer from the job, Keras's own ``model.fit``, and everything that it leaves behind."""

import contextlib
import hashlib
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
import yaml

from refit import references
from refit.batches import Position, RowsSource, read_batches, read_in_order, read_validation
from refit.callbacks import EpochStart, Recorder, Reporter, StopOnNaN, TimeBudget
from refit.checkpoints import Checkpoint, CheckpointWriter, read_newest, telling_disk
from refit.config import FitConfig, Job, PlateauDecay, digest, nearest
from refit.devices import ONE_DEVICE, Devices, build_metric_variables, choose_devices, releasing, shared_loss, summing_optimizer
from refit.divergence import Restarts, lower_rate, turn_back
from refit.errors import CodeError, DivergedError, FitError, JobError
from refit.event_files import Board
from refit.features import Target, build_inputs, build_target
from refit.fit_state import Checkpointer, FitState
from refit.full_disk import full_disk, is_disk_full
from refit.guests import build_callbacks, name_callbacks, telling_guests
from refit.initial_weights import assign_start, load_initial_weights
from refit.layout import RunLayout
from refit.objectives import build_loss, build_metrics
from refit.optimizers import build_optimizer, build_schedule
from refit.pace import Pace
from refit.progress import OnProgress, ignore_progress
from refit.records import BatchesRecord, BuildRecord, FitRecord, WarmStart, sync_path
from refit.resuming import Executions, ResumingCallbacks
from refit.signals import noting_stop
from refit.slicing import count_steps

_BUILDER_POSITIONAL = 2
_SAVING = ".saving."


# ---- the model


def choose_builder(job: Job, *, has_images: bool) -> str:
    """The builder that the job names, or the one that suits its features."""
    return job.model.build or ("models.convnet:build_model" if has_images else "models.dense:build_model")


def assemble_model(job: Job, plan: BatchesRecord, devices: Devices = ONE_DEVICE) -> keras.Model:
    """Build and compile the model, the same to the bit each time: names cleared, seeds set.

    Raises:
        CodeError: the builder cannot be had, fails, or returns something that does not fit the target.
        FitError: the device has no memory for the model.
    """
    reference = choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    references.check_options(reference, job.model.options, positional=_BUILDER_POSITIONAL)
    builder = references.load(reference)
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    target = build_target(plan.target)
    with devices.scope(), computing_in(choose_precision(job.fit)):
        try:
            model = builder(build_inputs(plan.features, plan.crosses), target, **job.model.options)
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise FitError(
                f"the device has no memory for the weights of the model: {_first_line(error)}.",
                where="model.options",
                received=str(job.model.options),
                remedy="Make the model smaller.",
            ) from error
        except Exception as error:
            raise CodeError(
                f'"{reference}" failed: {type(error).__name__}: {error}.', where="model", remedy="Mend the builder or its options."
            ) from error
    _check_output(model, target, reference)
    with devices.scope():
        _compile(model, job, target, plan)
    return model


def choose_precision(fit: FitConfig) -> str:
    """The name of Keras's policy: what the job says, or mixed_bfloat16 where every GPU is made for it.

    Source: https://www.tensorflow.org/guide/mixed_precision#supported_hardware; compute capability 8.0 brought bfloat16.
    """
    if fit.precision != "auto":
        return fit.precision
    gpus = tf.config.list_physical_devices("GPU")
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    return "mixed_bfloat16" if gpus and min(capabilities) >= (8, 0) else "float32"


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Within the block layers are made that compute so."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _check_output(model: object, target: Target, reference: str) -> None:
    expected = f"a keras.Model with one output [batch, {target.units}]"
    if not isinstance(model, keras.Model):
        raise CodeError(f'"{reference}" returned no model.', where="model", expected=expected, received=type(model).__name__)
    shape = getattr(model, "output_shape", None)
    if shape != (None, target.units):
        raise CodeError(f'the model of "{reference}" does not fit the target.', where="model", expected=expected, received=str(shape))


def _compile(model: keras.Model, job: Job, target: Target, plan: BatchesRecord) -> None:
    """Compile; where rows or classes have weights, metrics count them as the loss does."""
    metrics = build_metrics(job.fit, target)
    _check_monitors(job.fit, [metric.name for metric in metrics])
    is_weighted = plan.sample_weight is not None or plan.class_weights is not None
    counted = {"weighted_metrics" if is_weighted else "metrics": metrics}
    jit_compile = job.fit.jit_compile
    if jit_compile == "auto" and not tf.config.list_physical_devices("GPU"):
        jit_compile = False  # slower there
    optimizer = build_optimizer(job.fit, plan.steps_per_epoch)
    loss: keras.losses.Loss | Callable[..., object] = build_loss(job.fit, target)
    if tf.distribute.has_strategy():
        optimizer, loss = summing_optimizer(optimizer), shared_loss(loss)
    with computing_in(choose_precision(job.fit)):  # Keras scales the loss where that says float16
        model.compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **counted)


def describe_model(job: Job, plan: BatchesRecord) -> BuildRecord:
    """Build the model and the callbacks once to see that they can be, and describe the model.

    Raises:
        CodeError: they cannot.
        FitError: the initial weights cannot be had, or the model is too large for the device.
    """
    model = assemble_model(job, plan)
    build_callbacks(job.fit)
    if job.fit.initial_weights:
        load_initial_weights(model, Path(job.fit.initial_weights))
    lines: list[str] = []
    model.summary(print_fn=lines.append, line_length=76)
    reference = choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    return BuildRecord(
        build=reference,
        options=job.model.options,
        builder_sha256=references.source_digest(reference),
        num_parameters=int(model.count_params()),
        summary="\n".join(lines),
    )


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all variables of the model in order: path, dtype, shape, bytes.

    The states of dropout's seed generators are among them, which no weights file holds: the digest is that of the fit's end.
    """
    content = hashlib.sha256()
    for variable in model.variables:
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        content.update(f"{variable.path}|{values.dtype.name}|{list(values.shape)}|".encode())
        content.update(values.tobytes())
    return content.hexdigest()


# ---- the fit


@dataclass(frozen=True)
class _Given:
    plan: BatchesRecord
    train: RowsSource
    validation: RowsSource | None
    start: WarmStart | None


def fit_model(
    job: Job,
    plan: BatchesRecord,
    train: RowsSource,
    validation: RowsSource | None,
    run: RunLayout,
    *,
    num_epochs: int | None = None,
    start: WarmStart | None = None,
    on_progress: OnProgress = ignore_progress,
) -> FitRecord:
    """Fit the model, or go on with a fit of this run that was interrupted.

    Leaves ``weights.weights.h5``, ``model.keras``, event files and checkpoints in the run's folder. Asked to end by SIGTERM or Ctrl-C, it
    saves its state after the present step and leaves as the signal demands.

    Args:
        job: the whole job; ``belongs_to`` of the checkpoints covers it and the plan.
        plan: features and target with their statistics.
        train: rows of the train split, or a pool of which validation rows are drawn anew for each epoch.
        validation: rows of the validation split; None: they are drawn from a pool, or there are none and nothing stops early.
        run: the run's paths.
        num_epochs: fit for so many epochs and not for the job's, whose schedule of the learning rate stays as it is.
        start: what the run's folder holds of the champion's weights (``refit.warm_start``).
        on_progress: told while the fit runs; must return at once.

    Raises:
        DivergedError: the loss is not finite, and the job wants no restart, or no more of them.
        FitError: the device's memory is full.
        StorageError: checkpoints or the model cannot be written.
    """
    num_epochs = num_epochs or job.fit.epochs
    devices = choose_devices(job, train.num_rows)
    belongs_to = _identify(job, plan, num_epochs, devices, start)
    found = read_newest(run.checkpoints_dir, belongs_to=belongs_to)
    restarts = found.record.restarts if found else ()
    rows = _Given(plan, train, validation, start)
    while True:
        try:
            return _fit_from(found, restarts, lower_rate(job, restarts), rows, run, num_epochs, belongs_to, devices, on_progress)
        except DivergedError as error:
            found, restarts = turn_back(error, restarts, job.fit.on_divergence, run.checkpoints_dir, belongs_to=belongs_to)


def _fit_from(
    found: Checkpoint | None,
    restarts: Restarts,
    job: Job,
    rows: _Given,
    run: RunLayout,
    num_epochs: int,
    belongs_to: str,
    devices: Devices,
    on_progress: OnProgress,
) -> FitRecord:
    model = assemble_model(job, rows.plan, devices)
    if job.fit.initial_weights and found is None:
        load_initial_weights(model, Path(job.fit.initial_weights))
    if rows.start and rows.start.num_taken and found is None:
        assign_start(model, run.start_weights)
    with devices.scope():
        model.optimizer.build(model.trainable_variables)
    with releasing(model):
        state = FitState(
            model,
            _monitors(job.fit, is_validated=rows.validation is not None or bool(rows.train.num_validation)),
            Recorder(),
            belongs_to=belongs_to,
            steps_per_epoch=count_steps(rows.train.num_rows, job.fit.batch_size, drop_remainder=job.batches.drop_remainder),
            events_dir=run.tensorboard_dir,
            found=found,
            restarts=restarts,
        )
        state.restore_variables()
        started = time.perf_counter()
        best = _call_fit(state, job, rows, run, num_epochs, devices, on_progress)
        seconds = time.perf_counter() - started
        if devices.strategy:
            copy = _copy_to_one(model, job, rows.plan)
            with releasing(copy):
                content = _save(copy, run)
        else:
            content = _save(model, run)
    history = state.recorder.history
    trained = len(history["loss"]) * state.steps_per_epoch - state.first_step
    return FitRecord(
        num_epochs=len(history["loss"]),
        best_epoch=_best_epoch(state.monitors),
        history=history,
        validation_epochs=state.recorder.validation_epochs,
        weights_sha256=content,
        resumed_at=state.resumed_at,
        restarts=state.restarts,
        devices=devices.names,
        strategy=devices.how,
        examples_per_second=round(trained * job.fit.batch_size / seconds, 1),
        best_checkpoint=best,
        precision=model.dtype_policy.name,
        stopped_by=_stopped_by(state.monitors),
        steps_per_execution=state.pace.size,
        warm_start=rows.start,
    )


def _copy_to_one(model: keras.Model, job: Job, plan: BatchesRecord) -> keras.Model:
    """The model and its optimizer as they are on the first device, without a strategy."""
    copy = assemble_model(job, plan)
    copy.optimizer.build(copy.trainable_variables)
    for made, fitted in zip((*copy.variables, *copy.optimizer.variables), (*model.variables, *model.optimizer.variables), strict=True):
        made.assign(fitted.numpy())
    return copy


def _identify(job: Job, plan: BatchesRecord, num_epochs: int, devices: Devices, start: WarmStart | None) -> str:
    """Digest of what a fit is a function of, code included."""
    builder = choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    own = (*(callback.use for callback in job.fit.callbacks), *(said.use for said in job.fit.objectives.values()))
    code = [references.source_digest(reference, also=references.OBJECTIVES) for reference in (builder, *own)]
    said = {"job": job.model_dump(mode="json"), "plan": plan.model_dump(mode="json"), "epochs": num_epochs}
    if devices.strategy:  # what is summed over devices depends on their number
        said["devices"] = len(devices.names)
    if start:
        said["start"] = start.model_dump(mode="json")
    return digest({**said, "code": code, "keras": keras.version()})


def _best_epoch(monitors: Mapping[str, keras.callbacks.Callback]) -> int | None:
    """The epoch (from 0) whose weights were kept, where early stopping kept any."""
    stopping = monitors.get("early_stopping")
    return None if stopping is None or stopping.best_weights is None else int(stopping.best_epoch)


def _stopped_by(monitors: Mapping[str, keras.callbacks.Callback]) -> Literal["early_stopping", "max_minutes"] | None:
    if getattr(monitors.get("max_minutes"), "is_over", False):
        return "max_minutes"
    return "early_stopping" if getattr(monitors.get("early_stopping"), "stopped_epoch", 0) else None


def _monitors(config: FitConfig, *, is_validated: bool) -> dict[str, keras.callbacks.Callback]:
    """Callbacks that know something of earlier epochs; without validation rows nothing stops it early."""
    monitors: dict[str, keras.callbacks.Callback] = {"history": keras.callbacks.History(), **build_callbacks(config)}
    if isinstance(config.decay, PlateauDecay):
        drop = config.decay.model_dump(exclude={"kind", "min_rate"})
        monitors["plateau"] = keras.callbacks.ReduceLROnPlateau(**drop, min_lr=config.decay.min_rate)
    stopping = config.early_stopping
    if stopping is not None and is_validated:
        watched = stopping.model_dump(exclude={"restore_best"})
        monitors["early_stopping"] = keras.callbacks.EarlyStopping(**watched, restore_best_weights=stopping.restore_best)
    elif is_validated:  # never stops: it only knows which epoch was the best
        monitors["best"] = keras.callbacks.EarlyStopping("val_loss", patience=config.epochs)
    if config.max_minutes is not None:
        monitors["max_minutes"] = TimeBudget(60 * config.max_minutes)
    return monitors


def _call_fit(
    state: FitState,
    job: Job,
    rows: _Given,
    run: RunLayout,
    num_epochs: int,
    devices: Devices,
    on_progress: OnProgress,
) -> str | None:
    """Call Keras's fit from where the state is; returns the name of the best epoch's checkpoint."""
    fit, steps, start = job.fit, state.steps_per_epoch, state.start
    batches = read_batches(
        rows.train, batch_size=fit.batch_size, seed=job.seed, start=_next_batch(start, steps), drop_remainder=job.batches.drop_remainder
    )
    epoch = tf.Variable(start.epoch, dtype=tf.int64, trainable=False)
    schedule = build_schedule(fit, steps)
    rate = keras.optimizers.schedules.deserialize(schedule) if isinstance(schedule, dict) else None
    board = Board(run.tensorboard_dir, rate=rate, steps_per_epoch=steps, first_step=state.first_step, is_at_once=bool(fit.callbacks))
    if not state.first_step:
        with telling_disk(run.tensorboard_dir, "a curve"):
            run.tensorboard_dir.mkdir(parents=True, exist_ok=True)
        _write_text(run.tensorboard_dir / "train", job)
    if fit.validation_freq > 1:  # Keras warns at every epoch without validation that the monitored value is not there
        warnings.filterwarnings("ignore", message=".*conditioned on metric.*which is not available")
    is_single = fit.callbacks or devices.strategy  # callbacks may count steps; Keras runs no groups of them under a strategy
    asked = 1 if fit.steps_per_execution == "auto" and is_single else fit.steps_per_execution
    state.pace = Pace(asked, steps_per_epoch=steps, num_steps=num_epochs * steps - state.first_step, chosen=state.chosen_steps)
    executions = Executions(state.model, steps_per_epoch=steps, pace=state.pace)
    validation = _validation_batches(job, rows, epoch)
    validation_steps = None if validation is None else int(validation.cardinality())
    if devices.strategy:
        build_metric_variables(state.model, batches.element_spec)
    writer = CheckpointWriter(run.checkpoints_dir, keep=fit.checkpoint.keep, found=state.found)
    with noting_stop() as stop, contextlib.closing(writer):
        callbacks = [
            EpochStart(epoch.assign),
            StopOnNaN(start.epoch, state.logs),
            *state.monitors.values(),
            state.recorder,
            board,
            Reporter(on_progress, num_epochs=num_epochs, steps_per_epoch=steps, batch_size=fit.batch_size, start=start),
            Checkpointer(state, writer, fit.checkpoint, board, stop, num_epochs=num_epochs, has_guests=bool(fit.callbacks)),
        ]
        guests = {name: state.monitors[name] for name in name_callbacks(fit)}
        with telling_guests(guests), telling_memory(fit.batch_size):
            state.model.fit(
                devices.share(batches),
                validation_data=devices.share(validation, validation_steps),
                validation_steps=validation_steps,
                validation_freq=fit.validation_freq,
                steps_per_epoch=steps,
                initial_epoch=num_epochs if state.is_stopped else start.epoch,
                epochs=num_epochs,
                shuffle=False,
                verbose=0,
                callbacks=ResumingCallbacks(
                    callbacks,
                    state.model,
                    executions,
                    start=start,
                    logs=state.logs,
                    num_epochs=num_epochs,
                    is_stopping=state.is_stopping,
                    restore_callbacks=state.restore_callbacks,
                    restore_metrics=partial(state.restore_metrics, batches.element_spec),
                ),
            )
        writer.wait()
        if stop.is_asked:  # after the last step
            stop.leave()
    state.model.train_function = None  # the one that is there belongs to this fit
    return writer.best


@contextlib.contextmanager
def telling_memory(batch_size: int) -> Iterator[None]:
    """Turn a device's lack of memory into an error that says what to try.

    Raises:
        FitError: the device's memory is full.
        StorageError: the disk is, which TensorFlow tells by the same class.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        if is_disk_full(error):
            raise full_disk("TensorBoard's files") from error
        raise FitError(
            f"the device's memory is full: {_first_line(error)}.",
            where="fit.batch_size",
            received=str(batch_size),
            remedy=f"Try fit.batch_size: {max(1, batch_size // 2)}, a smaller model, or fit.precision: mixed_bfloat16.",
        ) from error


def _first_line(error: BaseException) -> str:
    """What TensorFlow says, without the names of its functions, and the lines about where."""
    lines = re.sub(r"\{\{.*?\}\}| \[Op:.*", "", str(error)).strip().splitlines()
    return next((line.strip().rstrip(".") for line in lines if "OOM" in line), lines[0] if lines else type(error).__name__)


def _next_batch(start: Position, steps: int) -> Position:
    """The position of the next batch; after an epoch's last step that is the next epoch's first."""
    return start if start.step < steps else Position(start.epoch + 1, 0)


def _validation_batches(job: Job, rows: _Given, epoch: tf.Variable) -> tf.data.Dataset | None:
    batch_size = max(job.fit.batch_size, 256)
    if rows.validation is not None:
        return read_in_order(rows.validation, batch_size=batch_size)
    return read_validation(rows.train, batch_size=batch_size, seed=job.seed, epoch=epoch) if rows.train.num_validation else None


def _check_monitors(config: FitConfig, metrics: Sequence[str]) -> None:
    """See that what is watched will be logged.

    Raises:
        JobError: it will not.
    """
    own = ["loss", *metrics]
    known = [*own, *(f"val_{name}" for name in own)]
    watched = {"fit.early_stopping.monitor": config.early_stopping.monitor} if config.early_stopping else {}
    if isinstance(config.decay, PlateauDecay):
        watched["fit.decay.monitor"] = config.decay.monitor
    for where, name in watched.items():
        if name not in known:
            raise JobError(f'no value "{name}" is logged.{nearest(name, known)}', where=where, expected=f"one of {', '.join(known)}")


def _write_text(folder: Path, job: Job) -> None:
    text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        tf.summary.text("job", "\n".join(f"    {line}" for line in text.splitlines()), step=0)
    writer.close()


def _save(model: keras.Model, run: RunLayout) -> str:
    """Write weights and model; returns the weights' digest."""
    with telling_disk(run.model_dir, "the fitted model"):
        run.model_dir.mkdir(parents=True, exist_ok=True)
        for left in run.model_dir.glob(f"{_SAVING}*"):
            shutil.rmtree(left)
        for path, save in ((run.weights, model.save_weights), (run.keras_model, model.save)):
            _save_aside(path, save)
    return weights_sha256(model)


def _save_aside(path: Path, save: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SAVING) as folder:
        aside = Path(folder) / path.name
        save(str(aside))
        sync_path(aside)
        aside.replace(path)
    sync_path(path.parent)


def load_fitted(job: Job, plan: BatchesRecord, run: RunLayout) -> keras.Model:
    """The fitted model of a run, rebuilt from its record and weights.

    Raises:
        FitError: the weights file is missing or does not fit.
    """
    model = assemble_model(job, plan)
    model.optimizer.build(model.trainable_variables)  # the file holds its variables too
    try:
        model.load_weights(str(run.weights))
    except (OSError, ValueError) as error:
        raise FitError(
            f"the weights of the run cannot be loaded: {error}.", where=str(run.weights), remedy="Fit again: refit run --fresh."
        ) from error
    return model
