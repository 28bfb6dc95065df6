"""Labels that are given away and rows that are repeated are told; sound data raise no alarm."""

import os
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from refit import expectations
from refit.labels import check_labels, count_classes
from refit.leakage import COLUMNS_AT_A_TIME, SAMPLE_ROWS, check_duplicates
from refit.samples import read_breast_cancer, read_digits
from refit.schema import KEY_HASH, column_of
from refit.wording import percent
from tests.refit.labelled import alarms, job_of, run, stored

SIDE = f"CASE WHEN {KEY_HASH} % 10 < 2 THEN 2 WHEN {KEY_HASH} % 10 < 3 THEN 1 ELSE 0 END"


def random_columns(seed, rows=400):
    """Features without any bearing on each other: numbers, whole numbers, grades, words, names, with gaps."""
    rng = np.random.default_rng(seed)
    gap = rng.random(rows) < rng.random() * 0.5
    return {
        "normal": rng.normal(size=rows),
        "heavy": rng.standard_cauchy(rows),
        "gaps": pa.array(rng.normal(size=rows), mask=gap),
        "grade": rng.integers(0, 5, rows),
        "count": rng.poisson(3, rows),
        "flag": rng.random(rows) < 0.3,
        "word": rng.choice(["red", "green", "blue"], rows),
        "name": [f"n{i}" for i in rng.permutation(rows)],
        "id": rng.permutation(rows),
    }


def labels_of(seed, kind, rows=400):
    rng = np.random.default_rng(1000 + seed)
    if kind == "binary":
        return rng.random(rows) < 0.1 + 0.3 * rng.random()
    return rng.choice(["a", "b", "c", "d"], rows, p=[0.4, 0.3, 0.2, 0.1]) if kind == "classes" else rng.normal(size=rows)


# ---- no false alarm


@pytest.mark.parametrize("kind", ["binary", "classes", "regression"])
def test_random_data_raise_no_alarm(kind):
    found = {seed: alarms(random_columns(seed) | {"y": labels_of(seed, kind)}) for seed in range(34)}
    assert {seed: alarm for seed, alarm in found.items() if alarm} == {}


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_a_feature_that_helps_is_no_leak(noise):
    rng = np.random.default_rng(0)
    y = rng.random(2000) < 0.5
    assert alarms({"x": np.where(rng.random(2000) < noise, ~y, y).astype(np.int64), "y": y}) == {}


@pytest.mark.parametrize(("read", "target"), [(read_breast_cancer, "diagnosis"), (read_digits, "digit")])
def test_the_shipped_examples_raise_no_alarm(read, target):
    table = pa.Table.from_batches(read())
    if target == "digit":
        table = table.select(["digit"]).append_column("mean", pa.array(np.random.default_rng(0).normal(size=len(table))))
    assert alarms(table, target=target) == {}


@pytest.mark.parametrize("columns", [{"x": [0, 1] * 12, "y": ["a", "b"] * 12}, {"x": range(60), "y": ["a"] * 51 + ["b"] * 9}])
def test_too_few_rows_are_searched_for_nothing_and_this_is_said(columns):
    found = run(check_labels, job_of(), columns)["leakage"]
    assert found.ok
    assert found.detail.startswith("too few rows to tell")


# ---- leakage


def leaks(table, **more):
    return {name.removeprefix("leakage: "): detail for name, detail in alarms(table, **more).items() if name.startswith("leakage")}


def in_classes(y):
    rng = np.random.default_rng(3)
    rows = len(y)
    shuffled = dict(zip(range(10), rng.permutation(10).tolist(), strict=True))
    middle = np.isin(y, [1])
    return {
        "copy": y,
        "code": [f"code {shuffled[int(v)]}" for v in y],
        "shifted": y + rng.normal(scale=0.01, size=rows),
        "other way round": -1e300 * (y + rng.random(rows) * 0.5),
        "a band": np.where(middle, 5 + rng.random(rows), rng.choice([-10.0, 10.0], rows) + rng.random(rows)),
        "filled": pa.array(rng.normal(size=rows), mask=~middle),
        "empty": pa.array(rng.choice(["p", "q"], rows), mask=middle),
        "sometimes filled": pa.array(rng.normal(size=rows), mask=~(middle & (rng.random(rows) < 0.3))),
    }


LEAKS = ["copy", "code", "shifted", "other way round", "a band", "filled", "empty", "sometimes filled"]


@pytest.mark.parametrize("name", LEAKS)
def test_a_feature_that_gives_two_classes_away_is_named(name):
    y = (np.random.default_rng(1).random(1000) < 0.3).astype(np.int64)
    assert list(leaks(random_columns(101, 1000) | {name: in_classes(y)[name], "y": y})) == [name]


