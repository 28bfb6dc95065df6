"""The fit: model and optimizer from the job, Keras's own ``model.fit``, and everything that it leaves behind."""

import contextlib
import hashlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from refit.checkpoints import CheckpointWriter, read_newest, telling_disk
from refit.config import CallbackConfig, FitConfig, Job, PlateauDecay, TargetKind, digest, nearest
from refit.errors import CodeError, FitError, JobError
from refit.event_files import Board
from refit.features import Target, build_inputs, build_target
from refit.fit_state import Checkpointer, FitState
from refit.layout import RunLayout
from refit.optimizers import build_optimizer, build_schedule
from refit.pace import Pace
from refit.progress import OnProgress, ignore_progress
from refit.records import BatchesRecord, BuildRecord, FitRecord, sync_path
from refit.resuming import Executions, ResumingCallbacks
from refit.signals import noting_stop
from refit.slicing import count_steps

LOSSES: dict[TargetKind, str] = {
    "binary": "binary_crossentropy",
    "classes": "sparse_categorical_crossentropy",
    "regression": "mean_squared_error",
}
METRICS: dict[TargetKind, tuple[str, ...]] = {"binary": ("accuracy", "auc"), "classes": ("accuracy",), "regression": ("rmse", "mae")}
_BUILDER_POSITIONAL = 2
_SAVING = ".saving."


# ---- the model


def choose_builder(job: Job, *, has_images: bool) -> str:
    """The builder that the job names, or the one that suits its features."""
    return job.model.build or ("models.convnet:build_model" if has_images else "models.dense:build_model")


def assemble_model(job: Job, plan: BatchesRecord) -> keras.Model:
    """Build and compile the model, the same to the bit each time: names cleared, seeds set.

    Raises:
        CodeError: the builder cannot be had, fails, or returns something that does not fit the target.
    """
    reference = choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    references.check_options(reference, job.model.options, positional=_BUILDER_POSITIONAL)
    builder = references.load(reference)
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    target = build_target(plan.target)
    with computing_in(choose_precision(job.fit)):
        try:
            model = builder(build_inputs(plan.features), target, **job.model.options)
        except Exception as error:
            raise CodeError(
                f'"{reference}" failed: {type(error).__name__}: {error}.', where="model", remedy="Mend the builder or its options."
            ) from error
    _check_output(model, target, reference)
    _check_monitors(job.fit, target.kind)
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
    made = {"auc": keras.metrics.AUC, "rmse": keras.metrics.RootMeanSquaredError, "mae": keras.metrics.MeanAbsoluteError}
    metrics = [made[name](name=name) if name in made else name for name in METRICS[target.kind]]
    is_weighted = plan.sample_weight is not None or plan.class_weights is not None
    counted = {"weighted_metrics" if is_weighted else "metrics": metrics}
    jit_compile = job.fit.jit_compile
    if jit_compile == "auto" and not tf.config.list_physical_devices("GPU"):
        jit_compile = False  # slower there
    with computing_in(choose_precision(job.fit)):  # Keras scales the loss where that says float16
        model.compile(
            optimizer=build_optimizer(job.fit, plan.steps_per_epoch), loss=LOSSES[target.kind], jit_compile=jit_compile, **counted
        )


def load_initial_weights(model: keras.Model, path: Path) -> None:
    """Give a model the weights of a file, all of them; before its optimizer is built.

    Raises:
        FitError: the file is missing or holds others.
    """
    try:
        if path.suffix == ".keras":
            model.set_weights(keras.saving.load_model(path, compile=False).get_weights())
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*optimizer.*")  # its state is not wanted
                model.load_weights(path)
    except (OSError, ValueError) as error:
        raise FitError(
            f"the initial weights cannot be loaded: {error}.", where=f"fit.initial_weights: {path}", remedy="Name a file of the same model."
        ) from error


def build_callbacks(fit: FitConfig) -> dict[str, keras.callbacks.Callback]:
    """The repository's own callbacks by name.

    Raises:
        CodeError: one cannot be had, or is no Keras callback.
    """
    return {f"{number} {config.use}": _build_callback(config) for number, config in enumerate(fit.callbacks)}


def _build_callback(config: CallbackConfig) -> keras.callbacks.Callback:
    references.check_options(config.use, config.options, positional=0)
    made = references.load(config.use)(**config.options)
    if not isinstance(made, keras.callbacks.Callback):
        raise CodeError(
            f'"{config.use}" is no callback.', where="fit.callbacks", expected="a keras.callbacks.Callback", received=type(made).__name__
        )
    return made


def describe_model(job: Job, plan: BatchesRecord) -> BuildRecord:
    """Build the model once to see that it can be, and describe it.

    Raises:
        CodeError: it cannot.
    """
    model = assemble_model(job, plan)
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


