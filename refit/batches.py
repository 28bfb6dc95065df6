"""Parquet to tf.data: a batch is a pure function of (snapshot, split, seed, epoch, step).

All fixed-width columns of a row lie side by side in one matrix of bytes. An epoch's order is one stateless permutation, a
batch one gather of rows, and columns are bit-cast slices of them. There is no shuffle buffer and no hidden state, so that
any batch of any epoch can be produced first, in any process.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from refit.config import Job
from refit.errors import DataError
from refit.features import encode_labels, fit_plans, plan_target, resolve_features
from refit.layout import Layout, RunLayout
from refit.records import BatchesRecord, FeaturePlan, Side, SnapshotRecord, TargetPlan
from refit.schema import raw_input, to_numpy
from refit.splits import Rows, read_rows

_ALIGNMENT = 8
_TENSOR_ALIGNMENT = 64  # bytes; a tensor over memory that begins elsewhere aborts the process. Source: EIGEN_MAX_ALIGN_BYTES
LABEL = "_label"


class Position(NamedTuple):
    """A place in training: the epoch and step that come next, both from 0."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Field:
    """Where a column lies in a row of the matrix. Strings lie as int32 codes into ``words``."""

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    words: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """Bytes of the column in a row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def element(self) -> str:
        """The column in a batch, as people read it."""
        return f"{'string' if self.words is not None else self.dtype} {['batch', *self.shape]}".replace("'", "")


@dataclass(frozen=True)
class Packed:
    """Rows of one split in RAM: ``matrix`` is uint8 ``[rows, row_bytes]``; it must stay unchanged while datasets use it."""

    matrix: np.ndarray
    fields: tuple[Field, ...]

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.matrix)


def pack_rows(rows: Rows, features: Iterable[FeaturePlan], target: TargetPlan) -> Packed:
    """Pack features and label of every row.

    Raises:
        DataError: a label is missing or was never seen in the train split, or an image is missing.
    """
    columns = [(plan.name, *_packable(rows.table[plan.name], plan)) for plan in features]
    columns.append((LABEL, encode_labels(rows.table[target.name], target), None))
    fields, offset = [], 0
    for name, values, words in columns:
        field = Field(name=name, offset=offset, dtype=values.dtype.name, shape=values.shape[1:], words=words)
        fields.append(field)
        offset = _aligned(offset + field.width)
    matrix = _aligned_zeros(len(rows.table), offset)
    for field, (_, values, _) in zip(fields, columns, strict=True):
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), field.width)
        matrix[:, field.offset : field.offset + field.width] = raw
    return Packed(matrix=matrix, fields=tuple(fields))


def _aligned_zeros(rows: int, width: int) -> np.ndarray:
    """Zeros that begin where TensorFlow wants a tensor to begin, which NumPy does not promise."""
    memory = np.zeros(rows * width + _TENSOR_ALIGNMENT, dtype=np.uint8)
    first = -memory.ctypes.data % _TENSOR_ALIGNMENT
    return memory[first : first + rows * width].reshape(rows, width)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _packable(values: pa.ChunkedArray, plan: FeaturePlan) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if raw_input(plan)[0] != "string":
        return to_numpy(values, plan), None
    encoded = pc.dictionary_encode(values.cast(pa.string()).fill_null("").combine_chunks())
    return np.asarray(encoded.indices.to_numpy(), dtype=np.int32), tuple(encoded.dictionary.to_pylist()) or ("",)


def count_steps(num_rows: int, batch_size: int) -> int:
    """Batches of an epoch; the last may be smaller."""
    return -(-num_rows // batch_size)


def read_batches(packed: Packed, *, batch_size: int, seed: int, start: Position) -> tf.data.Dataset:
    """Stream shuffled batches without end, in the order that (seed, epoch, step) fixes.

    Args:
        packed: the train split.
        batch_size: rows a batch; the last of an epoch may be smaller.
        seed: of the order.
        start: the first batch to produce; earlier ones are neither read nor computed.

    Returns:
        Elements ``(features, label)``: features maps each column to ``[batch, *shape]``; label is ``[batch]``.
    """
    matrix, steps, num_rows = _as_constant(packed.matrix), count_steps(packed.num_rows, batch_size), packed.num_rows

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(num_rows), seed=tf.stack([tf.constant(seed, tf.int64), epoch]))
        first = tf.where(epoch == start.epoch, tf.constant(start.step, tf.int64), tf.constant(0, tf.int64))
        return tf.data.Dataset.range(first, steps).map(lambda step: order[step * batch_size : (step + 1) * batch_size])

    epochs = tf.data.Dataset.range(start.epoch, np.iinfo(np.int64).max)
    return _finish(epochs.flat_map(one_epoch).map(lambda rows: tf.gather(matrix, rows)), packed.fields)


def read_in_order(packed: Packed, *, batch_size: int) -> tf.data.Dataset:
    """Every row once, in the order of the snapshot; the last batch may be smaller. Elements as in ``read_batches``."""
    matrix, num_rows = _as_constant(packed.matrix), packed.num_rows
    starts = tf.data.Dataset.range(0, num_rows, batch_size)
    dataset = _finish(starts.map(lambda start: matrix[start : tf.minimum(start + batch_size, num_rows)]), packed.fields)
    return dataset.apply(tf.data.experimental.assert_cardinality(count_steps(num_rows, batch_size)))


def _finish(rows: tf.data.Dataset, fields: tuple[Field, ...]) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # The default optimisations copy captured constants. Source: docs/decisions/0004-batches.md
    options.experimental_optimization.apply_default_optimizations = False
    return rows.map(lambda block: _unpack(block, fields)).prefetch(2).with_options(options)


def _unpack(block: tf.Tensor, fields: tuple[Field, ...]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    columns = {field.name: _column(block, field) for field in fields}
    label = columns.pop(LABEL)
    return columns, label


def _column(block: tf.Tensor, field: Field) -> tf.Tensor:
    raw = block[:, field.offset : field.offset + field.width]
    size = np.dtype(field.dtype).itemsize
    values = raw if size == 1 else tf.bitcast(tf.reshape(raw, [-1, field.width // size, size]), field.dtype)
    values = tf.ensure_shape(tf.reshape(values, [-1, *field.shape]), [None, *field.shape])
    return values if field.words is None else tf.gather(tf.constant(field.words), values)


def _as_constant(matrix: np.ndarray) -> tf.Tensor:
    """The matrix as a tensor over the same memory."""
    return tf.experimental.dlpack.from_dlpack(matrix.__dlpack__())


def plan_batches(job: Job, snapshot: SnapshotRecord, train: Rows) -> BatchesRecord:
    """Decide how rows become batches: features and target with their statistics, elements, steps.

    Args:
        job: the job.
        snapshot: the data.
        train: all columns of the train split.

    Raises:
        DataError: a feature or the target cannot be made of its column, or there are fewer rows than a batch.
    """
    if len(train.table) < job.fit.batch_size:
        raise DataError(
            f"the train split has {len(train.table)} rows, fewer than a batch of {job.fit.batch_size}.",
            where="fit.batch_size",
            remedy="Lower it, or add rows.",
        )
    features = fit_plans(resolve_features(job, snapshot), snapshot, train)
    target = plan_target(job, snapshot, train.table[job.target.column])
    sample = pack_rows(Rows("train", train.table.slice(0, 1)), features, target)
    return BatchesRecord(
        engine="resident",
        row_bytes=sample.matrix.shape[1],
        batch_size=job.fit.batch_size,
        steps_per_epoch=count_steps(len(train.table), job.fit.batch_size),
        elements={field.name: field.element for field in sample.fields},
        features=features,
        target=target,
    )


def load_side(snapshot: SnapshotRecord, plan: BatchesRecord, layout: Layout, run: RunLayout, side: Side) -> Packed:
    """Read and pack one side of the split."""
    columns = [*(feature.name for feature in plan.features), plan.target.name]
    return pack_rows(read_rows(snapshot, layout, run, side, columns), plan.features, plan.target)
