"""TensorBoard's event files of a fit: what Keras writes, the learning rate of every step, and none of it twice after an interruption.

Source: https://www.tensorflow.org/tensorboard; an event file is read to its end, so that one cut at an earlier length is whole.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_PATTERN = "*tfevents*"


def measure_events(folder: Path) -> dict[str, int]:
    """Bytes of each event file under a folder, by its path there."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob(_PATTERN))}


def cut_events(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut event files back to what they were when they were measured; newer ones are removed."""
    for path in folder.rglob(_PATTERN):
        size = sizes.get(str(path.relative_to(folder)), 0)
        if not size:
            path.unlink()
        elif size < path.stat().st_size:
            os.truncate(path, size)


class Board(keras.callbacks.TensorBoard):  # type: ignore[misc]  # Keras is untyped
    """Keras's callback, and the learning rate of every step as ``batch_learning_rate``."""

    def __init__(
        self, folder: Path, *, rate: Callable[[Any], Any] | None, steps_per_epoch: int, first_step: int, is_at_once: bool = False
    ) -> None:
        """Keep what is written.

        Args:
            folder: under which ``train`` and ``validation`` lie.
            rate: the learning rate by the number of a step, as tensors; None: it is what the optimizer holds.
            steps_per_epoch: steps of an epoch.
            first_step: the first whose rate was not written yet, counted from the fit's beginning.
            is_at_once: whether rates are written at every step, for a callback may change them there.
        """
        super().__init__(str(folder), write_graph=not first_step, update_freq="epoch")
        self._rate, self._steps, self._is_at_once = rate, steps_per_epoch, is_at_once
        self._next = self._done = first_step
        self._write = tf.function(self._write_rates, autograph=True)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Write the model's graph: Keras writes none where the train function is not its own, and TensorBoard's page of graphs fails."""
        super().on_train_begin(logs)
        inputs = getattr(self.model, "input", None)
        if self.write_graph and inputs is not None:
            specs = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), inputs)
            traced = tf.function(lambda features: self.model(features, training=False)).get_concrete_function(specs)
            with self._train_writer.as_default():
                tf.summary.graph(traced.graph)

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 -- Keras's signature
        """Write nothing: Keras would write the validation's values a second time, by steps."""
        super().on_test_end({})

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count steps; the rates of an epoch are written before anything changes them at its end."""
        super().on_train_batch_end(batch, logs)
        self._done = self._done - self._done % self._steps + batch + 1
        if self._is_at_once or batch + 1 == self._steps:
            self.write_rates()

    def write_rates(self) -> None:
        """Write the learning rate of steps up to here."""
        if self._done > self._next:
            with self._train_writer.as_default(), tf.summary.record_if(True):  # Keras says no outside of epochs' ends
                self._write(tf.constant(self._next, tf.int64), tf.constant(self._done, tf.int64))
            self._next = self._done

    def _write_rates(self, first: Any, stop: Any) -> None:  # noqa: ANN401 -- tensors
        for step in tf.range(first, stop):
            rate = self.model.optimizer.learning_rate.value if self._rate is None else self._rate(step)
            with tf.name_scope(""):  # a tag begins with the scope, here that of the loop
                tf.summary.scalar("batch_learning_rate", rate, step=step)

    def flush(self) -> None:
        """Put on the disk what was written so far."""
        self.write_rates()
        for writer in self._writers.values():
            writer.flush()