def prepare_devices() -> tuple[str, ...]:
    """Let GPUs take memory as they need it and compute the same twice; return the devices' names."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.experimental.enable_op_determinism()
    return tuple(f"{d.device_type}:{i}" for i, d in enumerate(gpus or tf.config.list_physical_devices("CPU")))


def fit_model(
    job: Job,
    plan: BatchesRecord,
    train: RowsSource,
    validation: RowsSource | None,
    run: RunLayout,
    *,
    num_epochs: int | None = None,
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
        on_progress: told while the fit runs; must return at once.

    Raises:
        FitError: the loss is not finite, or the device's memory is full.
        StorageError: checkpoints or the model cannot be written.
    """
    devices = prepare_devices()
    model = assemble_model(job, plan)
    if job.fit.initial_weights:
        load_initial_weights(model, Path(job.fit.initial_weights))
    is_validated = validation is not None or bool(train.num_validation)
    num_epochs = num_epochs or job.fit.epochs
    belongs_to = _identify(job, plan, num_epochs)
    state = FitState(
        model,
        _monitors(job.fit, is_validated=is_validated),
        Recorder(),
        belongs_to=belongs_to,
        steps_per_epoch=count_steps(train.num_rows, job.fit.batch_size, drop_remainder=job.batches.drop_remainder),
        events_dir=run.tensorboard_dir,
        found=read_newest(run.checkpoints_dir, belongs_to=belongs_to),
    )
    state.restore_variables()
    started = time.perf_counter()
    best = _call_fit(state, job, train, validation, run, num_epochs, on_progress)
    seconds = time.perf_counter() - started
    _save(model, run)
    history = state.recorder.history
    trained = len(history["loss"]) * state.steps_per_epoch - state.first_step
    return FitRecord(
        num_epochs=len(history["loss"]),
        best_epoch=_best_epoch(state.monitors),
        history=history,
        validation_epochs=state.recorder.validation_epochs,
        weights_sha256=weights_sha256(model),
        resumed_at=state.resumed_at,
        devices=devices,
        examples_per_second=round(trained * job.fit.batch_size / seconds, 1),
        best_checkpoint=best,
        precision=model.dtype_policy.name,
        stopped_by=_stopped_by(state.monitors),
        steps_per_execution=state.pace.size,
    )


def _identify(job: Job, plan: BatchesRecord, num_epochs: int) -> str:
    """Digest of what a fit is a function of, code included."""
    builder = choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    code = [references.source_digest(reference) for reference in (builder, *(callback.use for callback in job.fit.callbacks))]
    said = {"job": job.model_dump(mode="json"), "plan": plan.model_dump(mode="json"), "epochs": num_epochs}
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
    train: RowsSource,
    validation: RowsSource | None,
    run: RunLayout,
    num_epochs: int,
    on_progress: OnProgress,
) -> str | None:
    """Call Keras's fit from where the state is; returns the name of the best epoch's checkpoint."""
    fit, steps, start = job.fit, state.steps_per_epoch, state.start
    batches = read_batches(
        train, batch_size=fit.batch_size, seed=job.seed, start=_next_batch(start, steps), drop_remainder=job.batches.drop_remainder
    )
    epoch = tf.Variable(start.epoch, dtype=tf.int64, trainable=False)
    schedule = build_schedule(fit, steps)
    rate = keras.optimizers.schedules.deserialize(schedule) if isinstance(schedule, dict) else None
    board = Board(run.tensorboard_dir, rate=rate, steps_per_epoch=steps, first_step=state.first_step, is_at_once=bool(fit.callbacks))
    if not state.first_step:
        _write_text(run.tensorboard_dir / "train", job)
    if fit.validation_freq > 1:  # Keras warns at every epoch without validation that the monitored value is not there
        warnings.filterwarnings("ignore", message=".*conditioned on metric.*which is not available")
    asked = 1 if fit.steps_per_execution == "auto" and fit.callbacks else fit.steps_per_execution  # they may count steps
    state.pace = Pace(asked, steps_per_epoch=steps, num_steps=num_epochs * steps - state.first_step, chosen=state.chosen_steps)
    executions = Executions(state.model, steps_per_epoch=steps, pace=state.pace)
    writer = CheckpointWriter(run.checkpoints_dir, keep=fit.checkpoint.keep, found=state.found)
    with noting_stop() as stop, contextlib.closing(writer):
        callbacks = [
            EpochStart(epoch.assign),
            StopOnNaN(start.epoch),
            *state.monitors.values(),
            state.recorder,
            board,
            Reporter(on_progress, num_epochs=num_epochs, steps_per_epoch=steps, batch_size=fit.batch_size, start=start),
            Checkpointer(state, writer, fit.checkpoint, board, stop, num_epochs=num_epochs, has_guests=bool(fit.callbacks)),
        ]
        with telling_memory(fit.batch_size):
            state.model.fit(
                batches,
                validation_data=_validation_batches(job, train, validation, epoch),
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
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise FitError(
            f"the device's memory is full: {error.message.splitlines()[0]}",
            where="fit.batch_size",
            received=str(batch_size),
            remedy=f"Try fit.batch_size: {max(1, batch_size // 2)}, a smaller model, or fit.precision: mixed_bfloat16.",
        ) from error


def _next_batch(start: Position, steps: int) -> Position:
    """The position of the next batch; after an epoch's last step that is the next epoch's first."""
    return start if start.step < steps else Position(start.epoch + 1, 0)


def _validation_batches(job: Job, train: RowsSource, validation: RowsSource | None, epoch: tf.Variable) -> tf.data.Dataset | None:
    batch_size = max(job.fit.batch_size, 256)
    if validation is not None:
        return read_in_order(validation, batch_size=batch_size)
    return read_validation(train, batch_size=batch_size, seed=job.seed, epoch=epoch) if train.num_validation else None


def _check_monitors(config: FitConfig, kind: TargetKind) -> None:
    """See that what is watched will be logged.

    Raises:
        JobError: it will not.
    """
    own = ["loss", *METRICS[kind]]
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


def _save(model: keras.Model, run: RunLayout) -> None:
    with telling_disk(run.model_dir, "the fitted model"):
        run.model_dir.mkdir(parents=True, exist_ok=True)
        for left in run.model_dir.glob(f"{_SAVING}*"):
            shutil.rmtree(left)
        for path, save in ((run.weights, model.save_weights), (run.keras_model, model.save)):
            _save_aside(path, save)


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
