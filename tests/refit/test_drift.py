"""Real shifts are found, chance and trifles are not, and no column is too odd to be told about."""

import io
import os
import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from refit import drift
from refit.config import parse_job
from refit.drift import compare_numbers, draw_histogram, measure_drift, stability_index
from refit.errors import DataError
from refit.layout import Layout
from refit.profiles import ColumnProfile
from refit.records import Column, DriftRecord, SnapshotRecord, SourceRecord
from refit.schema import KEY_HASH, column_of
from tests.refit.test_profiles import stored, write_shard

ROWS = 2_000
DOUBLE = Column(name="x", type="double")
WHOLE = Column(name="x", type="int64")
TEXT = Column(name="x", type="string")


def job_of(target="y", **more):
    base = {"name": "job", "data": {"sources": [{"kind": "csv", "path": "none.csv"}]}, "target": {"column": target}}
    return parse_job(base, {name.replace("__", "."): value for name, value in more.items()})


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


def snapshot(layout, *tables, id="0" * 16, dropped=()):
    """A snapshot whose shards hold these tables."""
    shards = tuple(write_shard(layout.dataset("data"), table, dropped) for table in tables)
    columns = tuple(column_of(field) for field in tables[-1].schema if field.name != KEY_HASH)
    source = SourceRecord(name="a", digest="d", num_read=0, num_kept=0, shards=shards)
    return SnapshotRecord(id=id, dataset="data", key=(), key_hash="h", columns=columns, sources=(source,))


@pytest.fixture
def compare(layout):
    """Compare a table of old rows with one of new rows; by name of column."""

    def compare(old, new, job=None, **more):
        before = snapshot(layout, stored(**old) if isinstance(old, dict) else old, id="1" * 16)
        after = snapshot(layout, *([stored(**new)] if isinstance(new, dict) else [new]), **more)
        record = measure_drift(job or job_of(), after, before, layout, version=3)
        assert DriftRecord.model_validate_json(record.model_dump_json()) == record
        return {column.name: column for column in record.columns}

    return compare


def mixed(rng, rows=ROWS, kinds=20):
    """Columns of many kinds, each drawn from one distribution."""
    draw = [
        lambda: rng.normal(size=rows),
        lambda: rng.gamma(0.3, size=rows),
        lambda: np.where(rng.random(rows) < 0.7, 0.0, rng.exponential(size=rows)),
        lambda: rng.integers(0, 7, rows),
        lambda: rng.poisson(40, rows),
        lambda: rng.random(rows) < 0.1,
        lambda: rng.choice(["red", "green", "blue", "grey"], rows, p=[0.6, 0.3, 0.09, 0.01]).tolist(),
        lambda: [f"city {i}" for i in np.minimum(rng.zipf(1.5, rows), 3_000)],
        lambda: pa.array(rng.random(rows), mask=rng.random(rows) < 0.05),
        lambda: pa.array(rng.integers(0, 30, rows), mask=rng.random(rows) < 0.003),
    ]
    return {f"c{i}": draw[i % len(draw)]() for i in range(kinds)}


# ---- against scipy and by hand


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_numbers_are_tested_as_scipy_tests_them(compare, shift) -> None:
    rng = np.random.default_rng(1)
    old, new = rng.normal(size=ROWS), rng.normal(shift, size=ROWS)
    found, expected = compare({"x": old}, {"x": new})["x"], stats.ks_2samp(old, new, method="asymp")
    assert (found.statistic, found.p_value) == (expected.statistic, expected.pvalue)
    assert (found.kind, found.test, found.num_old, found.num_new) == ("numeric", "Kolmogorov-Smirnov", ROWS, ROWS)


def test_categories_are_tested_as_scipy_tests_them(compare) -> None:
    rng = np.random.default_rng(2)
    old, new = rng.choice(list("abc"), ROWS, p=[0.5, 0.3, 0.2]), rng.choice(list("abc"), ROWS, p=[0.4, 0.3, 0.3])
    found = compare({"x": old.tolist()}, {"x": new.tolist()})["x"]
    expected = stats.chi2_contingency([[(side == c).sum() for c in "abc"] for side in (old, new)], correction=False)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.kind, found.test) == ("categorical", "chi-squared")


