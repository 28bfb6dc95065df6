"""Inputs of a job: found, digested and read, and refused with the name of the file where that cannot be."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.config import DataConfig
from refit.errors import CodeError, RefitError, SourceError
from refit.references import CODE_VARIABLE
from refit.sources import find_files, identifier, list_inputs, literal, read_batches, read_columns

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


def rows(found):
    rejects = []
    tables = [batch.to_pylist() for batch in read_batches(found, rejects)]
    return [row for table in tables for row in table], rejects


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "sources_of_a_test.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "sources_of_a_test")
    yield lambda name, **options: {"kind": "python", "read": f"sources_of_a_test:{name}", "options": options}
    sys.modules.pop("sources_of_a_test", None)


# ---- finding


def test_files_are_found_by_glob_and_sorted(tmp_path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "deep/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CSV)
    assert [path.name for path in find_files(str(tmp_path / "*.csv"))] == ["a.csv", "b.csv"]
    assert [path.name for path in find_files(str(tmp_path / "**" / "*.csv"))] == ["a.csv", "b.csv", "d.csv"]


def test_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    assert [found.name for found in list_inputs(data(csv("*.csv")))] == ["a.csv"]


@pytest.mark.parametrize(
    ("pattern", "says"), [("none.csv", "does not exist"), ("*.csv", "matches no file"), ("no/*.csv", "matches no file")]
)
def test_a_pattern_without_a_file_is_refused(tmp_path, pattern, says) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        list_inputs(data(csv(tmp_path / pattern)))
    assert pattern in str(caught.value)


def test_a_folder_that_is_named_like_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "x.csv").mkdir()
    for pattern in ("x.csv", "*.csv"):
        with pytest.raises(SourceError, match="is a folder"):
            list_inputs(data(csv(tmp_path / pattern)))


def test_a_folder_beside_files_is_passed_over(tmp_path) -> None:
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "a.csv").write_text(CSV)
    assert [path.name for path in find_files(str(tmp_path / "*.csv"))] == ["a.csv"]


def test_a_file_that_two_patterns_match_is_refused(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(SourceError, match="would be read twice"):
        list_inputs(data(csv(tmp_path / "a.csv"), csv(tmp_path / "*.csv")))


def test_a_link_that_leads_nowhere_is_refused(tmp_path) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / "none")
    with pytest.raises(SourceError):
        list_inputs(data(csv(tmp_path / "a.csv")))


# ---- digests


def test_the_digest_of_a_file_is_that_of_its_content_and_of_the_way_to_read_it(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.csv").write_text(CSV)
    (before,) = list_inputs(data(csv(tmp_path / "a.csv")))
    assert list_inputs(data(csv(tmp_path / "b.csv")))[0].digest == before.digest
    assert list_inputs(data(csv(tmp_path / "*a.csv")))[0].digest == before.digest
    assert list_inputs(data(csv(tmp_path / "a.csv", null_values=["NA"])))[0].digest != before.digest
    (tmp_path / "a.csv").write_text(CSV + "3,c\n")
    assert list_inputs(data(csv(tmp_path / "a.csv")))[0].digest != before.digest


def test_the_digest_of_a_function_is_that_of_what_it_yields(code) -> None:
    (before,) = list_inputs(data(code("images")))
    assert list_inputs(data(code("images")))[0] == before
    assert list_inputs(data(code("images", rows=3)))[0].digest != before.digest
    assert before.name == "sources_of_a_test:images()"


# ---- columns


def test_types_are_inferred_over_the_whole_file(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1,0\n" * 50_000 + "1.5,0\n")
    columns = read_columns(list_inputs(data(csv(tmp_path / "a.csv"))), {})
    assert {column.name: column.type for column in columns} == {"x": "double", "y": "int64"}


def test_types_are_inferred_over_all_files(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "b.csv").write_text("x\nabc\n")
    assert read_columns(list_inputs(data(csv(tmp_path / "*.csv"))), {})[0].type == "string"


def test_a_declared_type_wins(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    columns = read_columns(list_inputs(data(csv(tmp_path / "a.csv"))), {"x": "string", "y": "float32"})
    assert [column.type for column in columns] == ["string", "float"]


def test_a_declared_column_that_is_nowhere_is_refused(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(SourceError, match="no source has the column 'z'"):
        read_columns(list_inputs(data(csv(tmp_path / "a.csv"))), {"z": "string"})


def test_a_tensor_column_keeps_its_shape_and_type(code) -> None:
    image, label = read_columns(list_inputs(data(code("images"))), {})
    assert (image.type, image.shape, image.dtype) == ("fixed_size_binary[4]", (2, 2, 1), "uint8")
    assert (label.type, label.shape) == ("int64", None)


# ---- reading


def test_csv_is_read_as_text_with_quotes_and_line_breaks(tmp_path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n"a ""b"", c",1\n"l1\nl2",2\n,""\n')
    found, rejects = rows(list_inputs(data(csv(tmp_path / "a.csv")))[0])
    assert found[:2] == [{"x": 'a "b", c', "y": "1"}, {"x": "l1\nl2", "y": "2"}]
    assert found[2]["x"] is None
    assert rejects == []


def test_broken_lines_are_set_aside_with_their_number_and_text(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,a\n2\n3,c,extra\n4,d\n")
    found, rejects = rows(list_inputs(data(csv(tmp_path / "a.csv")))[0])
    assert [row["x"] for row in found] == ["1", "4"]
    assert [(reject.line, reject.text.strip()) for reject in rejects] == [(3, "2"), (4, "3,c,extra")]
    assert all(reject.reason for reject in rejects)


def test_strings_that_stand_for_a_missing_value_are_missing(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\nNA,1\n,2\nn/a,3\n")
    found, _ = rows(list_inputs(data(csv(tmp_path / "a.csv", null_values=["NA", "n/a"])))[0])
    assert [row["x"] for row in found] == [None, "", None] or [row["x"] for row in found] == [None, None, None]


def test_a_file_without_a_header_takes_the_given_names(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("1;a\n2;b\n")
    found, _ = rows(list_inputs(data(csv(tmp_path / "a.csv", header=False, names=["x", "y"], delimiter=";")))[0])
    assert found == [{"x": "1", "y": "a"}, {"x": "2", "y": "b"}]


@pytest.mark.parametrize("text", ['{"x": 1, "y": "a"}\n{"x": 2, "y": "b"}\n', '[{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]'])
def test_json_is_read_from_lines_and_from_an_array(tmp_path, text) -> None:
    (tmp_path / "a.json").write_text(text)
    found, _ = rows(list_inputs(data({"kind": "json", "path": str(tmp_path / "a.json")}))[0])
    assert found == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]


def test_parquet_is_read_in_its_own_types(tmp_path) -> None:
    pq.write_table(pa.table({"x": pa.array([1, None], pa.int8()), "y": ["a", "b"]}), tmp_path / "a.parquet")
    inputs = list_inputs(data({"kind": "parquet", "path": str(tmp_path / "a.parquet")}))
    assert rows(inputs[0])[0] == [{"x": 1, "y": "a"}, {"x": None, "y": "b"}]
    assert [column.type for column in read_columns(inputs, {})] == ["int8", "string"]


def test_a_function_may_return_a_list_of_batches(code) -> None:
    assert [row["x"] for row in rows(list_inputs(data(code("two")))[0])[0]] == [1, 2, 3]


@pytest.mark.parametrize("name", ["x'y.csv", 'x"y.csv', "x y.csv", "ä;--.csv"])
def test_a_file_of_an_odd_name_is_read(tmp_path, name) -> None:
    (tmp_path / name).write_text(CSV)
    assert len(rows(list_inputs(data(csv(tmp_path / "*.csv")))[0])[0]) == 2


@pytest.mark.parametrize(("name", "other"), [("a[1].csv", "a1.csv"), ("a*.csv", "ab.csv"), ("a?.csv", "ab.csv")])
def test_a_file_that_is_named_like_a_pattern_is_read_and_no_other(tmp_path, name, other) -> None:
    (tmp_path / name).write_text("x,y\n1,a\n")
    (tmp_path / other).write_text("x,y\n7,b\n")
    inputs = {found.name: rows(found)[0] for found in list_inputs(data(csv(tmp_path / "*.csv")))}
    assert inputs[str(tmp_path / name)] == [{"x": "1", "y": "a"}]


# ---- what cannot be read


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", bytes(range(256)) * 20),
        ("csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 10),
        ("json", b"\x80\x81" * 100),
        ("json", b'{"x": 1}\n{"x": '),
        ("parquet", b""),
        ("parquet", b"x,y\n1,2\n"),
        ("parquet", b"PAR1" + b"\x07" * 300 + b"PAR1"),
    ],
)
def test_a_file_that_is_not_what_it_is_called_is_refused_by_name(tmp_path, kind, content) -> None:
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(SourceError, match=f"cannot be read as {kind}") as caught:
        read_columns(list_inputs(data({"kind": kind, "path": str(tmp_path / f"a.{kind}")})), {})
    assert str(tmp_path / f"a.{kind}") in str(caught.value)


def test_a_damaged_gzip_file_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(SourceError, match=r"a\.csv\.gz"):
        read_columns(list_inputs(data(csv(tmp_path / "a.csv.gz"))), {})


@pytest.mark.parametrize(
    "options",
    [{"delimiter": '"'}, {"null_values": [","]}, {"header": False, "names": ["x", "x"]}],
)
def test_options_that_contradict_each_other_are_refused_by_name(tmp_path, options) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(SourceError, match="cannot be read as csv"):
        read_columns(list_inputs(data(csv(tmp_path / "a.csv", **options))), {})


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
def test_a_function_that_does_not_yield_batches_is_refused_by_name(code, name, says) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        list_inputs(data(code(name)))
    assert f"sources_of_a_test:{name}" in str(caught.value)


@pytest.mark.parametrize("source", [("missing", {}), ("images", {"row": 3})])
def test_a_function_that_cannot_be_called_is_refused(code, source) -> None:
    with pytest.raises(CodeError):
        list_inputs(data(code(source[0], **source[1])))


def test_every_refusal_is_one_of_ours() -> None:
    assert issubclass(SourceError, RefitError)


@pytest.mark.parametrize("text", ["", "a", "a'b", "'; DROP TABLE x; --", 'a"b', "''", "ä"])
def test_quoted_words_come_back_from_sql_as_they_were(text) -> None:
    import duckdb

    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT {literal(text)} AS {identifier(text or 'x')}")
        assert relation.fetchall() == [(text,)]
        assert relation.columns == [text or "x"]
