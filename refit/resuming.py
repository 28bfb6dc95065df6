"""A fit that begins in the middle of an epoch: Keras's own ``fit`` is led past what was done before the interruption.

Keras knows the beginning of epochs only. Here its train function is called for the steps that were done, too, and does nothing for
them; the callbacks do not hear of them. So one ``fit`` trains what was left, and whoever watches it sees a single training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from refit.batches import Position


class Executions:
    """Keras's train function over groups of steps. A last group of fewer steps is run one by one, so that each batch comes once."""

    def __init__(self, model: keras.Model, *, steps_per_epoch: int, steps_per_execution: int) -> None:
        """Make the functions for one step and for a group, and stand in for the model's own.

        Args:
            model: compiled.
            steps_per_epoch: steps of an epoch.
            steps_per_execution: steps of a group.
        """
        self.steps_per_epoch = steps_per_epoch
        self.size = min(steps_per_execution, steps_per_epoch)
        self.step = 0
        self.is_passed = False
        self.first = 0
        self._logs: Any = {}
        self._model = model
        self._functions = {steps: _train_function(model, steps) for steps in (1, self.size)}
        model.train_function = self

    def begin_epoch(self, first: int = 0, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin an epoch whose steps before ``first`` were done; ``logs`` are what the last of them gave."""
        self.step, self.first, self._logs = 0, first, logs or {}

    def __call__(self, iterator: Any) -> Any:  # noqa: ANN401 -- Keras's iterator and logs
        """Run the next group of steps, unless it was done before."""
        count = min(self.size, self.steps_per_epoch - self.step)
        self.is_passed = self.step < self.first
        self.step += count
        if self.is_passed:
            return self._logs
        if count == self.size:
            return self._functions[count](iterator)
        self._model.steps_per_execution = 1  # Keras looks when it traces
        for _ in range(count):
            logs = self._functions[1](iterator)
        self._model.steps_per_execution = self.size
        return logs


def _train_function(model: keras.Model, steps: int) -> Callable[[Any], Any]:
    model.steps_per_execution = steps
    model.make_train_function(force=True)
    return model.train_function  # type: ignore[no-any-return]


class ResumingCallbacks(keras.callbacks.CallbackList):  # type: ignore[misc]  # Keras is untyped
    """Callbacks that hear of one training, wherever it was interrupted."""

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        executions: Executions,
        *,
        start: Position,
        logs: dict[str, float],
        num_epochs: int,
        restore_callbacks: Callable[[], None],
        restore_metrics: Callable[[], None],
    ) -> None:
        """Keep what is done when.

        Args:
            callbacks: in order.
            model: that is fitted.
            executions: its train function.
            start: where the fit begins.
            logs: of the step before ``start``.
            num_epochs: of the whole fit.
            restore_callbacks: called after ``on_train_begin``, which resets callbacks.
            restore_metrics: called at the beginning of an epoch that is resumed in the middle.
        """
        super().__init__(list(callbacks), model=model, epochs=num_epochs, steps=executions.steps_per_epoch, verbose=0)
        self._executions, self._start, self._logs = executions, start, logs
        self._restore_callbacks, self._restore_metrics = restore_callbacks, restore_metrics

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin, and give callbacks back what they knew."""
        super().on_train_begin(logs)
        self._restore_callbacks()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin an epoch, or go on with one that callbacks have seen begin."""
        if epoch == self._start.epoch and self._start.step:
            self._executions.begin_epoch(self._start.step, self._logs)
            self._restore_metrics()
        else:
            self._executions.begin_epoch()
            super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Tell of a group of steps, unless it was done before."""
        if batch >= self._executions.first:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's logs; it counts past a short group
        """Tell of a group of steps by its last one, unless it was done before."""
        if not self._executions.is_passed:
            super().on_train_batch_end(self._executions.step - 1, logs)
