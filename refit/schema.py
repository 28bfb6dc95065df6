"""Columns in their four forms: what the records say, Arrow fields, raw tensors of the model's inputs, DuckDB types.

A tensor column is ``fixed_size_binary`` in Arrow; the shape of one row and the dtype of its elements stand in the
field's metadata, so that any Parquet reader sees an ordinary column. Loads without TensorFlow.
"""

import json
import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from refit.config import ColumnType, TimePart, TimestampFeature
from refit.errors import DataError
from refit.records import Column, FeaturePlan

KEY_HASH = "_key_hash"
_INT64_DIGITS = 18
BINARY = pa.binary()  # encoded images: bytes as a file has them

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "boolean": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
}
SQL_TYPES: dict[ColumnType, str] = {
    "boolean": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
}


def column_type(arrow_type: pa.DataType) -> ColumnType:
    """The job's name of the type that a column of this Arrow type is stored as; unknown types become strings."""
    exact = next((name for name, known in ARROW_TYPES.items() if known == arrow_type), None)
    if exact is not None:
        return exact
    if pa.types.is_decimal(arrow_type) and arrow_type.scale == 0:  # a float would keep 15 of its digits
        return "int64" if arrow_type.precision <= _INT64_DIGITS else "string"
    tests: list[tuple[ColumnType, bool]] = [
        ("int64", pa.types.is_integer(arrow_type)),
        ("float64", pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type)),
        ("timestamp", pa.types.is_timestamp(arrow_type)),
        ("date", pa.types.is_date(arrow_type)),
    ]
    return next((name for name, holds in tests if holds), "string")


def column_of(field: pa.Field) -> Column:
    """Describe an Arrow field; tensor columns by their metadata, or as Arrow's own fixed-shape tensors."""
    if isinstance(field.type, pa.FixedShapeTensorType):
        return _tensor(field.name, tuple(field.type.shape), str(field.type.value_type))
    metadata = field.metadata or {}
    if pa.types.is_fixed_size_binary(field.type) and b"shape" in metadata:
        return _tensor(field.name, tuple(json.loads(metadata[b"shape"])), metadata[b"dtype"].decode())
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or pa.types.is_fixed_size_binary(field.type):
        return Column(name=field.name, type=str(BINARY))
    return Column(name=field.name, type=str(ARROW_TYPES[column_type(field.type)]))


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> Column:
    dtype = {"float": "float32", "double": "float64", "halffloat": "float16"}.get(dtype, dtype)
    width = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return Column(name=name, type=str(pa.binary(width)), shape=shape, dtype=dtype)


