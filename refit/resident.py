"""Rows in memory: matrices of records, one permutation an epoch, one gather for a few batches."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from refit.packing import Packing, Pick, pack_groups
from refit.row_groups import RowGroups
from refit.slicing import Records, Slicing, finish, slice_batches

_THREADS = 4
_MAX_EPOCHS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Resident:
    """Rows of one side in memory, or of the pool of which the first ``num_validation`` of each epoch's order are validation rows."""

    records: Records
    class_weights: tuple[float, ...] | None = None
    num_validation: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.records.matrices[0]) - self.num_validation

    def _order(self, seed: int, epoch: Any) -> Any:  # noqa: ANN401 -- tensors
        rows = tf.range(len(self.records.matrices[0]))
        return tf.random.experimental.stateless_shuffle(rows, seed=tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]))

    def shuffled(self, *, seed: int, epoch: int, step: int, slicing: Slicing, device: str | None = None) -> tf.data.Dataset:
        """Batches of epoch after epoch without end, from a position on; the next epoch's order is drawn ahead."""
        weights = None if self.class_weights is None else tf.constant(self.class_weights, tf.float32)

        def one_epoch(number: Any, order: Any) -> Any:  # noqa: ANN401 -- tensors
            first = tf.where(number == epoch, tf.constant(step, tf.int64), tf.constant(0, tf.int64))
            return slice_batches(self.records, order[self.num_validation :], first=first, slicing=slicing, weights=weights)

        epochs = tf.data.Dataset.range(epoch, _MAX_EPOCHS).map(lambda number: (number, self._order(seed, number)))
        return finish(epochs.prefetch(1).flat_map(one_epoch), device=device)

    def in_order(self, slicing: Slicing) -> tf.data.Dataset:
        """Every row once, in the order of the snapshot."""
        return finish(slice_batches(self.records, tf.range(len(self.records.matrices[0])), first=tf.constant(0, tf.int64), slicing=slicing))

    def validation(self, *, seed: int, epoch: int | tf.Variable, slicing: Slicing) -> tf.data.Dataset:
        """The pool's validation rows of an epoch, in the epoch's order; of a variable, the epoch that it holds when reading begins."""

        def one_epoch(_: Any) -> Any:  # noqa: ANN401 -- tensors
            order = self._order(seed, tf.convert_to_tensor(epoch))[: self.num_validation]
            return slice_batches(self.records, order, first=tf.constant(0, tf.int64), slicing=slicing)

        return finish(tf.data.Dataset.range(1).flat_map(one_epoch))


def load_resident(
    groups: RowGroups, packing: Packing, *, class_weights: tuple[float, ...] | None = None, num_validation: int = 0
) -> Resident:
    """Read and pack all wanted rows.

    Raises:
        SourceError: a shard is missing or damaged.
        DataError: a label, a weight or an image is missing or cannot be used.
    """
    picks = [Pick(number, 0, int(count)) for number, count in enumerate(groups.num_chosen) if count]
    with ThreadPoolExecutor(_THREADS) as pool:
        matrices, words = pack_groups(groups, picks, packing, pool)
    tensors = [tf.experimental.dlpack.from_dlpack(matrix.__dlpack__()) for matrix in matrices]  # over the same memory
    return Resident(Records(tensors, [tf.constant(values.tolist()) for values in words], packing), class_weights, num_validation)
