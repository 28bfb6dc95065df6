"""Rows as records: all fields of a row side by side in a matrix of bytes, and back into columns within a graph.

Values of one dtype lie together, so that a batch needs one bit-cast for all of them. A wide tensor, such as an image, has a matrix of
its own, of which a batch is a gather and nothing more. What has no fixed width lies beside the matrices: a string is an int32 code into
the words of its column, encoded bytes are the number of their row.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from refit.records import FeaturePlan, TargetPlan
from refit.row_groups import RowGroups
from refit.schema import check_present, is_encoded, raw_input, to_numpy
from refit.targets import encode_labels
from refit.weights import sample_weights

LABEL, WEIGHT = "_label", "_weight"
_ALIGNMENT = 8
_TENSOR_ALIGNMENT = 64  # bytes; a tensor over memory that begins elsewhere aborts the process. Source: EIGEN_MAX_ALIGN_BYTES
_WIDE_BYTES = 512
_ORDER = ("int64", "float64", "float32", "int32")


@dataclass(frozen=True)
class Field:
    """Where a column lies: bytes ``[offset, offset + width)`` of a matrix's row; ``beside`` says how int32 codes name what lies beside."""

    name: str
    column: str
    dtype: str
    shape: tuple[int, ...]
    beside: Literal["words", "bytes"] | None = None
    offset: int = 0
    matrix: int = 0

    @property
    def width(self) -> int:
        """Bytes of the column in a record."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def element(self) -> str:
        """The column in a batch, as people read it."""
        return f"{'string' if self.beside else self.dtype} {['batch', *self.shape]}".replace("'", "")


@dataclass(frozen=True)
class Packing:
    """How rows become records: what lies where, and what it is made of.

    Attributes:
        fields: in order of matrices, and of offsets there.
        widths: bytes of a row of each matrix; the first holds all but wide tensors.
        features: by which raw values become inputs.
        target: by which labels become numbers.
        sample_weight: the column of weights, where there is one.
    """

    fields: tuple[Field, ...]
    widths: tuple[int, ...]
    features: tuple[FeaturePlan, ...]
    target: TargetPlan
    sample_weight: str | None

    @property
    def row_bytes(self) -> int:
        """Bytes of a record in all matrices."""
        return sum(self.widths)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(field.column for field in self.fields))

    @property
    def words(self) -> tuple[Field, ...]:
        """The fields of which something lies beside the matrix."""
        return tuple(field for field in self.fields if field.beside)


# ---- what lies where


def plan_packing(features: Sequence[FeaturePlan], target: TargetPlan, sample_weight: str | None) -> Packing:
    """Lay features, label and weight out in a record."""
    fields = [*map(_feature_field, features), _label_field(target)]
    if sample_weight is not None:
        fields.append(Field(WEIGHT, sample_weight, "float32", ()))
    wide = [field for field in fields if field.width >= _WIDE_BYTES]
    placed, offset = [], 0
    for field in sorted((field for field in fields if field not in wide), key=_rank):
        offset = _aligned(offset, np.dtype(field.dtype).itemsize)
        placed.append(replace(field, offset=offset))
        offset += field.width
    placed += [replace(field, matrix=number) for number, field in enumerate(wide, start=1)]
    widths = (_aligned(offset, _ALIGNMENT), *(field.width for field in wide))
    return Packing(tuple(placed), widths, tuple(features), target, sample_weight)


def _feature_field(plan: FeaturePlan) -> Field:
    if is_encoded(plan.column):
        return Field(plan.name, plan.name, "int32", (), "bytes")
    dtype, shape = raw_input(plan)
    return Field(plan.name, plan.name, "int32", (), "words") if dtype == "string" else Field(plan.name, plan.name, dtype, shape)


def _label_field(target: TargetPlan) -> Field:
    if target.kind == "multilabel":
        return Field(LABEL, target.name, "uint8", (len(target.classes or ()),))
    return Field(LABEL, target.name, "float32" if target.kind == "regression" else "int32", ())


def _rank(field: Field) -> tuple[bool, int]:
    """Single values first and those of one dtype together; then tensors, wide elements first."""
    if field.shape == () and field.dtype in _ORDER:
        return False, _ORDER.index(field.dtype)
    return True, -np.dtype(field.dtype).itemsize


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _aligned_zeros(num_rows: int, row_bytes: int) -> np.ndarray:
    """Zeros, uint8 ``[rows, row_bytes]``, that begin where TensorFlow wants a tensor to begin, which NumPy does not promise."""
    memory = np.zeros(num_rows * row_bytes + _TENSOR_ALIGNMENT, dtype=np.uint8)
    first = -memory.ctypes.data % _TENSOR_ALIGNMENT
    return memory[first : first + num_rows * row_bytes].reshape(num_rows, row_bytes)


# ---- rows into records


@dataclass(frozen=True)
class Pick:
    """Some of a row group's wanted rows, counted among them: ``[first, stop)``."""

    group: int
    first: int
    stop: int

    def __len__(self) -> int:
        """Rows."""
        return self.stop - self.first


