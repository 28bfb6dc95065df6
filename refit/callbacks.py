"""Callbacks of a fit: its history, its progress, and the state that others need to be taken up again."""

import copy
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

from refit.batches import Position
from refit.errors import CodeError, DivergedError
from refit.progress import FitProgress, OnProgress, describe

# What Keras's own callbacks know, by class: their plain attributes, and the one that holds weights.
# Source: keras.src.callbacks.early_stopping and reduce_lr_on_plateau, Keras 3.15.
_STATES: dict[type[keras.callbacks.Callback], tuple[tuple[str, ...], str | None]] = {
    keras.callbacks.EarlyStopping: (("wait", "stopped_epoch", "best", "best_epoch"), "best_weights"),
    keras.callbacks.ReduceLROnPlateau: (("wait", "best", "cooldown_counter"), None),
    keras.callbacks.History: (("epoch", "history"), None),
}
_NAMES = "arrays"


@runtime_checkable
class Resumable(Protocol):
    """A callback of one's own that can be taken up again.

    What ``get_state`` gives comes back to ``set_state`` after ``on_train_begin``: numbers, words, lists and dictionaries of them as
    JSON knows them, and NumPy arrays as direct values.
    """

    def get_state(self) -> dict[str, Any]:
        """What the callback must be given back."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it."""


def callback_state(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What a callback must be given back to go on: a copy of its plain values, and its arrays; nothing where it keeps nothing.

    Raises:
        CodeError: a callback of one's own gives what cannot be kept.
    """
    if isinstance(callback, Resumable):
        return _own_state(callback)
    names, weights = _known(callback)
    values = {name: _plain(getattr(callback, name)) for name in names if getattr(callback, name, None) is not None}
    found = (getattr(callback, weights) or []) if weights else []
    return copy.deepcopy(values), [np.asarray(array) for array in found]


def _own_state(callback: Resumable) -> tuple[dict[str, Any], list[np.ndarray]]:
    state = callback.get_state()
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in state.items() if name not in arrays}
    try:
        json.dumps(plain)
        wrong = next((name for name, array in arrays.items() if array.dtype.kind not in "biufc"), None)
    except TypeError as error:
        raise _unfit_state(callback, str(error)) from error
    if wrong is not None:
        raise _unfit_state(callback, f'an array "{wrong}" of {arrays[wrong].dtype}')
    return {"values": copy.deepcopy(plain), _NAMES: list(arrays)}, list(arrays.values())


def _unfit_state(callback: Resumable, received: str) -> CodeError:
    return CodeError(
        f"get_state of {type(callback).__name__} gives what a checkpoint cannot keep.",
        where="fit.callbacks",
        expected="numbers, words, lists and dictionaries as JSON has them, and NumPy arrays of numbers as direct values",
        received=received,
    )


def restore_callback(callback: keras.callbacks.Callback, values: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """The inverse of ``callback_state``, after ``on_train_begin`` of the callback."""
    if isinstance(callback, Resumable):
        callback.set_state(values["values"] | dict(zip(values[_NAMES], map(np.array, arrays), strict=True)))
        return
    for name, value in values.items():
        setattr(callback, name, value)
    weights = _known(callback)[1]
    if weights and arrays:
        setattr(callback, weights, [np.array(array) for array in arrays])


def _known(callback: keras.callbacks.Callback) -> tuple[tuple[str, ...], str | None]:
    return next((state for kind, state in _STATES.items() if isinstance(callback, kind)), ((), None))


def _plain(value: Any) -> Any:  # noqa: ANN401 -- an attribute of Keras's
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


class Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """The history so far, one number an epoch and value; it outlives interruptions."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.history: dict[str, list[float]] = {}
        self.validation_epochs: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Append the epoch's values and its learning rate."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        values["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
        if any(name.startswith("val_") for name in values):
            self.validation_epochs.append(epoch)


class EpochStart(keras.callbacks.Callback):  # type: ignore[misc]
    """Runs ``tell(epoch)`` at the beginning of every epoch."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        """Keep the function."""
        super().__init__()
        self._tell = tell

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Tell."""
        self._tell(epoch)


class TimeBudget(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the fit after an epoch when another one as long would not end in time. Time before an interruption counts."""

    def __init__(self, seconds: float) -> None:
        """Keep the limit."""
        super().__init__()
        self.is_over = False
        self._limit, self._spent = seconds, 0.0
        self._since = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Begin to count."""
        self._since = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Decide."""
        spent = self._seconds()
        if spent * (epoch + 2) / (epoch + 1) > self._limit:
            self.is_over = True
            self.model.stop_training = True

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._since

    def get_state(self) -> dict[str, Any]:
        """The time spent."""
        return {"spent": self._seconds(), "is_over": self.is_over}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._spent, self.is_over = state["spent"], state["is_over"]
        self._since = time.monotonic()


class StopOnNaN(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a diverged fit as an error that says where it happened."""

    def __init__(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Start in an epoch, with what was logged last."""
        super().__init__()
        self._epoch, self._last = epoch, logs

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the loss.

        Raises:
            DivergedError: it is not finite.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            last = f"the last finite values were {describe(self._last)}" if self._last else "it never was finite"
            raise DivergedError(
                f"the loss is {loss} in epoch {self._epoch + 1}, step {batch + 1}; {last}.",
                where="fit",
                remedy="Try a lower fit.optimizer.learning_rate, fit.optimizer.clipnorm: 1, or look for extreme values in the features;"
                " fit.on_divergence lets a fit try a lower rate by itself.",
            ).at(self._epoch, batch)
        self._last = logs or {}


class Reporter(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells progress, at most ``per_second`` times a second and at the end of every epoch."""

    def __init__(
        self, tell: OnProgress, *, num_epochs: int, steps_per_epoch: int, batch_size: int, start: Position, per_second: float = 10
    ) -> None:
        """Keep whom to tell, and where the fit begins."""
        super().__init__()
        self._tell = tell
        self._num_epochs, self._steps, self._batch_size = num_epochs, steps_per_epoch, batch_size
        self._epoch, self._start = start.epoch, start
        self._interval = 1 / per_second
        self._since = self._next = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Tell, unless it was told a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._report(min(batch + 1, self._steps - 1), logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Tell with the validation's values."""
        self._report(self._steps, logs)

    def _report(self, step: int, logs: dict[str, float] | None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        done = (self._epoch - self._start.epoch) * self._steps + step - self._start.step
        speed = done * self._batch_size / max(time.monotonic() - self._since, 1e-3)
        self._tell(FitProgress(self._epoch, self._num_epochs, step, self._steps, values, speed, bool(self.model.stop_training)))
