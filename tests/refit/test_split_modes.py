"""Each way to divide rows over real shards: what it promises, what it leaves out, and what it refuses in which words."""

import datetime as dt
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from refit.config import parse_job
from refit.errors import DataError, JobError
from refit.records import SIDES
from refit.splits import read_sides
from refit.validation import check_sides
from tests.refit.divided import Home, by, rows_of


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def refusal(home, table, kind=DataError, **changes):
    with pytest.raises(kind) as caught:
        home.split(home.store(table), **changes)
    assert not home.layout.run("job", "r1").split_dir.exists()
    assert not list(home.home.root.glob("splits/*"))
    return str(caught.value)


def ids(sides, side):
    return sorted(row for row, found in sides.items() if found == side)


# ---- group


def test_rows_without_a_group_are_refused_with_their_number(home) -> None:
    table = rows_of(range(60), group=pa.array([None if i % 20 == 0 else f"g{i // 5}" for i in range(60)]))
    text = refusal(home, table, **by("group"))
    assert 'split.group: 3 of 60 rows have no "group": what belongs together cannot be told.' in text
    assert """split.where: '"group" IS NOT NULL'""" in text
    record, _ = home.split(home.store(table), **by("group", where='"group" IS NOT NULL'))
    assert record.left_out == {"where": 3}


