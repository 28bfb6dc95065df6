"""The fit: model and optimizer from the job, Keras's own ``model.fit``, and everything that it leaves behind."""

import hashlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml

from refit import references
from refit.batches import Position, RowsSource, read_batches, read_in_order, read_validation
from refit.callbacks import EpochEnd, EpochStart, Recorder, Reporter, Restorer, StopOnNaN, callback_state, restore_callback
from refit.checkpoints import Checkpoint, CheckpointRecord, read_newest, remove_checkpoints, write_checkpoint
from refit.config import CosineDecay, ExponentialDecay, FitConfig, Job, PlateauDecay, StepDecay, TargetKind, digest, nearest
from refit.errors import CodeError, FitError, JobError
from refit.features import Target, build_inputs, build_target
from refit.layout import RunLayout
from refit.progress import OnProgress, ignore_progress
from refit.records import BatchesRecord, BuildRecord, FitRecord, Resumption
from refit.slicing import count_steps

LOSSES: dict[TargetKind, str] = {
    "binary": "binary_crossentropy",
    "classes": "sparse_categorical_crossentropy",
    "regression": "mean_squared_error",
}
METRICS: dict[TargetKind, tuple[str, ...]] = {"binary": ("accuracy", "auc"), "classes": ("accuracy",), "regression": ("rmse", "mae")}
_BUILDER_POSITIONAL = 2
_log = logging.getLogger(__name__)


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
    model.compile(optimizer=build_optimizer(job.fit, plan.steps_per_epoch), loss=LOSSES[target.kind], **counted)


