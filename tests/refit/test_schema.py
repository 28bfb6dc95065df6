"""A column is the same in its four forms, and what differs from what was pinned is named."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refit.errors import DataError
from refit.records import Column, FeaturePlan
from refit.schema import (
    ARROW_TYPES,
    KEY_HASH,
    MISSING_INTEGER,
    SQL_TYPES,
    arrow_schema,
    column_of,
    column_type,
    field_of,
    is_number,
    is_whole,
    raw_input,
    tensor_to_numpy,
    to_numpy,
)

TENSOR = Column(name="image", type="fixed_size_binary[6]", shape=(1, 3, 2), dtype="uint8")


def plain(name):
    return Column(name="x", type=str(ARROW_TYPES[name]))


def feature(kind, column):
    return FeaturePlan(name=column.name, kind=kind, column=column)


@pytest.mark.parametrize("name", ARROW_TYPES)
def test_a_plain_column_comes_back_from_arrow_as_it_was(name) -> None:
    assert column_of(field_of(plain(name))) == plain(name)
    assert column_type(ARROW_TYPES[name]) == name
    assert name in SQL_TYPES


def test_a_tensor_column_comes_back_from_arrow_as_it_was() -> None:
    assert column_of(field_of(TENSOR)) == TENSOR
    schema = pa.ipc.read_schema(arrow_schema((TENSOR,)).serialize())
    assert next(column_of(field) for field in schema) == TENSOR
    assert schema.names == ["image", KEY_HASH]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_a_tensor_of_arrow_is_stored_in_its_own_type(dtype) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 4), dtype))
    column = column_of(pa.field("x", tensors.type))
    assert (column.shape, column.dtype) == ((3, 4), dtype)
    assert field_of(column).type.byte_width == 12 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("arrow_type", "name"),
    [
        (pa.uint8(), "int64"),
        (pa.uint64(), "int64"),
        (pa.float16(), "float64"),
        (pa.decimal128(10, 2), "float64"),
        (pa.timestamp("ns", tz="UTC"), "timestamp"),
        (pa.date64(), "date"),
        (pa.large_string(), "string"),
        (pa.list_(pa.int8()), "string"),
        (pa.null(), "string"),
    ],
)
def test_a_type_of_arrow_is_stored_as_the_nearest_of_ours(arrow_type, name) -> None:
    assert column_type(arrow_type) == name


@pytest.mark.parametrize(
    ("name", "number", "whole"),
    [("boolean", True, True), ("int8", True, True), ("float32", True, False), ("string", False, False), ("date", False, False)],
)
def test_numbers_and_whole_numbers_are_told_apart(name, number, whole) -> None:
    assert (is_number(plain(name)), is_whole(plain(name))) == (number, whole)
    assert not is_number(TENSOR)


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("numeric", plain("int8"), ("float32", ())),
        ("image", TENSOR, ("uint8", (1, 3, 2))),
        ("category", plain("int8"), ("int64", ())),
        ("category", plain("boolean"), ("int64", ())),
        ("category", plain("string"), ("string", ())),
    ],
)
def test_the_raw_input_of_a_feature_follows_from_its_kind_and_column(kind, column, expected) -> None:
    assert raw_input(feature(kind, column)) == expected


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=3)), st.integers(0, 3))
def test_tensors_come_back_from_arrow_as_they_were_also_from_slices_and_chunks(values, start) -> None:
    width = int(np.prod(values.shape[1:])) * 4
    column = Column(name="x", type=f"fixed_size_binary[{width}]", shape=values.shape[1:], dtype="float32")
    array = pa.array([row.tobytes() for row in values], pa.binary(width))
    chunks = pa.chunked_array([array.slice(start), array])
    expected = np.concatenate([values[start:], values])
    np.testing.assert_array_equal(tensor_to_numpy(chunks, column), expected)


def test_no_tensors_are_an_empty_array_of_the_right_shape() -> None:
    empty = tensor_to_numpy(pa.chunked_array([], pa.binary(6)), TENSOR)
    assert (empty.shape, empty.dtype) == ((0, 1, 3, 2), np.uint8)


def test_a_missing_tensor_is_refused_with_the_columns_name() -> None:
    with pytest.raises(DataError, match='1 values of "image" are missing'):
        tensor_to_numpy(pa.chunked_array([pa.array([b"123456", None], pa.binary(6))]), TENSOR)


def test_missing_values_have_their_own_stand_in() -> None:
    numbers = to_numpy(pa.chunked_array([[1, None]]), feature("numeric", plain("int64")))
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, [1, np.nan])
    whole = to_numpy(pa.chunked_array([pa.array([True, None])]), feature("category", plain("boolean")))
    assert (whole.dtype, whole.tolist()) == (np.int64, [1, MISSING_INTEGER])
    words = to_numpy(pa.chunked_array([["ä", None]]), feature("category", plain("string")))
    assert words.tolist() == ["ä", ""]
