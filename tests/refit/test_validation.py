"""Each check passes when it should and fails when it should, and all failures are told together."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.config import parse_job
from refit.errors import DataError
from refit.ingestion import ingest
from refit.layout import Layout
from refit.records import Column
from refit.sizes import MINIMUM_ROWS
from refit.validation import fits, raise_failed, validate_snapshot

ROWS = 40


def columns(rows=ROWS, **changes):
    usual = {
        "id": list(range(rows)),
        "x": [i / 3 for i in range(rows)],
        "word": ["a", "b"] * (rows // 2),
        "y": [i % 2 for i in range(rows)],
    }
    return usual | changes


@pytest.fixture
def validate(tmp_path):
    def validate(table=None, target=None, **changes):
        table = columns() if table is None else table
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        source = {"kind": "parquet", "path": str(tmp_path / "a.parquet")}
        job = parse_job(
            {"name": "job", "data": {"sources": [source]}, "target": target or {"column": "y"}},
            {k.replace("__", "."): v for k, v in changes.items()},
        )
        layout = Layout(tmp_path / "home")
        snapshot = ingest(job, layout)
        return raise_failed(validate_snapshot(job, snapshot, layout), snapshot)

    return validate


def refusal(validate, *arguments, **changes):
    with pytest.raises(DataError) as caught:
        validate(*arguments, **changes)
    return str(caught.value)


def test_good_data_pass_every_check(validate) -> None:
    record = validate(features={"x": {"kind": "numeric"}, "word": {"kind": "category"}}, data__key=["id"])
    names = [check.name for check in record.checks]
    assert names[:6] == ["columns", "feature kinds", "target kind", "inputs readable", "labels", "target varies"]
    assert all(check.ok or check.only_warns for check in record.checks)
    assert record.drift.why_not == "There is no champion yet."


def test_what_only_warns_is_told_and_stops_nothing(validate, caplog) -> None:
    record = validate(data__expect={"x": {"min": 5, "otherwise": "warn"}})
    (warned,) = [check for check in record.warnings if check.name == "x: min"]
    assert "below 5" in warned.detail
    assert warned.detail in caplog.text
    assert record.brief().endswith(" warn")


def test_an_expectation_that_does_not_hold_is_refused(validate) -> None:
    assert "x: min: " in refusal(validate, data__expect={"x": {"min": 5}})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"target": {"column": "z"}}, "z"),
        ({"features": {"wird": {"kind": "category"}}}, "wird"),
    ],
)
def test_a_column_that_is_not_there_is_named(validate, changes, name) -> None:
    assert f'columns: "{name}" is no column of the data.' in refusal(validate, **changes)


def test_options_that_do_not_go_with_a_column_are_told_beside_wrong_kinds(validate) -> None:
    days = pa.array(range(ROWS), pa.date32())
    text = refusal(validate, columns(day=days), features={"day": {"kind": "timestamp", "parts": ["hour"]}, "word": {"kind": "vector"}})
    assert '"day": a date has no hour; "word" is string, which cannot be a vector' in text


def test_a_cross_is_no_column_and_its_parts_are(validate) -> None:
    features = {"word": {"kind": "category"}, "id": {"kind": "category"}, "both": {"kind": "cross", "of": ["word", "id"]}}
    assert validate(features=features).checks[0].ok


def test_a_column_that_is_not_there_gets_a_suggestion(validate) -> None:
    assert 'Did you mean "word"?' in refusal(validate, features={"wird": {"kind": "category"}})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("word", "numeric"),
        ("x", "category"),
        ("x", "image"),
        ("word", "image"),
        ("x", "text"),
        ("id", "text"),
        ("x", "vector"),
        ("word", "timestamp"),
    ],
)
def test_a_feature_of_a_kind_that_its_column_cannot_be_is_named(validate, name, kind) -> None:
    text = refusal(validate, features={name: {"kind": kind}})
    assert f'"{name}" is ' in text
    assert f"which cannot be a {kind}" in text


@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        (Column(name="c", type="double"), {"numeric"}),
        (Column(name="c", type="int64"), {"numeric", "category"}),
        (Column(name="c", type="bool"), {"numeric", "category"}),
        (Column(name="c", type="string"), {"category", "text"}),
        (Column(name="c", type="date32[day]"), {"timestamp"}),
        (Column(name="c", type="timestamp[us]"), {"timestamp"}),
        (Column(name="c", type="binary"), {"image"}),
        (Column(name="c", type="fixed_size_binary[4]", shape=(4,), dtype="uint8"), {"vector"}),
        (Column(name="c", type="fixed_size_binary[4]", shape=(2,), dtype="float16"), set()),
        (Column(name="c", type="fixed_size_binary[4]", shape=(2, 2, 1), dtype="uint8"), {"image"}),
        (Column(name="c", type="fixed_size_binary[16]", shape=(2, 2, 1), dtype="float32"), {"image"}),
        (Column(name="c", type="fixed_size_binary[32]", shape=(2, 2, 1), dtype="float64"), set()),
        (Column(name="c", type="fixed_size_binary[4]", shape=(2, 2), dtype="uint8"), set()),
    ],
)
def test_a_column_can_be_a_feature_of_these_kinds(column, kinds) -> None:
    assert {kind for kind in ("numeric", "category", "image", "text", "vector", "timestamp") if fits(column, kind)} == kinds


@pytest.mark.parametrize(
    ("values", "kind", "ok"),
    [
        ([0, 1], "binary", True),
        (["a", "b"], "classes", True),
        ([0.5, 1.5], "regression", True),
        (["a", "b"], "regression", False),
        ([0.5, 1.5], None, True),
        ([b"a", b"b"], "regression", False),
    ],
)
def test_a_target_fits_its_kind_or_not(validate, values, kind, ok) -> None:
    table = columns(y=values * (ROWS // 2))
    target = {"column": "y"} | ({"kind": kind} if kind else {})
    if ok:
        assert validate(table, target)
    else:
        assert f"no {kind}" in refusal(validate, table, target)


def test_a_date_cannot_be_a_target(validate) -> None:
    table = columns(y=pa.array([0, 1] * (ROWS // 2), pa.date32()))
    assert "target kind: " in refusal(validate, table)


def test_too_few_rows_are_refused_and_just_enough_pass(validate) -> None:
    assert "rows: 18 rows are too few" in refusal(validate, columns(MINIMUM_ROWS - 2))
    assert validate(columns(MINIMUM_ROWS))


def test_missing_labels_are_counted(validate) -> None:
    assert "labels: 3 of 40 labels (7.5 %) are missing" in refusal(validate, columns(y=[None] * 3 + [0] * (ROWS - 4) + [1]))


def test_a_target_that_never_varies_is_refused(validate) -> None:
    assert '"y" has the same value in every row' in refusal(validate, columns(y=[1] * ROWS))


def test_repeated_rows_are_no_fault_without_a_key(validate) -> None:
    assert validate(columns(id=[0] * ROWS, x=[1.0] * ROWS))


def test_all_failures_are_told_together(validate) -> None:
    table = columns(18, y=[None] + [1] * 17)
    text = refusal(validate, table, features={"word": {"kind": "numeric"}})
    assert "4 checks failed:" in text
    for name in ("feature kinds", "rows", "labels", "target varies"):
        assert f"  - {name}: " in text