def pack_groups(
    groups: RowGroups, picks: Sequence[Pick], packing: Packing, pool: Executor
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Read row groups and pack their rows one after another, several groups at a time.

    Args:
        groups: what is read.
        picks: which rows.
        packing: how.
        pool: in which groups are read.

    Returns:
        The matrices, uint8 ``[rows, width]``, which must stay unchanged while datasets use them; and for each of ``packing.words``
        an array of bytes objects that its codes name, of one element at least.

    Raises:
        SourceError: a shard is missing or damaged.
        DataError: a label is missing or was never seen in the train split, a weight is none, or an image is missing.
    """
    starts = [0, *accumulate(map(len, picks))]
    matrices = tuple(_aligned_zeros(starts[-1], width) for width in packing.widths)

    def load(pick: Pick, start: int) -> list[pa.Array]:
        table = groups.read(pick.group).slice(pick.first, len(pick))
        return _pack_table(table, packing, [matrix[start : start + len(pick)] for matrix in matrices], start)

    parts = list(pool.map(load, picks, starts))
    return matrices, _join_words(parts, starts[:-1], packing, matrices[0])


def _pack_table(table: pa.Table, packing: Packing, out: Sequence[np.ndarray], first_row: int) -> list[pa.Array]:
    """Write rows; return for each of ``packing.words`` what its codes name: distinct words, or the bytes of each row."""
    beside = []
    plans = {plan.name: plan for plan in packing.features}
    for field in packing.fields:
        values = table[field.column]
        if field.beside == "bytes":
            check_present(values, plans[field.name].column)
            numbers, words = np.arange(first_row, first_row + len(table), dtype=np.int32), values.combine_chunks()
            beside.append(words)
        elif field.beside == "words":
            numbers, words = _encode(values)
            beside.append(words)
        elif field.name == LABEL:
            numbers = encode_labels(values, packing.target)
        elif field.name == WEIGHT:
            numbers = sample_weights(values, field.column)
        else:
            numbers = to_numpy(values, plans[field.name])
        _write(numbers, field, out[field.matrix])
    return beside


def _encode(values: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes int32 ``[rows]`` and the distinct words that they name; a missing word is empty."""
    if not pa.types.is_dictionary(values.type):
        values = pc.dictionary_encode(values.cast(pa.string()))
    joined = values.unify_dictionaries().combine_chunks()
    joined = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
    words = joined.dictionary.cast(pa.binary())
    if not joined.null_count:
        return np.asarray(joined.indices.to_numpy(), dtype=np.int32), words
    codes = joined.indices.fill_null(len(words))
    return np.asarray(codes.to_numpy(), dtype=np.int32), pa.concat_arrays([words, pa.array([b""], pa.binary())])


def _write(values: np.ndarray, field: Field, out: np.ndarray) -> None:
    place = _place(field, out)
    if field.shape == ():
        place.view(field.dtype)[:, 0] = values
    else:
        place[:] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), field.width)


