"""Every expectation holds where it should, fails where it should, and counts what plain Python counts."""

import math

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit import expectations
from refit.config import parse_job
from refit.errors import JobError
from refit.expectations import check_expectation_types, check_expectations
from refit.schema import KEY_HASH, column_of
from refit.wording import percent

NAN = float("nan")


def job_with(expect):
    data = {"sources": [{"kind": "csv", "path": "none.csv"}], "expect": expect}
    return parse_job({"name": "job", "data": data, "target": {"column": "y"}})


def stored(**columns):
    table = pa.table(columns)
    return table.append_column(KEY_HASH, pa.array(np.arange(len(table)), pa.uint64()))


def columns_of(table):
    return {field.name: column_of(field) for field in table.schema if field.name != KEY_HASH}


def check(expect, /, **columns):
    table = stored(**columns)
    with duckdb.connect() as connection:
        connection.register("stored", table)
        return {record.name: record for record in check_expectations(job_with(expect), connection, "stored", columns_of(table))}


def check_one(expectation, values):
    (record,) = check({"c": expectation}, c=values).values()
    return record


FLOATS, TEXTS = pa.float64(), pa.string()
DATES, TIMES = pa.array([0, 1, None], pa.date32()), pa.array([0, 1_000_000, None], pa.timestamp("us"))


@pytest.mark.parametrize(
    ("expectation", "values", "detail"),
    [
        ({"not_null": True}, [1.0, 2.0], "all 2 values are there"),
        ({"max_missing_fraction": 0.5}, [1.0, NAN], "1 of 2 values (50 %) are missing; up to 50 % may be"),
        ({"min": 0}, [0.0, 2.5, None], "all 2 values are 0 or more, the smallest is 0.0"),
        ({"min": 0.1}, pa.array([0.1], pa.float32()), "all 1 value are 0.1 or more, the smallest is 0.1"),
        ({"max": 0.1}, pa.array([0.1], pa.float32()), "all 1 value are 0.1 or less, the largest is 0.1"),
        ({"max": 1e300}, pa.array([1e38], pa.float32()), "the largest is 1e+38"),
        ({"max": 1000}, pa.array([127], pa.int8()), "all 1 value are 1,000 or less, the largest is 127"),
        ({"max": 2.5}, [2], "the largest is 2"),
        ({"max": 3}, [1.0, NAN], "the largest is 1.0"),
        ({"min": "a"}, ["a", "b"], "the smallest is a"),
        ({"min": "1970-01-01", "otherwise": "warn"}, DATES, "the smallest is 1970-01-01"),
        ({"max": "1970-01-01 00:00:01"}, TIMES, "the largest is 1970-01-01 00:00:01"),
        ({"one_of": [1, 2.0, None]}, [1, 2, None], "all 2 values are among the 2 values listed"),
        ({"one_of": [0.1]}, pa.array([0.1], pa.float32()), "among the 1 value listed"),
        ({"one_of": [True]}, [True, None], "among the 1 value listed"),
        ({"one_of": ["1970-01-02", "1970-01-01"]}, DATES, "among the 2 values listed"),
        ({"one_of": ["a"], "max_other_fraction": 0.5}, ["a", "b"], "1 of 2 values (50 %) are none of those listed; up to 50 % may be"),
        ({"matches": "[a-z]+"}, ["a", "bc", None], "all 2 values match [a-z]+"),
        ({"unique": True}, [1.0, 2.0, NAN, None, None], "all 2 values differ"),
        ({"min": 0}, pa.array([None], FLOATS), "no value is there"),
        ({"unique": True}, pa.array([], TEXTS), "no value is there"),
    ],
)
def test_an_expectation_that_is_met_holds(expectation, values, detail):
    record = check_one(expectation, values)
    assert record.ok
    assert detail in record.detail


@pytest.mark.parametrize(
    ("expectation", "values", "detail"),
    [
        ({"not_null": True}, [1.0, NAN, None, 4.0], "2 of 4 values (50 %) are missing"),
        ({"max_missing_fraction": 0.4}, ["a", None], "1 of 2 values (50 %) are missing; at most 40 % may be"),
        ({"min": 0}, [1.0, -3.5, -1.0, NAN], "2 of 3 values (66.7 %) are below 0, the smallest is -3.5; for example -3.5, -1.0"),
        ({"min": 0}, [-math.inf], "the smallest is -inf"),
        ({"max": 3}, [1, 9, 9, 8, 7, 6], "are above 3, the largest is 9; for example 9, 8, 7"),
        ({"max": 0.09999}, pa.array([0.1], pa.float32()), "are above 0.09999"),
        ({"min": "b"}, ["a", "b"], "are below b, the smallest is a; for example 'a'"),
        ({"min": "1970-01-02"}, DATES, "1 of 2 values (50 %) are below 1970-01-02, the smallest is 1970-01-01"),
        ({"max": "1970-01-01"}, TIMES, "are above 1970-01-01, the largest is 1970-01-01 00:00:01"),
        ({"one_of": [1]}, [1, 2, 2, None], "2 of 3 values (66.7 %) are none of those listed; for example 2"),
        ({"one_of": [None]}, ["a"], "1 of 1 value (100 %) are none of those listed; for example 'a'"),
        ({"one_of": ["a"], "max_other_fraction": 0.4}, ["a", "b"], "at most 40 % may be; for example 'b'"),
        ({"matches": "[a-z]"}, ["a", "bc", "x" * 99], "2 of 3 values (66.7 %) do not match [a-z]; for example 'bc', 'xxx"),
        ({"unique": True}, ["a", "b", "a", "a", None, None], "2 of 4 values (50 %) repeat the value of another row; for example 'a'"),
    ],
)
def test_an_expectation_that_is_not_met_fails_and_tells_how_far(expectation, values, detail):
    record = check_one(expectation, values)
    assert not record.ok
    assert not record.only_warns
    assert detail in record.detail


