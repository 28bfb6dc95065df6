"""Everything that a fit is at a moment, the way onto the disk and back, and when that is done."""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from refit.batches import Position
from refit.callbacks import Recorder, callback_state, restore_callback
from refit.checkpoints import Checkpoint, CheckpointRecord, CheckpointWriter
from refit.config import CheckpointConfig
from refit.devices import copies
from refit.event_files import Board, cut_events, measure_events
from refit.pace import Pace
from refit.records import Restart, Resumption
from refit.signals import StopRequest

MODEL, OPTIMIZER, METRICS, RANDOM = "model", "optimizer", "metrics", "random"
_log = logging.getLogger(__name__)


class FitState:
    """What a checkpoint holds of a fit.

    Model, optimizer and metric variables, what callbacks know, what was logged, TensorBoard's files, the global random numbers of
    Python and NumPy, and the position. Keras's own random numbers are variables of the model.
    """

    def __init__(
        self,
        model: keras.Model,
        monitors: Mapping[str, keras.callbacks.Callback],
        recorder: Recorder,
        *,
        belongs_to: str,
        steps_per_epoch: int,
        events_dir: Path,
        found: Checkpoint | None,
        restarts: Sequence[Restart] = (),
    ) -> None:
        """Keep what belongs together; nothing is restored yet.

        Args:
            model: compiled.
            monitors: callbacks with a state, by name.
            recorder: the history.
            belongs_to: digest of what the fit is a function of.
            steps_per_epoch: steps of an epoch.
            events_dir: TensorBoard's folder.
            found: the checkpoint from which the fit goes on.
            restarts: where it went on after it had diverged; the last of them is new where ``found`` does not know of it.
        """
        self.model, self.monitors, self.recorder = model, dict(monitors), recorder
        self.steps_per_epoch = steps_per_epoch
        self._belongs_to, self._events_dir, self._found = belongs_to, events_dir, found
        self.resumed_at: tuple[Resumption, ...] = found.record.resumed_at if found else ()
        self.restarts = tuple(restarts)
        self._strategy = model.distribute_strategy
        self.pace = Pace(1, steps_per_epoch=steps_per_epoch, num_steps=0)
        model.optimizer.build(model.trainable_variables)

    @property
    def start(self) -> Position:
        """Where the fit begins."""
        return Position(self._found.record.epoch, self._found.record.step) if self._found else Position(0, 0)

    @property
    def first_step(self) -> int:
        """Steps that are done."""
        return self._found.record.total_steps if self._found else 0

    @property
    def logs(self) -> dict[str, float]:
        """Of the newest step that is done."""
        return dict(self._found.record.logs) if self._found else {}

    def is_best(self, epoch: int) -> bool:
        """Whether an epoch that has just ended is the best so far."""
        knows = self.monitors.get("early_stopping") or self.monitors.get("best")
        return knows is not None and knows.best is not None and knows.wait == 0 and bool(knows.best_epoch == epoch)

    @property
    def chosen_steps(self) -> int | None:
        """How many steps are run at once, where that was measured."""
        return self._found.record.chosen_steps if self._found else None

    @property
    def is_stopped(self) -> bool:
        """Whether the fit was over when the checkpoint was written, the end of its last epoch included."""
        return self._found is not None and self._found.record.stop_training and not self._found.record.step

    @property
    def is_stopping(self) -> bool:
        """Whether the fit was to end with the epoch in which it was interrupted."""
        return self._found is not None and self._found.record.stop_training

    @property
    def found(self) -> CheckpointRecord | None:
        """What the fit goes on from."""
        return self._found.record if self._found else None

    # ---- back

    def restore_variables(self) -> None:
        """Give model, optimizer and history back what they were; before the fit."""
        cut_events(self._events_dir, self._found.record.events if self._found else {})
        if self._found is None:
            return
        record = self._found.record
        self._assign_variables()
        self.recorder.history = {name: list(values) for name, values in record.history.items()}
        self.recorder.validation_epochs = list(record.validation_epochs)
        if self.restarts != record.restarts:
            return
        self.resumed_at = (*record.resumed_at, Resumption(epoch=record.epoch, step=record.total_steps))
        _log.info("fit: resumed in epoch %d after step %d of %d", record.epoch + 1, record.step, record.steps_per_epoch)

    def restore_metrics(self, element_spec: Any) -> None:  # noqa: ANN401 -- TensorFlow's
        """Give metrics back what they had counted; Keras makes their variables when the first step is traced, so one is.

        Args:
            element_spec: of a batch.
        """
        if self._strategy.num_replicas_in_sync == 1:  # several devices have them from the beginning
            tf.function(self.model.train_step).get_concrete_function(element_spec)
        self._assign(METRICS, copies(self._strategy, self.model.metrics_variables))

    def _assign_variables(self) -> None:
        for group, variables in ((MODEL, copies(self._strategy, self.model.variables)), (OPTIMIZER, self.model.optimizer.variables)):
            self._assign(group, variables)
        self._lower_rate()

    def _lower_rate(self) -> None:
        """Multiply a learning rate that the optimizer holds, where the fit goes on lower than it was; schedules are made so."""
        optimizer, before = self.model.optimizer, self._found.record.restarts if self._found else ()
        is_held = any(variable is optimizer.learning_rate for variable in optimizer.variables)
        if is_held and self.restarts != before:
            factor = self.restarts[-1].factor / (before[-1].factor if before else 1.0)
            optimizer.learning_rate.assign(optimizer.learning_rate * factor)

    def _assign(self, group: str, variables: Sequence[Any]) -> None:
        if self._found is None:
            return
        for variable, values in zip(variables, self._found.arrays(group), strict=True):
            variable.assign(np.array(values))  # TensorFlow would take the file's mapped memory for its own

    def restore_callbacks(self) -> None:
        """Give callbacks back what they knew, and variables what they were; after ``on_train_begin``, in which both may be changed."""
        if self._found is None:
            return
        self._assign_variables()
        for name, callback in self.monitors.items():
            restore_callback(callback, self._found.record.callbacks[name], self._found.arrays(_group(name)))
        _set_random(self._found.arrays(RANDOM))

    # ---- there

    def look(
        self, at: Position, logs: Mapping[str, float], metrics: Sequence[np.ndarray] | None = None
    ) -> tuple[CheckpointRecord, dict[str, Sequence[np.ndarray]]]:
        """What a checkpoint says of the present, and views of its arrays by group; ``metrics`` in place of what metrics hold now."""
        known = {name: callback_state(callback) for name, callback in self.monitors.items()}
        record = CheckpointRecord(
            belongs_to=self._belongs_to,
            epoch=at.epoch,
            step=at.step,
            steps_per_epoch=self.steps_per_epoch,
            stop_training=bool(self.model.stop_training),
            history=self.recorder.history,
            validation_epochs=self.recorder.validation_epochs,
            logs={name: float(value) for name, value in logs.items()},
            callbacks={name: values for name, (values, _) in known.items()},
            resumed_at=self.resumed_at,
            restarts=self.restarts,
            chosen_steps=self.pace.chosen,
            events=measure_events(self._events_dir),
        )
        arrays: dict[str, Sequence[np.ndarray]] = {
            MODEL: list(map(_look, copies(self._strategy, self.model.variables))),
            OPTIMIZER: list(map(_look, self.model.optimizer.variables)),
            METRICS: self.metrics() if metrics is None else metrics,
            RANDOM: _get_random(),
        }
        return record, arrays | {_group(name): values for name, (_, values) in known.items()}

    def metrics(self) -> list[np.ndarray]:
        """Views of what metrics hold now."""
        return list(map(_look, copies(self._strategy, self.model.metrics_variables)))


