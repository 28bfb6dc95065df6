"""Types that are found: the quick look at a column takes no text for what the query would not."""

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refit.casting import sealed_connection
from refit.inference import CANDIDATES, is_surely, read_fits
from tests.refit.test_text_casts import TEXTS


@settings(max_examples=100, deadline=None)
@example(texts=["007"], kind="int64")
@example(texts=["0", "-0"], kind="int64")
@example(texts=["00.5"], kind="float64")
@example(texts=["12345678901234567890"], kind="float64")
@example(texts=["1.0"], kind="int64")
@example(texts=["1"], kind="boolean")
@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=3), kind=st.sampled_from(CANDIDATES))
def test_what_is_surely_of_a_type_fits_it_in_the_query(texts, kind) -> None:
    texts = [text if text is None else text.replace("\0", "") for text in texts]
    column = pa.array(texts, pa.string())
    if is_surely(column, kind):
        with sealed_connection() as connection:
            assert read_fits(connection, column, kind) == [True] * len(texts)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", None, "-20", "0"], "int64"),
        (["0.5", "-0.25", "1e-3", "0.12345678901234567"], "float64"),
        (["true", "False"], "boolean"),
        (["2024-01-02"], "date"),
        (["2024-01-02 03:04:05", "2024-01-02"], "timestamp"),
        ([None], "int64"),
    ],
)
def test_usual_columns_need_no_query(texts, kind) -> None:
    assert is_surely(pa.array(texts, pa.string()), kind)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [(["007"], "int64"), (["-07"], "float64"), (["1234567890123456"], "float64"), (["1"], "boolean"), (["2024-1-2"], "date")],
)
def test_a_column_in_doubt_is_asked_for(texts, kind) -> None:
    assert not is_surely(pa.array(texts, pa.string()), kind)
