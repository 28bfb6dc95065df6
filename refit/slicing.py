"""Batches out of records in a given order, within a graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from refit.packing import Packing, unpack

_BLOCK_ROWS, _BLOCK_BYTES = 8192, 1 << 20
_AHEAD = 2
_BLOCKS_AT_ONCE = 2
Columns = Callable[[Any], Any]


@dataclass(frozen=True)
class Records:
    """Packed rows as tensors: ``matrices`` are uint8 ``[rows, width]``, ``words`` are string tensors for ``packing.words``."""

    matrices: Sequence[Any]
    words: Sequence[Any]
    packing: Packing


@dataclass(frozen=True)
class Slicing:
    """How an order of rows is cut into batches.

    Attributes:
        batch_size: rows of a batch over all workers.
        drop_remainder: whether a short last batch is left out.
        worker: which worker's rows; batch rows ``worker``, ``worker + num_workers`` and so on.
        num_workers: how many share each batch.
    """

    batch_size: int
    drop_remainder: bool = False
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """See that the numbers fit.

        Raises:
            ValueError: they do not.
        """
        if self.batch_size < 1 or not 0 <= self.worker < self.num_workers <= self.batch_size:
            raise ValueError(f"workers are 0 to num_workers - 1, and each has a row of a full batch; received {self}")

    def num_steps(self, num_rows: int) -> int:
        """Batches that so many rows make."""
        return count_steps(num_rows, self.batch_size, drop_remainder=self.drop_remainder)


def count_steps(num_rows: int, batch_size: int, *, drop_remainder: bool = False) -> int:
    """Batches of an epoch; the last may be smaller, or is left out."""
    return num_rows // batch_size if drop_remainder else -(-num_rows // batch_size)


def slice_batches(records: Records, order: Any, *, first: Any, slicing: Slicing, weights: Any = None) -> Any:  # noqa: ANN401 -- tensors
    """Batches of records in a given order, from batch ``first`` on.

    Rows are taken for several batches at a time and cut then: a graph's fixed costs are as large as those of a batch.

    Args:
        records: what is read.
        order: ``[rows]``, numbers of rows.
        first: scalar int64.
        slicing: how the order is cut.
        weights: of classes, float32 ``[classes]``; None: rows keep the weights that they have.

    Returns:
        A dataset of what ``unpack`` makes of each batch.
    """

    def take(rows: Any) -> Any:  # noqa: ANN401 -- tensors
        return unpack([tf.gather(matrix, rows) for matrix in records.matrices], records.words, records.packing, weights)

    size = slicing.batch_size
    num_full = tf.cast(tf.size(order) // size, tf.int64)
    batches = _full_batches(order, take, first, num_full, records.packing.row_bytes, slicing)
    if slicing.drop_remainder:
        return batches
    has_rest = tf.cast(tf.size(order) % size > 0, tf.int64)
    rest = tf.data.Dataset.range(tf.maximum(first, num_full), num_full + has_rest)
    return batches.concatenate(rest.map(lambda step: take(order[step * size :][slicing.worker :: slicing.num_workers])))


def _full_batches(order: Any, take: Columns, first: Any, num_full: Any, row_bytes: int, slicing: Slicing) -> Any:  # noqa: ANN401 -- tensors
    size, own = slicing.batch_size, len(range(slicing.worker, slicing.batch_size, slicing.num_workers))
    per_block = max(1, min(_BLOCK_ROWS // own, _BLOCK_BYTES // (own * row_bytes)))

    def take_block(step: Any) -> Any:  # noqa: ANN401 -- tensors
        rows = order[step * size : tf.minimum(step + per_block, num_full) * size]
        if slicing.num_workers > 1:
            rows = tf.reshape(tf.reshape(rows, [-1, size])[:, slicing.worker :: slicing.num_workers], [-1])
        shape = [own] if per_block == 1 else [-1, own]
        return tf.nest.map_structure(lambda values: tf.reshape(values, [*shape, *values.shape[1:]]), take(rows))

    blocks = tf.data.Dataset.range(first, num_full, per_block).map(take_block, num_parallel_calls=_BLOCKS_AT_ONCE, deterministic=True)
    return blocks if per_block == 1 else blocks.flat_map(lambda *block: tf.data.Dataset.from_tensor_slices(block))


def finish(batches: tf.data.Dataset, *, device: str | None = None) -> tf.data.Dataset:
    """Batches a little ahead, in a fixed order, without the default optimisations: those copy captured tensors.

    Args:
        batches: what is read.
        device: where batches are copied to ahead of use; strings stay on the host, and with them all of their batch.

    Source: docs/decisions/0004-batches.md
    """
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False
    batches = batches.prefetch(_AHEAD).with_options(options)
    if device is None or any(spec.dtype == tf.string for spec in tf.nest.flatten(batches.element_spec)):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(device, _AHEAD))