def _place(field: Field, matrix: np.ndarray) -> np.ndarray:
    return matrix[:, field.offset : field.offset + field.width]


def _join_words(parts: Sequence[list[pa.Array]], starts: Sequence[int], packing: Packing, matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """Make words of parts words of all rows; codes are rewritten where they change."""
    joined = []
    for number, field in enumerate(packing.words):
        arrays = [part[number] for part in parts]
        if field.beside == "words":
            arrays = [_unify(arrays, starts, _place(field, matrix).view(field.dtype)[:, 0])]
        values = [array.to_numpy(zero_copy_only=False) for array in arrays if len(array)]
        joined.append(np.concatenate(values) if values else np.array([b""], dtype=object))
    return tuple(joined)


def _unify(arrays: list[pa.Array], starts: Sequence[int], codes: np.ndarray) -> pa.Array:
    if all(array.equals(arrays[0]) for array in arrays[1:]):
        return arrays[0] if arrays else pa.array([], pa.binary())
    own = [pa.DictionaryArray.from_arrays(np.arange(len(array), dtype=np.int32), array) for array in arrays]
    unified = pa.chunked_array(own).unify_dictionaries()
    for chunk, start, stop in zip(unified.chunks, starts, [*starts[1:], len(codes)], strict=True):
        if len(chunk):
            codes[start:stop] = np.asarray(chunk.indices.to_numpy())[codes[start:stop]]
    return unified.chunk(0).dictionary


# ---- and back into columns, within a graph


def unpack(blocks: Sequence[Any], words: Sequence[Any], packing: Packing, class_weights: Any = None) -> tuple[Any, ...]:  # noqa: ANN401 -- tensors
    """Columns of records.

    Args:
        blocks: rows of each matrix, uint8 ``[rows, width]``.
        words: string ``[values]`` for each of ``packing.words``.
        packing: of the records.
        class_weights: float32 ``[classes]`` by which the weights of rows are multiplied; None: they are left alone.

    Returns:
        ``(features, label)``, or ``(features, label, weight)`` where rows have weights: features maps each column to
        ``[rows, *shape]``; label and weight are ``[rows]``.
    """
    columns = dict(_columns(blocks, packing))
    for field, values in zip(packing.words, words, strict=True):
        columns[field.name] = tf.gather(values, columns[field.name])
    label, weight = columns.pop(LABEL), columns.pop(WEIGHT, None)
    features = {plan.name: columns[plan.name] for plan in packing.features}
    if class_weights is not None:
        of_class = tf.gather(class_weights, label)
        weight = of_class if weight is None else weight * of_class
    return (features, label) if weight is None else (features, label, weight)


def _columns(blocks: Sequence[Any], packing: Packing) -> Iterator[tuple[str, Any]]:
    for (is_tensor, dtype), group in groupby(packing.fields, key=lambda field: (field.shape != (), field.dtype)):
        fields = list(group)
        if is_tensor:
            yield from ((f.name, _bitcast(blocks[f.matrix], f.offset, f.width, dtype, f.shape)) for f in fields)
        else:
            first, last = fields[0], fields[-1]
            joined = _bitcast(blocks[0], first.offset, last.offset + last.width - first.offset, dtype, (len(fields),))
            yield from zip((field.name for field in fields), tf.unstack(joined, num=len(fields), axis=1), strict=True)


def _bitcast(block: Any, offset: int, width: int, dtype: str, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 -- tensors
    raw, size = block if width == block.shape[1] else block[:, offset : offset + width], np.dtype(dtype).itemsize
    values = tf.bitcast(raw if size == 1 else tf.reshape(raw, [-1, width // size, size]), dtype)
    return tf.reshape(values, [-1, *shape])
