"""Callbacks of a fit: its history, its checkpoints, its progress, and the state that others need to be taken up again."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from refit.errors import FitError
from refit.progress import FitProgress, OnProgress

# What Keras's own callbacks know, by class: their plain attributes, and the one that holds weights.
# Source: keras.src.callbacks.early_stopping and reduce_lr_on_plateau, Keras 3.15.
_STATES: dict[type[keras.callbacks.Callback], tuple[tuple[str, ...], str | None]] = {
    keras.callbacks.EarlyStopping: (("wait", "stopped_epoch", "best", "best_epoch"), "best_weights"),
    keras.callbacks.ReduceLROnPlateau: (("wait", "best", "cooldown_counter"), None),
}


def callback_state(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """What a callback must be given back to go on: plain values and weights; None where it keeps nothing."""
    known = next((state for kind, state in _STATES.items() if isinstance(callback, kind)), None)
    if known is None:
        return None
    names, weights = known
    values = {name: _plain(getattr(callback, name)) for name in names if getattr(callback, name, None) is not None}
    arrays = (getattr(callback, weights) or []) if weights else []
    return values, [np.asarray(array) for array in arrays]


def restore_callback(callback: keras.callbacks.Callback, values: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """The inverse of ``callback_state``, after ``on_train_begin`` of the callback."""
    for name, value in values.items():
        setattr(callback, name, value)
    weights = next(state[1] for kind, state in _STATES.items() if isinstance(callback, kind))
    if weights and arrays:
        setattr(callback, weights, arrays)


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


class Restorer(keras.callbacks.Callback):  # type: ignore[misc]
    """Runs ``restore`` after ``on_train_begin`` of all callbacks before it, which resets them."""

    def __init__(self, restore: Callable[[], None]) -> None:
        """Keep the function."""
        super().__init__()
        self._restore = restore

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Give the callbacks back what they knew."""
        self._restore()


class EpochStart(keras.callbacks.Callback):  # type: ignore[misc]
    """Runs ``tell(epoch)`` at the beginning of every epoch."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        """Keep the function."""
        super().__init__()
        self._tell = tell

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Tell."""
        self._tell(epoch)


class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc]
    """Runs ``save(epoch)`` at the end of every so many epochs, and of the one that stops the fit. Stands last."""

    def __init__(self, save: Callable[[int], None], *, every_epochs: int) -> None:
        """Keep the function and its interval."""
        super().__init__()
        self._save = save
        self._every_epochs = every_epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Save when it is time."""
        if (epoch + 1) % self._every_epochs == 0 or self.model.stop_training:
            self._save(epoch)


class StopOnNaN(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a diverged fit as an error that says where it happened."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self._epoch = 0
        self._last = float("nan")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the loss.

        Raises:
            FitError: it is not finite.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise FitError(
                f"the loss is {loss} in epoch {self._epoch + 1}, step {batch + 1}; the last finite one was {self._last:.4g}.",
                remedy="Try a lower fit.optimizer.learning_rate, fit.optimizer.clipnorm: 1, or look for extreme values in the features.",
            )
        self._last = loss


class Reporter(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells progress, at most ``per_second`` times a second and at the end of every epoch."""

    def __init__(self, tell: OnProgress, *, num_epochs: int, steps_per_epoch: int, per_second: float = 10) -> None:
        """Keep whom to tell."""
        super().__init__()
        self._tell = tell
        self._num_epochs = num_epochs
        self._steps = steps_per_epoch
        self._interval = 1 / per_second
        self._epoch = 0
        self._next = 0.0

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
        self._tell(FitProgress(self._epoch, self._num_epochs, step, self._steps, values))