def test_the_exact_p_value_of_numbers_is_near_the_asymptotic_one() -> None:
    rng = np.random.default_rng(3)
    for rows in (drift.MINIMUM_VALUES, 100):
        for _ in range(20):
            old, new = rng.normal(size=rows), rng.normal(0.4, size=rows)
            assert compare_numbers(old, new).p_value == pytest.approx(stats.ks_2samp(old, new, method="exact").pvalue, rel=0.25, abs=0.01)


def test_stability_index_by_hand() -> None:
    expected = 0.1 * np.log(0.5 / 0.4) + 0.1 * np.log(0.6 / 0.5)
    assert stability_index(np.array([5, 5]) * 10**8, np.array([4, 6]) * 10**8) == pytest.approx(expected)
    assert stability_index(np.array([10, 0]), np.array([0, 10])) == pytest.approx(2 * (10 / 11) * np.log(21))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_stability_index_is_finite_symmetric_and_never_negative(counts) -> None:
    old, new = np.array(counts).T
    found = stability_index(old, new)
    assert 0 <= found + 1e-12 < np.inf
    assert found == pytest.approx(stability_index(new, old))


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=30, max_size=300), st.integers(1, 299))
def test_no_cell_of_the_table_expects_too_few(values, cut) -> None:
    old, new = values[: min(cut, len(values) - 1)], values[min(cut, len(values) - 1) :]
    table = drift._pool_rare(*drift._count_both(old, new))
    assert table.sum() == len(values)
    assert table.shape[1] <= drift.MAX_CATEGORIES
    assert table.shape[1] == 1 or stats.contingency.expected_freq(table).min() >= drift.MINIMUM_EXPECTED


def test_rare_categories_left_apart_would_expect_too_few() -> None:
    counts = drift._count_both(["a"] * 100 + ["b", "c", "d", "e", "f", "g"] * 2, ["a"] * 100)[1]
    assert stats.contingency.expected_freq(counts).min() < drift.MINIMUM_EXPECTED


def test_a_value_as_frequent_as_a_bin_has_its_own_bin() -> None:
    cuts = drift.quantile_cuts(np.array([0.0] * 60 + list(range(1, 41))))
    assert drift._count_between(cuts, np.array([-1.0, 0.0, 0.0, 1.0]))[:2].tolist() == [1, 2]
    assert compare_numbers(np.zeros(100), np.full(100, -1.0)).psi > 1
    assert compare_numbers(np.zeros(100), np.zeros(100)).psi == 0


def test_missing_shares_are_tested_with_the_z_test_or_fishers() -> None:
    def side(rows, missing):
        return ColumnProfile(column=DOUBLE, num_rows=rows, num_missing=missing)

    pooled = (20 + 55) / 2_000
    z = (0.055 - 0.02) / np.sqrt(pooled * (1 - pooled) * 2 / 1_000)
    assert drift._missing_p_value(side(1_000, 20), side(1_000, 55)) == pytest.approx(2 * stats.norm.sf(z))
    assert drift._missing_p_value(side(100, 0), side(100, 3)) == pytest.approx(stats.fisher_exact([[0, 100], [3, 97]]).pvalue)
    assert drift._missing_p_value(side(100, 0), side(100, 0)) == 1
    assert drift._missing_p_value(side(100, 100), side(100, 100)) == 1


# ---- false alarms