def test_a_record_is_named_after_column_and_rule_and_may_only_warn():
    records = check({"b": {"min": 0, "unique": True, "otherwise": "warn"}, "a": {"not_null": True}}, a=["x"], b=[-1])
    assert list(records) == ["b: min", "b: unique", "a: not_null"]
    assert [record.only_warns for record in records.values()] == [True, True, False]


def test_examples_are_cut_where_they_are_long():
    detail = check_one({"matches": "a"}, ["é" * 1000]).detail
    assert "é" * 40 + "…" in detail
    assert len(detail) < 150


def test_tensors_can_be_required_and_unique():
    images = pa.array([b"abcd", b"abcd", None], pa.binary(4))
    field = pa.field("image", images.type, metadata={"shape": "[2, 2, 1]", "dtype": "uint8"})
    table = stored(image=images).cast(pa.schema([field, pa.field(KEY_HASH, pa.uint64())]))
    with duckdb.connect() as connection:
        connection.register("stored", table)
        job = job_with({"image": {"not_null": True, "unique": True}})
        details = [record.detail for record in check_expectations(job, connection, "stored", columns_of(table))]
    assert details == ["1 of 3 values (33.3 %) are missing", "1 of 2 values (50 %) repeat the value of another row"]


def test_quotes_in_names_and_values_are_no_sql():
    name = "a\"b'; DROP TABLE x; -- {0} $p0 ?"
    value = "'; DROP TABLE x; -- $p1"
    records = check({name: {"one_of": [value], "matches": ".*'; DROP.*", "min": "'"}}, **{name: [value]})
    assert all(record.ok for record in records.values())


def test_without_expectations_nothing_is_read():
    assert check({}, c=[1]) == {}
    assert check({"c": {}}, c=[1]) == {}


def test_the_connection_is_free_afterwards_and_files_can_be_read(tmp_path):
    table = stored(c=[1, 1, 2])
    pq.write_table(table, tmp_path / "a.parquet")
    rows = f"read_parquet(['{tmp_path / 'a.parquet'}'])"
    with duckdb.connect() as connection:
        records = list(check_expectations(job_with({"c": {"unique": True, "max": 1}}), connection, rows, columns_of(table)))
        assert connection.sql("SELECT 1").fetchall() == [(1,)]
    assert [record.ok for record in records] == [False, False]


# ---- counts are those of plain Python

numbers = st.lists(st.one_of(st.none(), st.just(NAN), st.integers(-3, 3).map(float), st.floats(allow_nan=False, width=32)), max_size=30)


@settings(max_examples=25, deadline=None)
@given(values=numbers, low=st.integers(-3, 3), listed=st.lists(st.integers(-3, 3), min_size=1, max_size=4))
def test_numbers_are_counted_as_python_counts_them(values, low, listed):
    expect = {"not_null": True, "min": low, "max": low, "one_of": listed, "unique": True}
    records = check({"c": expect}, c=pa.array(values, FLOATS))
    there = [value for value in values if value is not None and not math.isnan(value)]
    bad = {
        "not_null": len(values) - len(there),
        "min": sum(value < low for value in there),
        "max": sum(value > low for value in there),
        "one_of": sum(value not in listed for value in there),
        "unique": len(there) - len(set(there)),
    }
    for rule, count in bad.items():
        record = records[f"c: {rule}"]
        assert record.ok == (count == 0)
        assert count == 0 or record.detail.startswith(f"{count:,} of ")


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=20), listed=st.lists(st.text(max_size=3), min_size=1)
)
def test_texts_are_counted_as_python_counts_them(values, listed):
    records = check({"c": {"one_of": listed, "unique": True}}, c=pa.array(values, TEXTS))
    there = [value for value in values if value is not None]
    assert records["c: one_of"].ok == all(value in listed for value in there)
    assert records["c: unique"].ok == (len(set(there)) == len(there))


def test_values_are_told_apart_in_parts_as_in_one(monkeypatch):
    values = [*range(1000), *range(0, 1000, 10)]
    whole = check_one({"unique": True}, values)
    monkeypatch.setattr(expectations, "MAX_GROUPS", 64)
    parts = check_one({"unique": True}, values)
    assert whole.detail.startswith("100 of 1,100 values (9.09 %) repeat")
    assert parts.detail.partition(";")[0] == whole.detail.partition(";")[0]