@pytest.mark.parametrize(
    ("mode", "more", "where"),
    [
        ("group", {"group": "grup"}, "split.group"),
        ("stratified", {"stratify": "grup"}, "split.stratify"),
        ("column", {"column": "grup"}, "split.column"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(home, mode, more, where) -> None:
    assert f'{where}: "grup" is no column of the data. Did you mean "group"?' in refusal(home, rows_of(range(30)), **by(mode, **more))


def test_rows_are_not_divided_by_tensors(home) -> None:
    image = pa.array([bytes([i]) * 4 for i in range(30)], pa.binary(4))
    field = pa.field("image", image.type, metadata={"shape": "[2, 2]", "dtype": "uint8"})
    table = pa.table(rows_of(range(30))).append_column(field, image)
    assert '"image" holds tensors' in refusal(home, table, **by("group", group="image"))


# ---- stratified


def test_the_target_is_spread_evenly_by_default_and_another_column_if_asked(home) -> None:
    table = rows_of(range(200), y=["rare" if i % 10 == 0 else "usual" for i in range(200)], place=[f"p{i % 4}" for i in range(200)])
    snapshot = home.store(table)
    sides = home.sides(snapshot, **by("stratified"))
    assert [sum(row % 10 == 0 for row in ids(sides, side)) for side in SIDES] == [8, 6, 6]
    assert [len(ids(sides, side)) for side in SIDES] == [80, 60, 60]
    sides = home.sides(snapshot, **by("stratified", stratify="place"))
    for place in range(4):
        assert [sum(row % 4 == place for row in ids(sides, side)) for side in SIDES] == [20, 15, 15]


def test_by_hash_classes_are_not_spread_evenly(home) -> None:
    sides = home.sides(home.store(rows_of(range(200))), **by("hash"))
    assert [sum(row % 10 == 0 for row in ids(sides, side)) for side in SIDES] != [8, 6, 6]


def test_a_missing_value_is_a_class_of_its_own(home) -> None:
    table = rows_of(range(100), place=pa.array([None if i % 2 else "here" for i in range(100)]))
    sides = home.sides(home.store(table), **by("stratified", stratify="place"))
    assert [sum(row % 2 for row in ids(sides, side)) for side in SIDES] == [20, 15, 15]


def test_classes_with_fewer_rows_than_sides_are_refused_by_name(home) -> None:
    table = rows_of(range(60), y=["a"] * 57 + ["c", "b", "b"])
    assert "\"y\" has 2 values in fewer rows than there are sides: 'b' (2), 'c' (1)." in refusal(home, table, **by("stratified"))
    record, _ = home.split(home.store(table), **by("stratified", where="y = 'a'"))
    assert record.left_out == {"where": 3}


def test_a_quantity_is_not_spread_evenly(home) -> None:
    table = rows_of(range(3600), y=[i // 3 / 7 for i in range(3600)])
    assert '"y" has 1,200 values, too many to spread each evenly. Expected: 1,000 at most' in refusal(home, table, **by("stratified"))


# ---- time


def test_the_newest_rows_are_tested_and_what_is_between_is_left_out(home) -> None:
    snapshot = home.store(rows_of(range(40)), rows_of(range(40, 100)))
    record, run = home.split(snapshot, **by("time", validation="10 days", test=0.2, gap="3 days"))
    sides = home.read(snapshot, run)
    assert ids(sides, "test") == list(range(80, 100))
    assert ids(sides, "validation") == list(range(67, 77))
    assert ids(sides, "train") == list(range(64))
    assert record.left_out == {"gap": 6}
    assert (read_sides(run) == 3).sum() == 6
    assert record.cuts.test_after == dt.datetime(2026, 3, 21, tzinfo=dt.UTC)
    assert record.brief() == "by time: 64 train, 10 validation, 20 test, 6 left out (gap)"


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us")])
def test_dates_and_timestamps_tell_the_time(home, kind) -> None:
    table = pa.table(rows_of(range(50)))
    table = table.set_column(table.column_names.index("at"), "at", table["at"].cast(pa.timestamp("us")).cast(kind))
    assert ids(home.sides(home.store(table), **by("time", test="7 days")), "test") == list(range(43, 50))


def test_rows_without_a_time_are_refused_with_their_number(home) -> None:
    table = rows_of(range(50))
    table["at"] = pa.array(table["at"].to_pylist()[:-4] + [None] * 4, pa.timestamp("us"))
    assert 'data.time: 4 of 50 rows have no "at"' in refusal(home, table, **by("time"))


@pytest.mark.parametrize(
    ("values", "received"),
    [([f"day {i}" for i in range(50)], "string"), (list(range(50)), "int64"), ([i / 2 for i in range(50)], "double")],
)
def test_a_column_that_holds_no_times_is_refused_with_its_type(home, values, received) -> None:
    text = refusal(home, rows_of(range(50), at=values), **by("time"))
    assert f'"at" holds no times. Expected: a timestamp or a date. Received: {received}. Declare it' in text


def test_a_split_by_time_needs_the_column_of_times(home) -> None:
    assert "data.time" in refusal(home, rows_of(range(50)), JobError, split__by="time")
    assert '"when" is no column' in refusal(home, rows_of(range(50)), split__by="time", data__time="when")


def test_a_window_that_holds_no_row_is_refused_with_the_cuts(home) -> None:
    table = rows_of([*range(30), 90])
    text = refusal(home, table, **by("time", validation="2 days", test="7 days"))
    assert "no row is left for validation. Received: 31 rows: 30 train, 0 validation, 1 test; validation after 2026-03-23" in text
    assert "Cuts only move forward" in text


def test_cuts_beyond_the_calendar_are_told_as_its_end(home) -> None:
    at = np.datetime64("20000-01-01", "us") + np.arange(50) * np.timedelta64(1, "D")
    record, _ = home.split(home.store(rows_of(range(50), at=at)), **by("time"))
    assert record.cuts.test_after.year == 9999


# ---- column


def test_the_data_say_it_in_their_own_words(home) -> None:
    table = rows_of(range(90), part=["learn", "tune", "exam"] * 30)
    values = {"learn": "train", "tune": "validation", "exam": "test"}
    sides = home.sides(home.store(table), **by("column", values=values))
    assert {row: sides[row] for row in range(3)} == {0: "train", 1: "validation", 2: "test"}
    assert [len(ids(sides, side)) for side in SIDES] == [30, 30, 30]


@pytest.mark.parametrize(("part", "values"), [([True, False], {"true": "test", "false": "train"}), ([1, 0], {"1": "test", "0": "train"})])
def test_truth_values_and_numbers_can_say_it(home, part, values) -> None:
    sides = home.sides(home.store(rows_of(range(100), part=part * 50)), **by("column", values=values))
    assert ids(sides, "test") == list(range(0, 100, 2))


def test_validation_is_drawn_from_train_where_the_data_name_none(home) -> None:
    table = rows_of(range(2000), part=["train", "test"] * 1000)
    record, run = home.split(home.store(table), **by("column", validation=0.25))
    assert record.num_rows["test"] == 1000
    assert abs(record.num_rows["validation"] - 250) < 4 * np.sqrt(1000 * 0.25 * 0.75)
    assert (read_sides(run)[1::2] == 2).all()


def test_values_that_say_nothing_are_refused_with_their_numbers(home) -> None:
    part = pa.array(["train", "test", "validation"] * 10 + ["holdout", "holdout", None])
    text = refusal(home, rows_of(range(33), part=part), **by("column"))
    assert "split.column: \"part\" names no side in 3 rows. Expected: 'train', 'validation', 'test'." in text
    assert "Received: 'holdout' (2 rows), missing (1 row)." in text
    record, _ = home.split(home.store(rows_of(range(33), part=part)), **by("column", where="part <> 'holdout'"))
    assert record.left_out == {"where": 3}


# ---- where


@pytest.mark.parametrize("mode", ["hash", "group", "stratified", "time", "column"])
def test_rows_for_which_the_condition_does_not_hold_are_on_no_side(home, mode) -> None:
    part, x = ["train", "test"] * 60, pa.array([None if i % 7 == 0 else i % 10 for i in range(120)])
    snapshot = home.store(rows_of(range(50), part=part[:50], x=x[:50]), rows_of(range(50, 120), part=part[50:], x=x[50:]))
    record, run = home.split(snapshot, **by(mode, where="x < 8 -- the rest is another matter"))
    sides = home.read(snapshot, run)
    assert sides.keys() == {i for i in range(120) if i % 7 and i % 10 < 8}
    assert record.left_out == {"where": 120 - len(sides)}
    assert set(sides.values()) == set(SIDES)


def test_a_condition_sees_rows_that_count_and_no_others(home) -> None:
    first = home.ingest({"a": rows_of(range(100), x=[0] * 100)})
    second = home.ingest({"a": rows_of(range(100), x=[0] * 100), "b": rows_of(range(90, 150), x=[1] * 60)})
    assert second.shards[0].num_dropped == 10
    assert home.sides(first, **by("hash", where="x = 0")).keys() == set(range(100))
    assert home.sides(second, **by("hash", where="x = 0")).keys() == set(range(90))
    assert home.sides(second, **by("hash", where="x = 1")).keys() == set(range(90, 150))


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("nonsense >", "syntax error"),
        ("unknown > 3", "unknown"),
        ("random() < 0.5", "another value at another time"),
        ("id > avg(id)", "must appear in"),
        ("row_number() over () > 3", "another value"),
        ("CAST('g' || id AS INTEGER) > 3", "Could not convert"),
        ("id IN (SELECT id FROM read_parquet('/etc/*'))", "permission"),
    ],
)
def test_a_condition_that_is_none_is_refused_in_the_words_of_the_database(home, condition, says) -> None:
    text = refusal(home, rows_of(range(50)), JobError, split__where=condition)
    assert text.startswith("split.where: ")
    assert says.casefold() in text.casefold()


def test_a_condition_that_holds_for_no_row_is_refused(home) -> None:
    assert "no row is left to divide. Expected: id < 0. Received: 50 rows." in refusal(home, rows_of(range(50)), split__where="id < 0")


# ---- rows of test that training has met under another key


def test_repeated_rows_are_counted_across_the_sides_of_any_mode(home) -> None:
    x = np.random.default_rng(5).normal(size=400)
    table = rows_of(range(800), x=np.concatenate([x, x]))
    job = parse_job(home.job(**by("time")).model_dump(mode="json"), {"features": {"x": {"kind": "numeric"}}})
    snapshot = home.store({name: values[:300] for name, values in table.items()}, {name: values[300:] for name, values in table.items()})
    _, run = home.split(snapshot, **by("time"))
    sides = read_sides(run)
    trained, tested = set(table["x"][sides == 0]), table["x"][sides == 2]
    expected = sum(value in trained for value in tested)
    (check,) = check_sides(job, snapshot, home.layout, sides)
    assert not check.ok
    assert check.only_warns
    assert f"{expected:,} of {len(tested):,} test rows" in check.detail
    assert expected > 100
    apart = np.where(np.arange(800) % 400 < 200, 0, 2).astype(np.uint8)
    (check,) = check_sides(job, snapshot, home.layout, apart)
    assert check.ok


def test_rows_that_others_have_replaced_are_not_among_the_repeated(home) -> None:
    x = [float(i) for i in range(600)]
    snapshot = home.ingest({"a": rows_of(range(600), x=x), "b": rows_of(range(300, 900), x=x)})
    assert snapshot.shards[0].num_dropped == 300
    job = home.job(features={"x": {"kind": "numeric"}})
    sides = np.array([0] * 300 + [2] * 600, np.uint8)  # what is left of the first file has the values of half of the second
    assert "300 of 600 test rows" in check_sides(job, snapshot, home.layout, sides)[0].detail


# ---- cost

NUM_ROWS = 1_000_000
COLUMN_BYTES = {"stratified": 4, "time": 8}  # of the column that the rule reads, where it is held as a whole


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    home, numbers = Home(tmp_path_factory.mktemp("large")), np.arange(NUM_ROWS)
    part = pa.DictionaryArray.from_arrays(pa.array(numbers % 3, pa.int32()), pa.array(SIDES)).cast(pa.string())
    at = pa.array(np.datetime64("2026-01-01", "us") + numbers * np.timedelta64(1, "s"))
    table = pa.table({"id": numbers, "group": numbers // 7, "y": numbers % 4, "at": at, "part": part})
    return home, home.store(*(table.slice(start, 100_000) for start in range(0, NUM_ROWS, 100_000)))


@pytest.mark.parametrize("mode", ["hash", "group", "stratified", "time", "column"])
def test_memory_is_at_most_16_bytes_a_row_beside_the_columns_read(large, mode) -> None:
    home, snapshot = large
    for _ in range(2):  # the second time there are rows that are settled
        tracemalloc.start()  # sees NumPy's memory; in Arrow's stands one shard of a column at a time
        home.split(snapshot, **by(mode))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (8 + COLUMN_BYTES.get(mode, 0) + 16) * NUM_ROWS + 6e6  # keys, column, bound; what stands for parts of the rows
