"""Inputs of a job: found, digested and read, and refused with the name of the file where that cannot be."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.config import DataConfig, parse_job
from refit.errors import CodeError, SourceError
from refit.ingestion import ingest
from refit.layout import Layout
from refit.references import CODE_VARIABLE
from refit.shards import read_table
from refit.sources import list_inputs
from refit.sources.inputs import identifier, literal
from refit.sources.seen import Seen

CSV = "x,y\n1,a\n2,b\n"
CODE = """\
import numpy as np
import pyarrow as pa
def batch(**columns): return pa.RecordBatch.from_pydict(columns)
def images(rows=2):
    values = np.arange(rows * 4, dtype=np.uint8).reshape(rows, 2, 2, 1)
    yield pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(values), pa.array(range(rows))], names=["image", "y"])
def two(): return [batch(x=[1], y=[0]), batch(x=[2, 3], y=[1, 0])]
def early():
    raise RuntimeError("early")
    yield
def late():
    yield batch(x=[1], y=[0])
    raise RuntimeError("late")
def late_type():
    yield batch(x=[1], y=[0])
    yield 3
def numbers(): yield 3
def nothing(): return iter(())
def none(): return None
"""


def data(*sources, **changes):
    return DataConfig.model_validate({"sources": list(sources), **changes})


def csv(path, **options):
    return {"kind": "csv", "path": str(path), **options}


def inputs(tmp_path, *sources):
    return list_inputs(data(*sources), {}, Seen.load(tmp_path / "seen.json"))


def columns(tmp_path, *sources, **changes):
    """Types of the stored columns by name."""
    return {column.name: column.type for column in stored(tmp_path, *sources, **changes)[0].columns}


def stored(tmp_path, *sources, **changes):
    job = parse_job({"name": "job", "data": {"sources": list(sources), **changes}, "target": {"column": "y"}})
    layout = Layout(tmp_path / "home")
    return ingest(job, layout), layout


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "sources_of_a_test.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "sources_of_a_test")
    yield lambda name, **options: {"kind": "python", "read": f"sources_of_a_test:{name}", "options": options}
    sys.modules.pop("sources_of_a_test", None)


# ---- finding


def test_a_file_that_two_patterns_match_is_refused(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(SourceError, match="would be read twice"):
        inputs(tmp_path, csv(tmp_path / "a.csv"), csv(tmp_path / "*.csv"))


# ---- digests


def test_the_digest_of_a_file_is_that_of_its_content_and_of_the_way_to_read_it(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.csv").write_text(CSV)
    (before,) = inputs(tmp_path, csv(tmp_path / "a.csv"))
    assert inputs(tmp_path, csv(tmp_path / "b.csv"))[0].digest == before.digest
    assert inputs(tmp_path, csv(tmp_path / "*a.csv"))[0].digest == before.digest
    assert inputs(tmp_path, csv(tmp_path / "a.csv", null_values=["NA"]))[0].digest != before.digest
    (tmp_path / "a.csv").write_text(CSV + "3,c\n")
    assert inputs(tmp_path, csv(tmp_path / "a.csv"))[0].digest != before.digest


def test_the_digest_of_a_function_is_that_of_what_it_yields(code, tmp_path) -> None:
    (before,) = inputs(tmp_path, code("images"))
    assert inputs(tmp_path, code("images"))[0] == before
    assert inputs(tmp_path, code("images", rows=3))[0].digest != before.digest
    assert before.name == "sources_of_a_test:images()"


# ---- columns


def test_types_are_inferred_over_the_whole_file(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1,0\n" * 50_000 + "1.5,0\n")
    assert columns(tmp_path, csv(tmp_path / "a.csv")) == {"x": "double", "y": "int64"}


def test_types_are_inferred_over_all_files(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,1\n")
    (tmp_path / "b.csv").write_text("x,y\nabc,2\n")
    assert columns(tmp_path, csv(tmp_path / "*.csv")) == {"x": "string", "y": "int64"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+3", ""], "int64"),
        (["1", "2.0"], "double"),
        (["1.5", "1e3", "inf"], "double"),
        (["true", "False", "TRUE"], "bool"),
        (["0", "1"], "int64"),
        (["t", "f"], "string"),
        (["2024-01-02", "2024-02-29"], "date32[day]"),
        (["2024-01-02", "2024-01-02 10:00"], "timestamp[us]"),
        (["2024-01-02T10:00:00Z", "2024-01-02T10:00:00.5+02:00"], "timestamp[us]"),
        (["02134", "10001"], "string"),
        (["0", "0.5", "-0.25"], "double"),
        (["12345678901234567890", "1"], "string"),
        (["1_000", "2"], "string"),
        (["1", "x"], "string"),
        (["", ""], "string"),
    ],
)
def test_a_column_gets_the_narrowest_type_that_every_value_fits(tmp_path, values, kind) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{value},1\n" for value in values))
    assert columns(tmp_path, csv(tmp_path / "a.csv"), max_rejected_fraction=1)["x"] == kind


def test_a_declared_type_wins(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    declared = {"x": "string", "y": "float32"}
    assert columns(tmp_path, csv(tmp_path / "a.csv"), columns=declared) == {"x": "string", "y": "float"}


def test_a_declared_column_that_is_nowhere_is_refused(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(SourceError, match="no source has the column 'z'"):
        columns(tmp_path, csv(tmp_path / "a.csv"), columns={"z": "string"})


def test_a_tensor_column_keeps_its_shape_and_type(code, tmp_path) -> None:
    image, label = stored(tmp_path, code("images"))[0].columns
    assert (image.type, image.shape, image.dtype) == ("fixed_size_binary[4]", (2, 2, 1), "uint8")
    assert (label.type, label.shape) == ("int64", None)


def test_parquet_is_read_in_its_own_types(tmp_path) -> None:
    table = pa.table({"x": pa.array([1, None], pa.int8()), "y": pa.array(["a", "b"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    snapshot, layout = stored(tmp_path, {"kind": "parquet", "path": str(tmp_path / "a.parquet")})
    assert [column.type for column in snapshot.columns] == ["int8", "string"]
    assert read_table(snapshot, layout, ["x", "y"]).to_pylist() == [{"x": 1, "y": "a"}, {"x": None, "y": "b"}]


def test_numbers_of_several_tables_get_a_type_that_holds_all_of_them(tmp_path) -> None:
    pq.write_table(pa.table({"x": pa.array([1], pa.int64()), "n": pa.array([1], pa.int8()), "y": [0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1.5], "n": pa.array([300], pa.int32()), "y": [1]}), tmp_path / "b.parquet")
    snapshot, layout = stored(tmp_path, {"kind": "parquet", "path": str(tmp_path / "*.parquet")})
    assert {column.name: column.type for column in snapshot.columns} == {"x": "double", "n": "int64", "y": "int64"}
    assert read_table(snapshot, layout, ["x", "n"]).to_pylist() == [{"x": 1.0, "n": 1}, {"x": 1.5, "n": 300}]


def test_a_function_may_return_a_list_of_batches(code, tmp_path) -> None:
    snapshot, layout = stored(tmp_path, code("two"))
    assert read_table(snapshot, layout, ["x"])["x"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["x'y.csv", 'x"y.csv', "x y.csv", "ä;--.csv"])
def test_a_file_of_an_odd_name_is_read(tmp_path, name) -> None:
    (tmp_path / name).write_text(CSV)
    assert stored(tmp_path, csv(tmp_path / "*.csv"))[0].num_rows == 2


@pytest.mark.parametrize(("name", "other"), [("a[1].csv", "a1.csv"), ("a*.csv", "ab.csv"), ("a?.csv", "ab.csv")])
def test_a_file_that_is_named_like_a_pattern_is_read_and_no_other(tmp_path, name, other) -> None:
    (tmp_path / name).write_text("x,y\n1,a\n")
    (tmp_path / other).write_text("x,y\n7,b\n")
    snapshot, layout = stored(tmp_path, csv(tmp_path / "*.csv"))
    assert sorted(read_table(snapshot, layout, ["x"])["x"].to_pylist()) == [1, 7]


# ---- what cannot be read


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("early", "RuntimeError: early"),
        ("numbers", "Received: int"),
        ("nothing", "Received: nothing"),
        ("none", "TypeError"),
        pytest.param("late", "late"),
        pytest.param(
            "late_type",
            "RecordBatch",
        ),
    ],
)
def test_a_function_that_does_not_yield_batches_is_refused_by_name(code, tmp_path, name, says) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        inputs(tmp_path, code(name))
    assert f"sources_of_a_test:{name}" in str(caught.value)


@pytest.mark.parametrize("source", [("missing", {}), ("images", {"row": 3})])
def test_a_function_that_cannot_be_called_is_refused(code, tmp_path, source) -> None:
    with pytest.raises(CodeError):
        inputs(tmp_path, code(source[0], **source[1]))


@pytest.mark.parametrize("text", ["", "a", "a'b", "'; DROP TABLE x; --", 'a"b', "''", "ä"])
def test_quoted_words_come_back_from_sql_as_they_were(text) -> None:
    import duckdb

    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT {literal(text)} AS {identifier(text or 'x')}")
        assert relation.fetchall() == [(text,)]
        assert relation.columns == [text or "x"]