# ---- faults of the job, without data

TYPES = {
    "number": pa.float64(),
    "byte": pa.int8(),
    "word": pa.string(),
    "day": pa.date32(),
    "time": pa.timestamp("us"),
    "flag": pa.bool_(),
}
COLUMNS = columns_of(pa.schema(TYPES.items()).empty_table())
IMAGE = column_of(pa.field("image", pa.binary(4), metadata={"shape": "[2, 2, 1]", "dtype": "uint8"}))


def refusal(expect):
    with pytest.raises(JobError) as caught:
        check_expectation_types(job_with(expect), COLUMNS | {"image": IMAGE})
    return caught.value


@pytest.mark.parametrize(
    ("name", "expectation", "where", "text"),
    [
        ("numbr", {"min": 0}, "", 'Did you mean "number"?'),
        ("number", {"min": "0"}, ".min", "Expected: a number. Received: '0'."),
        ("word", {"min": 0}, ".min", "Expected: text in quotes. Received: 0.0."),
        ("day", {"max": 20240101}, ".max", 'Expected: a date or time as text, such as "2024-01-31".'),
        ("day", {"min": "2024-02-31"}, ".min", "Received: '2024-02-31'."),
        ("time", {"min": "noon"}, ".min", "Received: 'noon'."),
        ("flag", {"min": 0}, ".min", "no value is smaller than another"),
        ("image", {"max": 0}, ".max", "no value is smaller than another"),
        ("number", {"min": 2, "max": 1}, "", "min 2 is above max 1"),
        ("day", {"min": "2024-01-02", "max": "2024-01-01"}, "", "min 2024-01-02 is above max 2024-01-01"),
        ("number", {"one_of": ["a"]}, ".one_of", "Received: 'a'."),
        ("number", {"one_of": [True]}, ".one_of", "Received: True."),
        ("byte", {"one_of": [1, 1000]}, ".one_of", "Expected: whole numbers that fit int8. Received: 1000."),
        ("byte", {"one_of": [1.5]}, ".one_of", "Received: 1.5."),
        ("byte", {"one_of": [10**60]}, ".one_of", "Received: 1000000"),
        ("word", {"one_of": ["a", 60601]}, ".one_of", "Expected: text in quotes. Received: 60601."),
        ("day", {"one_of": ["yesterday"]}, ".one_of", "Received: 'yesterday'."),
        ("flag", {"one_of": [0, 1]}, ".one_of", "Expected: true or false. Received: 0."),
        ("image", {"one_of": [1]}, ".one_of", "no one_of"),
        ("number", {"max_other_fraction": 0.1}, "", "says nothing without one_of"),
        ("number", {"matches": "a"}, ".matches", "a regular expression is for text"),
        ("word", {"matches": "(a"}, ".matches", "this is no regular expression: missing ): (a"),
        ("word", {"matches": "(?=a)"}, ".matches", "no lookahead"),
    ],
)
def test_an_expectation_that_its_column_cannot_have_is_a_fault_of_the_job(name, expectation, where, text):
    error = refusal({name: expectation})
    assert error.where == f"data.expect.{name}{where}"
    assert text in str(error)


@pytest.mark.parametrize(
    ("name", "expectation"),
    [
        ("number", {"min": 0, "max": 0, "one_of": [1, 2.5, None]}),
        ("byte", {"min": -1e9, "max": 0.5, "one_of": [1.0]}),
        ("word", {"min": "a", "max": "b", "one_of": ["1"], "matches": "(?i)a|b", "unique": True}),
        ("day", {"min": "2024-01-01", "max": "2024-01-01", "one_of": ["2024-02-29"]}),
        ("time", {"min": "2024-01-01", "max": "2024-01-01 00:00:01.5"}),
        ("flag", {"one_of": [True, False], "not_null": True}),
        ("image", {"not_null": True, "unique": True}),
    ],
)
def test_an_expectation_that_its_column_can_have_is_none(name, expectation):
    check_expectation_types(job_with({name: expectation}), COLUMNS | {"image": IMAGE})


def test_all_faults_are_told_together():
    text = str(refusal({"word": {"min": 0, "max": 1, "matches": "("}, "nmber": {}}))
    assert text.startswith("4 faults in data.expect:\n  - data.expect.word.min: ")
    for where in ("word.max", "word.matches", "nmber"):
        assert f"\n  - data.expect.{where}: " in text


def test_faults_of_the_job_are_told_before_any_row_is_read():
    with duckdb.connect() as connection, pytest.raises(JobError):
        list(check_expectations(job_with({"word": {"min": 0}}), connection, "no_such_table", COLUMNS))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (37 / 15_002, "0.247 %"),
        (1e-6, "below 0.01 %"),
        (0.99999, "above 99.99 %"),
        (0.9952, "99.52 %"),
        (1 / 3, "33.3 %"),
    ],
)
def test_a_share_is_told_as_percent(share, text):
    assert percent(share) == text