@pytest.mark.parametrize("name", [name for name in LEAKS if name != "a band"])
def test_a_feature_that_gives_five_classes_away_is_named(name):
    y = np.random.default_rng(2).integers(0, 5, 2000)
    assert list(leaks(random_columns(102, 2000) | {name: in_classes(y)[name], "y": y})) == [name]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scaled", lambda y: 1.8 * y + 32),
        ("curved", lambda y: np.exp(-y)),
        ("rounded", lambda y: y.round(1)),
        ("folded", lambda y: np.where(np.arange(len(y)) % 2, y, 100 - y)),
        ("as text", lambda y: [f"{value:.1f}" for value in y.clip(-2, 2)]),
    ],
)
def test_a_feature_that_gives_a_quantity_away_is_named(name, make):
    y = np.random.default_rng(4).normal(size=4000)
    assert list(leaks(random_columns(104, 4000) | {name: make(y), "y": y})) == [name]


@pytest.mark.parametrize(("words", "sign"), [("a + b", 1), ("a - b", -1)])
def test_two_features_that_make_up_the_target_are_named(words, sign):
    rng = np.random.default_rng(5)
    a, b = rng.gamma(2, 10, 500), rng.gamma(2, 10, 500)
    columns = {"a": a.astype(np.float32), "b": b.astype(np.float32), "y": a + sign * b}
    found = leaks(random_columns(105, 500) | columns)
    assert list(found) == [words]
    assert "this is the target in 100 % of the rows" in found[words]


def test_sums_that_hold_because_nearly_all_is_zero_are_no_leak():
    rng = np.random.default_rng(6)
    a, b, y = (np.where(rng.random(5000) < 0.002, rng.normal(size=5000), 0.0) for _ in range(3))
    assert leaks({"a": a, "b": b, "y": y}, kind="regression") == {}


def test_a_name_of_the_row_memorises_nothing():
    rows = 1000
    y = np.arange(rows) % 2
    assert leaks({"id": np.random.default_rng(0).permutation(rows), "name": [f"n{i}" for i in range(rows)], "y": y}) == {}


def test_a_leak_among_more_columns_than_are_read_at_a_time_is_found():
    rng = np.random.default_rng(8)
    columns = {f"x{i}": rng.normal(size=60) for i in range(COLUMNS_AT_A_TIME + 5)}
    y = rng.integers(0, 2, 60)
    assert list(leaks(columns | {"leak": y * 2.0, "y": y})) == ["leak"]


def test_features_that_the_model_does_not_see_are_not_searched():
    y = np.random.default_rng(9).integers(0, 2, 400)
    table = {"x": np.arange(400) % 7, "leak": y, "y": y}
    assert list(leaks(table)) == ["leak"]
    assert leaks(table, features={"x": {"kind": "numeric"}}) == {}
    assert leaks(table, data={"key": ["leak"]}) == {}
    assert leaks(table, split={"by": "group", "group": "leak"}) == {}


def test_the_sample_is_that_of_the_smallest_hashes():
    rows = SAMPLE_ROWS + 5000
    y = np.random.default_rng(10).integers(0, 2, rows)
    x = np.where(np.arange(rows) < SAMPLE_ROWS, y, 1 - y)
    hashes = pa.array(np.arange(rows, dtype=np.uint64))
    assert list(leaks(pa.table({"x": x, "y": y, KEY_HASH: hashes}))) == ["x"]
    assert leaks(pa.table({"x": x[::-1], "y": y[::-1], KEY_HASH: hashes})) == {}


@pytest.mark.parametrize(
    ("derive", "named"),
    [
        ({"y": "tips > 0.2 * FARE"}, {"tips", "fare"}),
        ({"y": '"the ""share""" > 0.2 -- of fare'}, {'the "share"', "fare"}),
        ({"y": "share > 0.2", "share": "tips / 2"}, {"tips", "share"}),
        ({"y": "name = 'tips' AND tips(fare) > 1", "share": "tips"}, {"fare"}),
        ({"other": "tips"}, set()),
    ],
)
def test_features_from_which_the_target_is_derived_are_named(derive, named):
    rng = np.random.default_rng(11)
    features = {name: rng.normal(size=100) for name in ("tips", "fare", "share", 'the "share"', "share2")}
    assert set(leaks(features | {"y": rng.integers(0, 2, 100)}, data={"derive": derive})) == named


# ---- duplicates


def copies(seed, rows=4000, repeated=0):
    rng = np.random.default_rng(seed)
    columns = {
        "x": rng.normal(size=rows),
        "word": rng.choice(["a", "b"], rows),
        "gaps": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.5),
    }
    table = pa.table(columns | {"y": rng.integers(0, 2, rows)})
    return pa.concat_tables([table, table.slice(0, repeated)])


def repeated_in_test(table, **more):
    (record,) = run(check_duplicates, job_of(**more), table, SIDE).values()
    return record