def build_optimizer(config: FitConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer with its schedule; a plateau's drops are a callback's work."""
    arguments = config.optimizer.model_dump(exclude={"name", "learning_rate"}, exclude_none=True)
    rate = build_schedule(config, steps_per_epoch)
    return keras.optimizers.get({"class_name": config.optimizer.name, "config": {"learning_rate": rate, **arguments}})


def build_schedule(config: FitConfig, steps_per_epoch: int) -> float | dict[str, Any]:
    """The learning rate, or the serialised Keras schedule that computes it."""
    rate, decay = config.optimizer.learning_rate, config.decay
    if isinstance(decay, StepDecay):
        steps = decay.every_epochs * steps_per_epoch
        schedule = keras.optimizers.schedules.ExponentialDecay(rate, steps, decay.factor, staircase=True)
    elif isinstance(decay, ExponentialDecay):
        schedule = keras.optimizers.schedules.ExponentialDecay(rate, steps_per_epoch, decay.factor)
    elif isinstance(decay, CosineDecay):
        schedule = _cosine(rate, decay, config.epochs * steps_per_epoch)
    else:
        return rate
    return dict(keras.optimizers.schedules.serialize(schedule))


def _cosine(rate: float, decay: CosineDecay, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    if not decay.warmup_steps:
        return keras.optimizers.schedules.CosineDecay(rate, steps, alpha=decay.final_fraction)
    rest = max(steps - decay.warmup_steps, 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0, rest, alpha=decay.final_fraction, warmup_target=rate, warmup_steps=decay.warmup_steps
    )


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

    Leaves ``weights.weights.h5``, ``model.keras`` and event files in the run's folder; checkpoints are removed at the end.

    Args:
        job: the whole job; ``belongs_to`` of the checkpoints covers it and the plan.
        plan: features and target with their statistics.
        train: rows of the train split, or a pool of which validation rows are drawn anew for each epoch.
        validation: rows of the validation split; None: they are drawn from a pool, or there are none and nothing stops early.
        run: the run's paths.
        num_epochs: fit for so many epochs and not for the job's, whose schedule of the learning rate stays as it is.
        on_progress: told while the fit runs; must return at once.

    Raises:
        FitError: the loss is not finite.
    """
    devices = prepare_devices()
    model = assemble_model(job, plan)
    is_validated = validation is not None or bool(train.num_validation)
    state = _State(job, plan, model, run, is_validated=is_validated, num_epochs=num_epochs or job.fit.epochs)
    resumption = state.restore_variables()
    started = time.perf_counter()
    _call_fit(state, job, train, validation, run, on_progress)
    seconds = time.perf_counter() - started
    _save(model, run)
    remove_checkpoints(run.checkpoints_dir)
    history = state.recorder.history
    trained = len(history["loss"]) - (resumption.epoch if resumption else 0)
    return FitRecord(
        num_epochs=len(history["loss"]),
        best_epoch=state.best_epoch,
        history=history,
        validation_epochs=state.recorder.validation_epochs,
        weights_sha256=weights_sha256(model),
        resumed_at=state.resumed_at,
        devices=devices,
        examples_per_second=round(trained * train.num_rows / seconds, 1),
    )


class _State:
    """Everything that a checkpoint holds, and the way there and back."""

    def __init__(self, job: Job, plan: BatchesRecord, model: keras.Model, run: RunLayout, *, is_validated: bool, num_epochs: int) -> None:
        self.model = model
        self.num_epochs = num_epochs
        self.recorder = Recorder()
        self.monitors = _monitors(job.fit, is_validated=is_validated)
        self.belongs_to = digest({"job": job.model_dump(mode="json"), "plan": plan.model_dump(mode="json"), "epochs": num_epochs})
        self.resumed_at: tuple[Resumption, ...] = ()
        self._steps = plan.steps_per_epoch
        self._run = run
        self._keep = job.fit.checkpoint.keep
        self._found = read_newest(run.checkpoints_dir, belongs_to=self.belongs_to)
        model.optimizer.build(model.trainable_variables)

    @property
    def start(self) -> Position:
        return Position(self._found.record.epoch if self._found else 0, 0)

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 0) whose weights were kept, where early stopping kept any."""
        stopping = self.monitors.get("early_stopping")
        return None if stopping is None or stopping.best_weights is None else int(stopping.best_epoch)

    @property
    def is_stopped(self) -> bool:
        return self._found is not None and self._found.record.stop_training

    def restore_variables(self) -> Resumption | None:
        """Give model, optimizer and history back what they were; before the fit."""
        if self._found is None:
            return None
        for group, variables in self._variables().items():
            for variable, values in zip(variables, self._found.arrays[group], strict=True):
                variable.assign(values)
        record = self._found.record
        self.recorder.history = {name: list(values) for name, values in record.history.items()}
        self.recorder.validation_epochs = list(record.validation_epochs)
        here = Resumption(epoch=record.epoch, step=record.step)
        self.resumed_at = (*record.resumed_at, here)
        _log.info("fit: resumed after epoch %d, step %d", here.epoch, here.step)
        return here

    def restore_callbacks(self) -> None:
        """Give the monitors back what they knew; after their ``on_train_begin``."""
        if self._found is None:
            return
        for name, callback in self.monitors.items():
            restore_callback(callback, self._found.record.callbacks[name], self._found.arrays.get(name, []))

    def save(self, epoch: int) -> None:
        """Write the state after an epoch."""
        states = {name: callback_state(callback) or ({}, []) for name, callback in self.monitors.items()}
        arrays = {group: [np.asarray(v.numpy()) for v in variables] for group, variables in self._variables().items()}
        record = CheckpointRecord(
            belongs_to=self.belongs_to,
            epoch=epoch + 1,
            step=(epoch + 1) * self._steps,
            stop_training=bool(self.model.stop_training),
            history=self.recorder.history,
            validation_epochs=self.recorder.validation_epochs,
            callbacks={name: values for name, (values, _) in states.items()},
            resumed_at=self.resumed_at,
            num_arrays={},
            arrays_sha256="",
        )
        arrays |= {name: weights for name, (_, weights) in states.items()}
        write_checkpoint(self._run.checkpoints_dir, Checkpoint(record, arrays), keep=self._keep)

    def _variables(self) -> dict[str, list[Any]]:
        return {"model": list(self.model.variables), "optimizer": list(self.model.optimizer.variables)}


def _monitors(config: FitConfig, *, is_validated: bool) -> dict[str, keras.callbacks.Callback]:
    """What watches the fit; without validation rows nothing stops it early."""
    monitors: dict[str, keras.callbacks.Callback] = {}
    if isinstance(config.decay, PlateauDecay):
        decay = config.decay
        monitors["plateau"] = keras.callbacks.ReduceLROnPlateau(decay.monitor, factor=decay.factor, patience=decay.patience)
    stopping = config.early_stopping
    if stopping is not None and is_validated:
        monitors["early_stopping"] = keras.callbacks.EarlyStopping(
            stopping.monitor, patience=stopping.patience, min_delta=stopping.min_delta, restore_best_weights=True
        )
    return monitors


def _call_fit(state: _State, job: Job, train: RowsSource, validation: RowsSource | None, run: RunLayout, on_progress: OnProgress) -> None:
    fit, drop = job.fit, job.batches.drop_remainder
    steps = count_steps(train.num_rows, fit.batch_size, drop_remainder=drop)
    epoch = tf.Variable(state.start.epoch, dtype=tf.int64, trainable=False)
    board = keras.callbacks.TensorBoard(str(run.tensorboard_dir), write_graph=True, update_freq="epoch")
    if state.start.epoch == 0:
        _write_text(run.tensorboard_dir / "train", job)
    if fit.validation_freq > 1:  # Keras warns at every epoch without validation that the monitored value is not there
        warnings.filterwarnings("ignore", message=".*conditioned on metric.*which is not available")
    state.model.fit(
        read_batches(train, batch_size=fit.batch_size, seed=job.seed, start=state.start, drop_remainder=drop),
        validation_data=_validation_batches(job, train, validation, epoch),
        validation_freq=fit.validation_freq,
        steps_per_epoch=steps,
        initial_epoch=state.num_epochs if state.is_stopped else state.start.epoch,
        epochs=state.num_epochs,
        shuffle=False,
        verbose=0,
        callbacks=[
            EpochStart(epoch.assign),
            StopOnNaN(),
            *state.monitors.values(),
            state.recorder,
            board,
            Restorer(state.restore_callbacks),
            Reporter(on_progress, num_epochs=state.num_epochs, steps_per_epoch=steps),
            EpochEnd(state.save, every_epochs=fit.checkpoint.every_epochs),
        ],
    )


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
    run.model_dir.mkdir(parents=True, exist_ok=True)
    for path, save in ((run.weights, model.save_weights), (run.keras_model, model.save)):
        _save_aside(path, save)


def _save_aside(path: Path, save: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving.") as folder:
        aside = Path(folder) / path.name
        save(str(aside))
        aside.replace(path)


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
