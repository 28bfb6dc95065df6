"""The hash of a key never changes: golden vectors, and a plain reading of the definition."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.hashing import hash_rows
from tests.refit.reference_hash import hash_of


@pytest.mark.parametrize(
    ("column", "golden"),
    [
        (
            pa.array([0, 1, -1, 2**62, None]),
            [9241045775539571097, 8964226309507555784, 6699616314628032042, 10330801383697622838, 4219408603045787357],
        ),
        (pa.array([0.0, -0.0, 1.5, None]), [9241045775539571097, 9241045775539571097, 15762827475104891123, 4219408603045787357]),
        (
            pa.array(["", "a", "12345678", "123456789", "Zürich", None]),
            [
                8217090173679840641,
                13688053203817553039,
                16962829770974295079,
                2286595700026765112,
                13683282475470231468,
                4219408603045787357,
            ],
        ),
        (pa.array([True, False, None]), [8964226309507555784, 9241045775539571097, 4219408603045787357]),
        (pa.array([dt.date(2024, 1, 2), None]), [5152733606133344211, 4219408603045787357]),
        (pa.array([dt.datetime(2024, 1, 2, 3, 4, 5, 6), None], pa.timestamp("us")), [8569851996940223733, 4219408603045787357]),  # noqa: DTZ001 -- stored without a zone
        (pa.array([b"\0\1\2\3", b"\xff\xfe\xfd\xfc"], pa.binary(4)), [871429435271496213, 11110048916496060620]),
    ],
)
def test_a_value_has_the_hash_that_it_has_had_since_the_first_version(column, golden) -> None:
    assert hash_rows([column]).tolist() == golden


INTEGERS = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=30)
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=40), st.just("x" * 1_024), st.just("é" * 600)), min_size=1, max_size=30)
FLOATS = st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1, max_size=30)


@given(st.data())
def test_rows_hash_as_the_definition_says(data) -> None:
    kinds = data.draw(st.lists(st.sampled_from([INTEGERS, TEXTS, FLOATS]), min_size=1, max_size=4))
    columns = [data.draw(kind) for kind in kinds]
    rows = min(map(len, columns))
    columns = [column[:rows] for column in columns]
    types = [{id(INTEGERS): pa.int64(), id(TEXTS): pa.string(), id(FLOATS): pa.float64()}[id(kind)] for kind in kinds]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    expected = [hash_of(*row) for row in zip(*columns, strict=True)]
    assert hash_rows(arrays).tolist() == expected
    start = data.draw(st.integers(0, rows))
    assert hash_rows([array.slice(start) for array in arrays]).tolist() == expected[start:]


def test_whole_numbers_of_any_width_hash_alike() -> None:
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8()]
    assert len({int(hash_rows([pa.array([7], kind)])[0]) for kind in kinds}) == 1


def test_where_a_value_ends_counts() -> None:
    assert len(set(hash_rows([pa.array(["ab", "a", ""]), pa.array(["c", "bc", "abc"])]).tolist())) == 3
    assert len(set(hash_rows([pa.array(["", None, "\0"])]).tolist())) == 3


def test_hashes_are_uniform_and_neighbours_differ() -> None:
    hashes = hash_rows([pa.array(range(100_000))])
    assert len(np.unique(hashes)) == 100_000
    for shift in (0, 20, 44):
        counts = np.bincount((hashes >> np.uint64(shift)) % 1_000, minlength=1_000)
        assert ((counts - 100) ** 2 / 100).sum() / 999 < 1.2
    assert 0.49 < (hashes > 2**63).mean() < 0.51