def is_finite(checkpoint: Checkpoint) -> bool:
    """Whether all numbers of model and optimizer are."""
    arrays = [array for group in (MODEL, OPTIMIZER) for array in checkpoint.arrays(group)]
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind in "fV")  # bfloat16 is of kind V


def _group(name: str) -> str:
    return f"callback {name}"


def _look(variable: Any) -> np.ndarray:  # noqa: ANN401 -- Keras's variable
    """What a variable holds, without a copy where it lies in the host's memory; read-only."""
    return np.asarray(keras.ops.convert_to_tensor(variable))


def _get_random() -> list[np.ndarray]:
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()  # noqa: NPY002 -- what users' callbacks may draw from
    return [
        np.array([version, *words], np.uint64),
        np.array([] if gauss is None else [gauss]),
        np.asarray(keys),
        np.array([place, has_gauss]),
        np.array(cached),
    ]


def _set_random(arrays: Sequence[np.ndarray]) -> None:
    (version, *words), gauss, keys, (place, has_gauss), cached = arrays
    random.setstate((int(version), tuple(map(int, words)), float(gauss[0]) if len(gauss) else None))
    np.random.set_state(("MT19937", np.array(keys), int(place), int(has_gauss), float(cached)))  # noqa: NPY002 -- as above


class Checkpointer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Saves the state when it is time, and when the process is asked to end. Stands last, after everyone whose state it saves."""

    def __init__(
        self,
        state: FitState,
        writer: CheckpointWriter,
        config: CheckpointConfig,
        board: Board,
        stop: StopRequest,
        *,
        num_epochs: int,
        has_guests: bool,
    ) -> None:
        """Keep whom to ask.

        Args:
            state: what is saved.
            writer: who writes it.
            config: when it is time.
            board: flushed before its files are measured.
            stop: whether the process was asked to end.
            num_epochs: of the whole fit.
            has_guests: whether there are callbacks of which nobody knows what they do.
        """
        super().__init__()
        self._state, self._writer = state, writer
        self._config, self._board, self._stop = config, board, stop
        self._num_epochs, self._has_guests = num_epochs, has_guests
        self._epoch = state.start.epoch
        self._saved_steps, self._saved_at = state.first_step, time.monotonic()
        self._logs: Mapping[str, float] = state.logs
        self._metrics: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's signature
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Save when it is time; leave when that was asked for."""
        self._logs = logs or {}
        here = Position(self._epoch, batch + 1)
        self._writer.check()
        if self._stop.is_asked:
            self._leave(here)
        elif self._is_due(self._count(here)) and not self._writer.is_writing:
            self._save(here)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's signature
        """Keep what metrics have counted in training: validation counts with the same ones."""
        self._metrics = [values.copy() for values in self._state.metrics()]

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's signature
        """Leave when that was asked for; validation is begun anew then. With callbacks of users' the newest checkpoint must do."""
        if not self._stop.is_asked:
            return
        if self._has_guests:  # they may have changed weights for the validation
            self._writer.wait()
            self._stop.leave()
        self._leave(Position(self._epoch, self._state.steps_per_epoch), self._metrics)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's signature
        """Save the best epoch and the last, and others when it is time."""
        here = Position(epoch + 1, 0)
        self._logs = {}
        is_best = self._state.is_best(epoch)
        is_time = self._is_due(self._count(here)) or (epoch + 1) % (self._config.every_epochs or epoch + 2) == 0
        is_last = self.model.stop_training or epoch + 1 == self._num_epochs
        if self._stop.is_asked:
            self._leave(here, is_best=is_best)
        elif is_best or is_time or is_last:
            self._save(here, is_best=is_best)

    def _count(self, at: Position) -> int:
        return at.epoch * self._state.steps_per_epoch + at.step

    def _is_due(self, steps: int) -> bool:
        config = self._config
        by_steps = config.every_steps is not None and steps - self._saved_steps >= config.every_steps
        return by_steps or (config.every_seconds is not None and time.monotonic() - self._saved_at >= config.every_seconds)

    def _save(self, at: Position, metrics: Sequence[np.ndarray] | None = None, *, is_best: bool = False) -> None:
        self._board.flush()
        self._writer.save(*self._state.look(at, self._logs, metrics), is_best=is_best)
        self._saved_steps, self._saved_at = self._count(at), time.monotonic()

    def _leave(self, at: Position, metrics: Sequence[np.ndarray] | None = None, *, is_best: bool = False) -> None:
        self._save(at, metrics, is_best=is_best)
        self._writer.wait()
        _log.warning("fit: asked to end; saved in epoch %d after step %d; the next start goes on from there", at.epoch + 1, at.step)
        self._stop.leave()
