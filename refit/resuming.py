"""A fit that begins in the middle of an epoch: Keras's own ``fit`` is led past what was done before the interruption.

Keras knows the beginning of epochs only. Here its train function is called for the steps that were done, too, and does nothing for
them; the callbacks do not hear of them. Steps that are run in groups are led past in the same way. So one ``fit`` trains what was
left, and whoever watches it sees a single training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from refit.batches import Position
from refit.callbacks import Resumable
from refit.pace import Pace


class Executions:
    """Keras's train function, called for each step of an epoch; it runs groups of them, and has nothing to do for those that are done.

    A group of fewer steps at an epoch's end is run one by one, so that each batch comes once.
    """

    def __init__(self, model: keras.Model, *, steps_per_epoch: int, pace: Pace) -> None:
        """Stand in for the model's own function.

        Args:
            model: compiled.
            steps_per_epoch: steps of an epoch.
            pace: says how many steps are run at once.
        """
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.is_passed = False
        self._calls = 0
        self._logs: Any = {}
        self._model, self._pace = model, pace
        self._functions: dict[int, Callable[[Any], Any]] = {}
        model.train_function = self

    def begin_epoch(self, step: int = 0, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin an epoch of which ``step`` steps are done; ``logs`` are what the last of them gave."""
        self._calls, self.step, self._logs = 0, step, logs or {}

    def __call__(self, iterator: Any) -> Any:  # noqa: ANN401 -- Keras's iterator and logs
        """Run the next group of steps, if this call's step was not among those that are done."""
        self.is_passed = self._calls < self.step
        self._calls += 1
        if not self.is_passed:
            count = min(self._pace.size, self.steps_per_epoch - self.step)
            with self._pace.timing(count):
                self._logs = self._run(iterator, count)
            self.step += count
        return self._logs

    def _run(self, iterator: Any, count: int) -> Any:  # noqa: ANN401 -- Keras's iterator and logs
        if count == self._pace.size:
            return self._function(count)(iterator)
        for _ in range(count):
            logs = self._function(1)(iterator)
        return logs

    def _function(self, steps: int) -> Callable[[Any], Any]:
        if steps not in self._functions:
            self._functions[steps] = _train_function(self._model, steps)
        return self._functions[steps]


def _train_function(model: keras.Model, steps: int) -> Callable[[Any], Any]:
    """The model's function for so many steps. Keras looks at their number when it traces, and else believes in single steps."""
    own, model.steps_per_execution = model.train_function, steps
    model.make_train_function(force=True)
    made, model.train_function, model.steps_per_execution = model.train_function, own, 1

    def run(iterator: Any) -> Any:  # noqa: ANN401 -- Keras's iterator and logs
        model.steps_per_execution = steps
        try:
            return made(iterator)
        finally:
            model.steps_per_execution = 1

    return run if steps > 1 else made


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
        is_stopping: bool,
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
            is_stopping: whether it is to end with the epoch in which it begins.
            restore_callbacks: called after ``on_train_begin``, which resets callbacks.
            restore_metrics: called at the beginning of an epoch that is resumed in the middle.
        """
        super().__init__(list(callbacks), model=model, epochs=num_epochs, steps=executions.steps_per_epoch, verbose=0)
        self._executions, self._start, self._logs, self._is_stopping = executions, start, logs, is_stopping
        self._restore_callbacks, self._restore_metrics = restore_callbacks, restore_metrics

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin, and give callbacks back what they knew."""
        super().on_train_begin(logs)
        self._restore_callbacks()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Begin an epoch, or go on with one. Callbacks have seen it begin, but those that could not say what they then knew."""
        if epoch == self._start.epoch and self._start.step:
            for callback in self.callbacks:
                if not isinstance(callback, Resumable):
                    callback.on_epoch_begin(epoch, logs)
            self._executions.begin_epoch(self._start.step, self._logs)
            self._restore_metrics()
            self.model.stop_training = self._is_stopping
        else:
            self._executions.begin_epoch()
            super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401 -- Keras's logs
        """Tell of a group of steps, unless it was done before."""
        if batch >= self._executions.step:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401, ARG002 -- Keras's logs; it counts past a short group
        """Tell of a group of steps by its last one, unless it was done before."""
        if not self._executions.is_passed:
            super().on_train_batch_end(self._executions.step - 1, logs)