def field_of(column: Column) -> pa.Field:
    """The Arrow field that a column is stored as."""
    if column.shape is None:
        known = {str(t): t for t in (*ARROW_TYPES.values(), BINARY)}
        return pa.field(column.name, known[column.type])
    width = int(np.prod(column.shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize
    return pa.field(column.name, pa.binary(width), metadata={"shape": json.dumps(column.shape), "dtype": str(column.dtype)})


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The schema of a shard: the columns, then the hash of the key."""
    return pa.schema([*(field_of(column) for column in columns), pa.field(KEY_HASH, pa.uint64(), nullable=False)])


def is_number(column: Column) -> bool:
    """Whether the column holds numbers or truth values, one a row."""
    arrow_type = field_of(column).type
    return bool(pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type) or pa.types.is_boolean(arrow_type))


def is_whole(column: Column) -> bool:
    """Whether the column holds whole numbers or truth values, one a row."""
    return is_number(column) and not pa.types.is_floating(field_of(column).type)


def is_time(column: Column) -> bool:
    """Whether the column holds dates or moments, one a row."""
    arrow_type = field_of(column).type
    return bool(pa.types.is_date(arrow_type) or pa.types.is_timestamp(arrow_type))


def time_parts(column: Column, feature: TimestampFeature) -> list[TimePart]:
    """The parts of a date or a moment that its feature has."""
    usual: list[TimePart] = ["weekday", "year_day"] if pa.types.is_date(field_of(column).type) else ["hour", "weekday", "year_day"]
    return usual if feature.parts is None else list(feature.parts)


def is_encoded(column: Column) -> bool:
    """Whether the column holds files as bytes."""
    return column.type == str(BINARY)


def signature_name(column: str) -> str:
    """The input of an exported model for a column: ASCII letters, digits and underscores, a letter first.

    Source: TensorFlow takes no others, see ``sanitize_arg_name`` in tensorflow/core/function/polymorphism/function_type.py.
    """
    name = re.sub(r"[^A-Za-z0-9_]", lambda found: "_" if found[0].isascii() else f"u{ord(found[0]):x}", column)
    return name if name[:1].isalpha() else f"arg_{name}"


def check_names(columns: Iterable[str]) -> None:
    """See that columns can be told apart as inputs of a model.

    Raises:
        DataError: two have one name but for signs, spaces or capitals, or one has a slash, which Keras does not take.
    """
    seen: dict[str, str] = {}
    for column in columns:
        remedy = "Give it another name: data.derive makes a column of it."
        if "/" in column:
            raise DataError(f'"{column}" cannot be an input of a model: its name has a slash.', where="features", remedy=remedy)
        other = seen.setdefault(signature_name(column).casefold(), column)
        if other != column:
            raise DataError(f'"{other}" and "{column}" would be one input of the model.', where="features", remedy=remedy)


def raw_input(feature: FeaturePlan) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of one row of the model's raw input for a feature; a moment is microseconds since 1970."""
    if feature.kind == "numeric":
        return "float32", ()
    if feature.column.shape is not None:
        return str(feature.column.dtype), tuple(feature.column.shape)
    if feature.kind == "timestamp":
        return "int64", ()
    return ("int64", ()) if is_whole(feature.column) else ("string", ())


def to_numpy(values: pa.ChunkedArray, feature: FeaturePlan) -> np.ndarray:
    """Raw values of a feature as the model's input takes them: ``[rows, *shape]`` in the dtype of ``raw_input``.

    A missing number is NaN, a missing string is empty, a missing whole-number category or moment is ``MISSING_INTEGER``.

    Raises:
        DataError: an image or a vector is missing.
    """
    if feature.column.shape is not None:
        return tensor_to_numpy(values, feature.column)
    if is_encoded(feature.column):
        check_present(values, feature.column)
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=object)
    if feature.kind == "numeric":
        return numbers_to_numpy(values)
    if feature.kind == "timestamp":
        return moments_to_numpy(values)
    if is_whole(feature.column):
        return np.asarray(values.cast(pa.int64()).fill_null(MISSING_INTEGER).to_numpy(), dtype=np.int64)
    return np.asarray(values.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False), dtype=object)


MISSING_INTEGER = -(2**63)


def numbers_to_numpy(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers or truth values as float32 ``[rows]``; missing ones are NaN. A view of Arrow's buffer where that holds such values."""
    if pa.types.is_float32(values.type):
        return np.asarray(values.fill_null(float("nan")).to_numpy())
    numbers = values.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        return np.asarray(numbers, dtype=np.float32)


def moments_to_numpy(values: pa.ChunkedArray) -> np.ndarray:
    """Dates or moments as int64 ``[rows]``, microseconds since 1970; ``MISSING_INTEGER`` where there is none."""
    moments = values.cast(pa.timestamp("us")).cast(pa.int64())
    return np.asarray(moments.fill_null(MISSING_INTEGER).to_numpy(), dtype=np.int64)


def tensor_to_numpy(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    """A tensor column as ``[rows, *shape]``; a view of Arrow's buffer where there is one chunk.

    Raises:
        DataError: a value is missing.
    """
    check_present(values, column)
    parts = [_tensor_view(chunk, column) for chunk in values.chunks if len(chunk)]
    if not parts:
        return np.empty((0, *(column.shape or ())), dtype=column.dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_present(values: pa.ChunkedArray, column: Column) -> None:
    """See that a column of tensors or of encoded images has a value in every row.

    Raises:
        DataError: one is missing.
    """
    if values.null_count:
        raise DataError(
            f'{values.null_count} values of "{column.name}" are missing, a tensor column has none.', remedy="Filter them: data.where."
        )


def _tensor_view(chunk: pa.Array, column: Column) -> np.ndarray:
    width = chunk.type.byte_width
    buffer = np.frombuffer(chunk.buffers()[1], dtype=np.uint8, count=len(chunk) * width, offset=chunk.offset * width)
    return buffer.view(np.dtype(column.dtype)).reshape(len(chunk), *(column.shape or ()))