def test_rows_that_repeat_across_sides_are_counted_as_python_counts_them():
    table = stored(copies(14, repeated=2000))
    rows = table.to_pylist()
    sides = [2 if row[KEY_HASH] % 10 < 2 else 1 if row[KEY_HASH] % 10 < 3 else 0 for row in rows]
    keys = [(row["x"], row["word"], row["gaps"]) for row in rows]
    trained = {key for key, side in zip(keys, sides, strict=True) if side == 0}
    count = sum(key in trained for key, side in zip(keys, sides, strict=True) if side == 2)
    record = repeated_in_test(table)
    assert (record.ok, record.only_warns) == (False, True)
    assert record.detail.startswith(f"{count:,} of {sides.count(2):,} test rows ({percent(count / sides.count(2))}) have the same features")
    assert "split.by: group" in record.detail


def test_the_count_is_the_same_in_parts(monkeypatch):
    table = copies(15, repeated=1000)
    whole = repeated_in_test(table)
    monkeypatch.setattr(expectations, "MAX_GROUPS", 500)
    assert repeated_in_test(table) == whole


@pytest.mark.parametrize("repeated", [0, 20])
def test_few_repeats_pass(repeated):
    assert repeated_in_test(copies(16, repeated=repeated)).ok


def test_columns_that_are_no_features_do_not_make_rows_new():
    table = copies(17, repeated=2000)
    table = table.append_column("id", pa.array(range(len(table))))
    assert repeated_in_test(table).ok
    assert not repeated_in_test(table, data={"key": ["id"]}).ok


def test_rows_that_are_equal_by_chance_say_nothing():
    rng = np.random.default_rng(18)
    table = {name: rng.choice(["a", "b", None], 500) for name in ("p", "q")} | {"y": rng.integers(0, 2, 500)}
    record = repeated_in_test({name: pa.array(values) for name, values in table.items()})
    assert record.ok
    assert "about 9 combinations" in record.detail


def test_repeated_images_are_found():
    content = np.random.default_rng(19).integers(0, 256, (500, 16), dtype=np.uint8)
    images = pa.array([row.tobytes() for row in content] * 2, pa.binary(16))
    field = pa.field("image", images.type, metadata={"shape": "[4, 4, 1]", "dtype": "uint8"})
    table = pa.table([images, pa.array([0, 1] * 500)], schema=pa.schema([field, pa.field("y", pa.int64())]))
    assert not repeated_in_test(table).ok
    assert run(check_labels, job_of(), table)["leakage"].ok


# ---- real data


def real(folder):
    root = Path(os.environ.get("REFIT_DATA", ""))
    if not os.environ.get("REFIT_DATA") or not (root / folder).is_dir():
        pytest.skip(f"REFIT_DATA is unset, or holds no {folder}")
    return root / folder


def read_csv(path, options="", columns="*"):
    with duckdb.connect() as connection:
        return connection.sql(f"SELECT {columns} FROM read_csv('{path}'{options})").to_arrow_table()


ADULT = ["age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation", "relationship", "race", "sex", "gain", "loss"]


def test_bike_sharing_gives_its_count_away_in_two_parts(tmp_path):
    with zipfile.ZipFile(real("bike_sharing") / "bike_sharing_dataset.zip") as archive:
        table = read_csv(archive.extract("hour.csv", tmp_path))
    assert list(leaks(table, target="cnt")) == ["casual + registered"]
    assert leaks(table.drop(["casual"]), target="cnt") == {}


def test_the_columns_that_chicagos_tips_are_judged_by_are_named():
    table = read_csv(real("chicago_taxi") / "simple" / "data.csv", columns="*, tips > 0.2 * fare AS big_tipper")
    assert set(alarms(table, target="big_tipper", data={"derive": {"big_tipper": "tips > 0.2 * fare"}})) == {
        "leakage: tips",
        "leakage: fare",
    }
    assert alarms(table.drop(["tips", "fare"]), target="big_tipper", data={"derive": {"big_tipper": "tips > 0.2 * fare"}}) == {}


def test_adult_raises_no_alarm():
    options = f", header=false, nullstr='?', names={[*ADULT, 'hours', 'country', 'income']}"
    table = read_csv(real("adult") / "adult.data", options)
    assert alarms(table, target="income") == {}
    assert all(record.ok for record in run(check_duplicates, job_of("income"), table, SIDE).values())


def test_california_raises_no_alarm():
    assert alarms(read_csv(real("california_housing") / "housing.csv"), target="median_house_value") == {}


@pytest.mark.parametrize(("target", "kind"), [("species", None), ("sex", None), ("body_mass_g", "regression")])
def test_penguins_raise_no_alarm(target, kind):
    table = read_csv(real("penguins") / "penguins.csv", ", nullstr='NA'")
    assert alarms(table.filter(table[target].is_valid()), target=target, kind=kind) == {}


def test_the_repeated_messages_of_sms_spam_are_found():
    table = read_csv(real("sms_spam") / "SMSSpamCollection", ", header=false, delim='\t', quote='', names=['label', 'text']")
    record = repeated_in_test(table, target="label")
    assert not record.ok
    with duckdb.connect() as connection:
        connection.register("stored", table)
        assert count_classes(connection, "stored", column_of(table.schema.field("label"))) == {"ham": 4827, "spam": 747}