def compare_equals(layout, seeds, **more):
    """Records of pairs of draws from the same distributions."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        old, new = snapshot(layout, stored(**mixed(rng)), id="1" * 16), snapshot(layout, stored(**mixed(rng)))
        yield measure_drift(job_of(**more), new, old, layout, version=1)


@pytest.fixture(scope="module")
def equals(tmp_path_factory):
    return list(compare_equals(Layout(tmp_path_factory.mktemp("equals")), range(20)))


def test_chance_is_not_called_drift(equals) -> None:
    assert [len(record.columns) for record in equals] == [20] * 20
    assert not any(record.drifted for record in equals)


def test_every_test_is_calibrated_before_the_correction(equals) -> None:
    p_values = np.array([column.p_value for record in equals for column in record.columns])
    for level in (0.01, 0.05, 0.5):
        assert (p_values <= level).sum() <= stats.binom.ppf(0.999, len(p_values), level)
    assert (p_values <= 0.5).mean() > 0.3


@pytest.mark.slow
def test_false_discoveries_are_as_rare_as_promised(layout, monkeypatch) -> None:
    monkeypatch.setattr(drift, "MINIMUM_COHEN_H", 0.0)
    # nothing has drifted, so that every alarm is false and the rate is the share of comparisons with an alarm: 5 % of 200 at most
    alarmed = sum(bool(record.drifted) for record in compare_equals(layout, range(200), drift__min_psi=0.0))
    assert alarmed <= stats.binom.ppf(0.99, 200, 0.05)


def test_a_trifle_in_a_million_rows_is_certain_and_no_drift(compare) -> None:
    rng = np.random.default_rng(5)
    old = {"x": rng.normal(size=1_000_000), "m": pa.array(np.ones(1_000_000), mask=rng.random(1_000_000) < 0.10)}
    new = {"x": rng.normal(0.1, size=1_000_000), "m": pa.array(np.ones(1_000_000), mask=rng.random(1_000_000) < 0.11)}
    found = compare(old, new)
    assert found["x"].p_adjusted < 1e-6
    assert found["x"].psi < 0.1
    assert found["m"].missing_p_adjusted < 1e-6
    assert [column.verdict for column in found.values()] == ["stable", "stable"]
    assert not any(column.has_drifted for column in found.values())
    assert found["x"].test == "Kolmogorov-Smirnov, samples of 20,000 and 20,000 values"
    assert found["x"].num_new == 1_000_000


def test_without_the_limit_the_trifle_would_be_called_drift(compare) -> None:
    rng = np.random.default_rng(5)
    old, new = {"x": rng.normal(size=100_000)}, {"x": rng.normal(0.1, size=100_000)}
    assert compare(old, new, job_of(drift__min_psi=0.0))["x"].has_drifted


# ---- shifts


SHIFTS = {
    "number": lambda rng, new: rng.normal(0.5 if new else 0, size=ROWS),
    "spread": lambda rng, new: rng.normal(0, 2.0 if new else 1.0, size=ROWS),
    "whole": lambda rng, new: rng.poisson(60 if new else 50, ROWS),
    "few": lambda rng, new: rng.choice(4, ROWS, p=[0.1, 0.2, 0.3, 0.4] if new else [0.4, 0.3, 0.2, 0.1]),
    "truth": lambda rng, new: rng.random(ROWS) < (0.5 if new else 0.3),
    "text": lambda rng, new: rng.choice(["a", "b", "c"], ROWS, p=[0.2, 0.2, 0.6] if new else [0.4, 0.4, 0.2]).tolist(),
    "unseen": lambda rng, new: rng.choice(["a", "new"] if new else ["a", "b"], ROWS).tolist(),
    "image": lambda rng, new: rng.integers(0, 200 if new else 256, (ROWS, 4, 4), dtype=np.uint8),
    "infinite": lambda rng, new: np.where(rng.random(ROWS) < (0.3 if new else 0), np.inf, rng.random(ROWS)),
    "constant": lambda _, new: np.full(ROWS, 4.0 if new else 5.0),
}


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_shift_is_found_among_stable_columns(compare, kind) -> None:
    rng = np.random.default_rng(7)
    old, new = ({"shifted": SHIFTS[kind](rng, is_new), **mixed(rng, kinds=9)} for is_new in (False, True))
    found = compare(old, new)
    assert [name for name, column in found.items() if column.has_drifted] == ["shifted"]
    assert found["shifted"].verdict.startswith(f"drifted: PSI {found['shifted'].psi:.2f}")


def test_more_missing_values_are_found_and_told(compare) -> None:
    old = {"x": pa.array(np.arange(1_000.0), mask=np.arange(1_000) < 20)}
    new = {"x": pa.array(np.arange(1_000.0), mask=np.arange(1_000) % 9 == 0)}
    found = compare(old, new)["x"]
    assert found.has_drifted
    assert found.verdict == "more is missing: 2 % before, 11.2 % now"
    assert (found.missing_old, found.missing_new) == (0.02, 0.112)
    assert compare(new, old)["x"].verdict == "less is missing: 11.2 % before, 2 % now"


def test_the_label_is_marked_and_judged(compare) -> None:
    rng = np.random.default_rng(8)
    found = compare({"y": rng.random(ROWS) < 0.2, "x": rng.random(ROWS)}, {"y": rng.random(ROWS) < 0.5, "x": rng.random(ROWS)})
    assert (found["y"].is_target, found["x"].is_target) == (True, False)
    assert (found["y"].has_drifted, found["x"].has_drifted) == (True, False)


def test_a_p_value_of_zero_is_fine(compare) -> None:
    found = compare({"x": np.zeros(30_000), "w": ["a"] * 30_000}, {"x": np.ones(30_000), "w": ["b"] * 30_000})
    assert [(column.p_value, column.has_drifted) for column in found.values()] == [(0.0, True), (0.0, True)]


# ---- what is compared


def test_new_rows_are_those_in_shards_that_the_champion_does_not_have(layout) -> None:
    rng = np.random.default_rng(9)
    first, second = stored(x=rng.normal(size=ROWS)), stored(x=rng.normal(3, size=500))
    record = measure_drift(job_of(), snapshot(layout, first, second), snapshot(layout, first, id="1" * 16), layout, version=7)
    assert (record.num_old, record.num_new, record.champion, record.old_snapshot, record.why_not) == (ROWS, 500, 7, "1" * 16, None)
    assert [column.name for column in record.drifted] == ["x"]


def test_superseded_rows_do_not_count(compare) -> None:
    values = np.concatenate([np.zeros(500), np.arange(1_000.0)])
    found = compare({"x": np.arange(1_000.0)}, {"x": values}, dropped=np.arange(500))["x"]
    assert (found.num_new, found.psi, found.verdict) == (1_000, 0.0, "stable")


def test_without_a_champion_all_rows_are_described(layout) -> None:
    record = measure_drift(job_of(), snapshot(layout, stored(x=[1.0] * 40, w=["a", "b"] * 20)), None, layout, version=None)
    assert (record.why_not, record.num_old, record.num_new) == ("There is no champion yet.", 0, 40)
    assert [(c.histogram.old, sum(c.histogram.new), c.has_drifted, c.verdict) for c in record.columns] == [
        ((), 1.0, False, "nothing to compare with")
    ] * 2


def test_without_new_rows_the_champions_are_described(layout) -> None:
    table = stored(x=[1.0] * 40)
    record = measure_drift(job_of(), snapshot(layout, table), snapshot(layout, table), layout, version=1)
    assert (record.num_old, record.num_new) == (40, 0)
    assert record.why_not == "There are no rows that the champion has not seen."
    assert [(c.histogram.old, c.histogram.new, c.has_drifted) for c in record.columns] == [((1.0,), (), False)]


def test_only_columns_of_both_are_compared_and_types_must_agree(compare) -> None:
    found = compare({"gone": [1.0] * 40, "x": [1.0] * 40, "z": [1] * 40}, {"x": ["1"] * 40, "z": [1] * 40, "more": [1.0] * 40})
    assert list(found) == ["x", "z"]
    assert (found["x"].verdict, found["x"].has_drifted) == ("not compared: double before, string now", False)


def test_only_the_columns_of_the_job_are_compared(compare) -> None:
    table = {"x": [1.0] * 40, "z": [1.0] * 40}
    assert list(compare(table, table | {"x": [2.0] * 40}, job_of(drift__columns=["x"]))) == ["x"]


def test_a_column_of_the_job_that_is_not_there_is_named(compare) -> None:
    with pytest.raises(DataError, match=r'"weight" is no column of the data\. Did you mean "height"'):
        compare({"height": [1.0]}, {"height": [2.0]}, job_of(drift__columns=["weight"]))


def test_keys_and_times_are_judged_only_where_the_job_names_them(compare) -> None:
    def days(first):
        return [date(2020, 1, 1) + timedelta(days=first + i) for i in range(100)]

    old, new = {"id": list(range(100)), "day": days(0)}, {"id": list(range(100, 200)), "day": days(100)}
    found = compare(old, new, job_of(data__key=["id"]))
    assert [(c.verdict, c.has_drifted) for c in found.values()] == [
        ("not judged: part of the key", False),
        ("not judged: time passes", False),
    ]
    assert found["day"].psi > 1
    assert found["day"].test == "Kolmogorov-Smirnov of seconds since 1970"
    named = compare(old, new, job_of(data__key=["id"], drift__columns=["id", "day"]))
    assert all(column.has_drifted for column in named.values())


@pytest.mark.parametrize(
    ("declared", "values", "kind"),
    [
        ({}, list(range(20)), "categorical"),
        ({}, list(range(21)), "numeric"),
        ({"features": {"x": {"kind": "numeric"}}}, [0, 1], "numeric"),
        ({"features": {"x": {"kind": "category"}}}, list(range(21)), "categorical"),
        ({"target": "x", "target__kind": "classes"}, list(range(21)), "categorical"),
        ({"target": "x", "target__kind": "regression"}, [0, 1], "numeric"),
        ({}, [0.0, 1.0], "numeric"),
        ({}, [True, False], "categorical"),
    ],
)
def test_a_column_is_numeric_or_categorical(compare, declared, values, kind) -> None:
    assert compare({"x": values * 5}, {"x": [*values, values[0]] * 5}, job_of(**declared))["x"].kind == kind


# ---- odd columns


def test_few_rows_are_not_judged(compare) -> None:
    found = compare({"x": np.arange(1_000.0)}, {"x": np.full(29, -5.0)})["x"]
    assert (found.verdict, found.p_value, found.has_drifted) == ("too few rows to tell", 1.0, False)
    assert compare({"x": np.arange(1_000.0)}, {"x": np.full(30, -5.0)})["x"].has_drifted


def test_few_values_are_not_judged_but_that_they_are_missing_is(compare) -> None:
    found = compare({"x": np.arange(100.0)}, {"x": pa.array([None] * 100, pa.float64())})["x"]
    assert (found.verdict, found.test, found.has_drifted) == ("more is missing: 0 % before, 100 % now", "none", True)


ODD = {
    "all missing": pa.array([None] * 50, pa.float64()),
    "all missing text": pa.array([None] * 50, pa.string()),
    "constant": np.full(50, 3.25),
    "not a number": np.full(50, np.nan),
    "infinite": np.array([np.inf, -np.inf] * 25),
    "mostly infinite": np.array([np.inf] * 49 + [1.0]),
    "enormous": np.array([1.7e308, -1.7e308] * 25),
    "tiny": np.linspace(0, 5e-324, 50),
    "ulp": np.where(np.arange(50) < 25, 1.0, np.nextafter(1.0, 2)),
    "huge whole": np.arange(2**62, 2**62 + 50),
    "widest whole": np.linspace(-(2**62), 2**62, 50).astype(np.int64),
    "one word": ["a"] * 50,
    "ids": [f"id {i}" for i in range(50)],
    "unicode": ["日本", "🙂", "", "\x00", "a\nb"] * 10,
    "other": ["(other)", "other"] * 25,
    "long": ["x" * 100_000 + str(i % 2) for i in range(50)],
    "bytes": pa.array([b"1", None] * 25, pa.binary()),
    "image": np.zeros((50, 2, 2), np.uint8),
    "unbounded image": np.full((50, 2), 1.7e308),
    "truth": np.array([True] * 50),
    "old dates": [date(1, 1, 1), date(9999, 12, 31)] * 25,
    "nothing": pa.array([], pa.float64()),
    "one": np.array([1.0]),
}


@pytest.mark.parametrize("first", ODD)
def test_no_column_is_too_odd(layout, first) -> None:
    for second in (name for name in ODD if type_of(ODD[name]) == type_of(ODD[first])):
        old = snapshot(layout, stored(x=ODD[first]), id="1" * 16)
        new = snapshot(layout, stored(x=ODD[second]))
        for before in (old, None):
            record = measure_drift(job_of(), new, before, layout, version=1)
            assert DriftRecord.model_validate_json(record.model_dump_json()) == record
            has_meaning(record.columns[0])


def has_meaning(column):
    numbers = [column.statistic, column.p_value, column.p_adjusted, column.psi, column.missing_p_adjusted, *column.histogram.edges]
    assert np.isfinite(numbers).all()
    assert column.verdict
    assert (np.diff(column.histogram.edges) > 0).all()
    for side in filter(None, (column.histogram.old, column.histogram.new)):
        assert sum(side) == pytest.approx(1)
        assert len(side) == len(column.histogram.labels) + max(len(column.histogram.edges) - 1, 0)


def type_of(values):
    return stored(x=values).schema.field("x")


def test_ids_are_not_compared(compare) -> None:
    found = compare({"x": [f"a{i}" for i in range(1_000)]}, {"x": [f"b{i}" for i in range(1_000)]})["x"]
    assert (found.verdict, found.test, found.has_drifted) == ("hardly a value repeats: not compared", "none", False)


def test_equal_constants_are_stable(compare) -> None:
    found = compare({"x": ["a"] * 50, "n": [1] * 50, "f": [0.5] * 50}, {"x": ["a"] * 60, "n": [1] * 60, "f": [0.5] * 60})
    assert [column.verdict for column in found.values()] == ["stable"] * 3


# ---- histograms


def test_a_histogram_of_numbers_has_open_ends_and_shares() -> None:
    values = np.append(np.arange(1_000.0), [1e12, -1e12, np.inf])
    found = draw_histogram(DOUBLE, values, values[:500], is_categorical=False)
    assert len(found.edges) == len(found.old) + 1 == drift.HISTOGRAM_BINS + 1
    assert found.edges[-1] < 1_000
    assert sum(found.old) == pytest.approx(1)
    assert sum(found.new) == pytest.approx(1)


def test_a_histogram_of_whole_numbers_has_equal_numbers_of_them_in_each_bin() -> None:
    found = draw_histogram(WHOLE, np.repeat(np.arange(24.0), 10), np.arange(24.0), is_categorical=False)
    assert set(np.diff(found.edges)) == {2.0}
    assert set(np.round(found.old, 12)) == {round(1 / 12, 12)}


def test_a_histogram_of_many_equal_values_still_shows_the_others() -> None:
    found = draw_histogram(DOUBLE, np.append(np.zeros(999), 7.0), np.empty(0), is_categorical=False)
    assert (found.edges[0], found.edges[-1], found.old[-1], found.new) == (0.0, 7.0, 0.001, ())


def test_a_histogram_of_categories_names_the_most_frequent() -> None:
    old = np.array([f"w{i}" for i in range(30) for _ in range(30 - i)], dtype=object)
    found = draw_histogram(TEXT, old, old[:30], is_categorical=True)
    assert found.labels == (*(f"w{i}" for i in range(drift.HISTOGRAM_LABELS)), drift.OTHER)
    assert found.new == (1.0, *[0.0] * drift.HISTOGRAM_LABELS)
    assert sum(found.old) == pytest.approx(1)


@pytest.mark.parametrize(
    ("column", "values", "labels"),
    [(WHOLE, [3.0, 3.0, -1.0], ("3", "-1")), (Column(name="x", type="bool"), [0.0, 1.0, 1.0], ("true", "false"))],
)
def test_labels_read_as_the_values_do(column, values, labels) -> None:
    assert draw_histogram(column, np.array(values), np.empty(0), is_categorical=True).labels == labels


# ---- real data


def real(name):
    root = os.environ.get("REFIT_DATA")
    path = Path(root or ".") / name
    if not root or not path.exists():
        pytest.skip(f"REFIT_DATA is unset or has no {name}")
    return path


def as_shard(table):
    table = table.drop_columns([name for name in table.column_names if pa.types.is_null(table[name].type)])
    return stored(**{name: table[name].combine_chunks() for name in table.column_names})


def test_two_years_of_bike_rentals_differ_in_rentals(compare) -> None:
    content = zipfile.ZipFile(real("bike_sharing") / "bike_sharing_dataset.zip").read("hour.csv")
    hours = pyarrow.csv.read_csv(io.BytesIO(content))
    old, new = (as_shard(hours.filter(pc.equal(hours["yr"], year))) for year in (0, 1))
    found = compare(old, new, job_of("cnt"))
    drifted = {name for name, column in found.items() if column.has_drifted}
    assert {"cnt", "registered", "yr", "instant"} <= drifted
    assert not drifted & {"season", "mnth", "hr", "weekday", "holiday", "workingday", "dteday"}
    assert found["cnt"].is_target
    assert (found["cnt"].kind, found["weekday"].kind) == ("numeric", "categorical")


def penguins(name):
    return pyarrow.csv.read_csv(next((real("penguins") / name).glob("*.csv")))


def test_one_wrong_value_among_the_penguins_is_no_drift(compare) -> None:
    found = compare(as_shard(penguins("tfx_labelled")), as_shard(penguins("tfx_skewed")), job_of("species"))
    assert found["species"].kind == "categorical"
    assert 0 < found["culmen_length_mm"].statistic < 0.01
    assert [column.verdict for column in found.values()] == ["stable"] * 5


def test_another_species_of_penguin_differs_in_everything(compare) -> None:
    table = penguins("tfx_labelled")
    adelie, gentoo = (as_shard(table.filter(pc.equal(table["species"], species))) for species in (0, 2))
    assert all(column.has_drifted for column in compare(adelie, gentoo, job_of("species")).values())


def test_halves_of_the_penguins_do_not_differ(compare) -> None:
    table = penguins("tfx_labelled")
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    found = compare(as_shard(shuffled.slice(0, 167)), as_shard(shuffled.slice(167)), job_of("species"))
    assert not any(column.has_drifted for column in found.values())
