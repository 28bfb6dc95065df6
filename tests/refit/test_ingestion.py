"""Nothing is lost, nothing is read twice, and a job's SQL reaches nothing but its rows."""

import hashlib
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.casting import sealed_connection
from refit.config import parse_job
from refit.errors import DataError, JobError, RefitError, SchemaMismatchError, SourceError
from refit.ingestion import ingest, read_head
from refit.layout import Layout
from refit.records import Column
from refit.references import CODE_VARIABLE
from refit.schema import KEY_HASH, SQL_TYPES, arrow_schema, column_type, field_of
from refit.shards import read_table
from tests.refit.reference_hash import hash_of

CODE = """\
import numpy as np
import pyarrow as pa
def images(rows=3, dtype="uint8"):
    values = np.arange(rows * 4, dtype=dtype).reshape(rows, 2, 2, 1)
    yield pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(values), pa.array(range(rows))], names=["x", "y"])
def gaps():
    storage = pa.array([[1, 2], None], pa.list_(pa.uint8(), 2))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (2,)), storage)
    yield pa.RecordBatch.from_arrays([tensors, pa.array([0, 1])], names=["x", "y"])
def changing():
    yield pa.RecordBatch.from_pydict({"x": [1], "y": [0]})
    yield pa.RecordBatch.from_pydict({"x": ["a"], "y": [0]})
def losing():
    yield from [pa.RecordBatch.from_pydict({"x": [1] * 50_000, "y": [0] * 50_000})] * 8
    yield pa.RecordBatch.from_pydict({"y": [0]})
def growing():
    yield pa.RecordBatch.from_pydict({"x": [1], "y": [0]})
    yield pa.RecordBatch.from_pydict({"x": [2], "more": ["a"], "y": [1]})
def far():
    yield pa.RecordBatch.from_arrays([pa.array([2**60], pa.timestamp("s")), pa.array([0])], names=["x", "y"])
def repeated(): yield pa.RecordBatch.from_arrays([pa.array([1])] * 3, names=["x", "x", "y"])
def cases(): yield pa.RecordBatch.from_pydict({"x": [1], "X": [2], "y": [0]})
"""


class Workshop:
    """A folder of sources and a home beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.layout = Layout(folder / "home")
        self.home = self.layout.dataset("job")
        (folder / "in").mkdir()

    def write(self, name, content):
        path = self.folder / "in" / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
        return path

    def job(self, pattern="*.csv", source=None, **changes):
        kind = pattern.rpartition(".")[2].replace("gz", "csv")
        tree = {
            "name": "job",
            "data": {"sources": [source or {"kind": kind, "path": str(self.folder / "in" / pattern)}]},
            "target": {"column": "y"},
        }
        return parse_job(tree, {key.replace("__", "."): value for key, value in changes.items()})

    def ingest(self, pattern="*.csv", source=None, **changes):
        job = self.job(pattern, source, **changes)
        return ingest(job, self.layout)

    def rows(self, snapshot, *columns):
        tables = [pq.ParquetFile(self.home.shard(shard.digest)).read() for shard in snapshot.shards]
        table = pa.concat_tables(tables)
        return table.select(columns or [name for name in table.column_names if name != KEY_HASH]).to_pylist()

    def hashes(self, snapshot):
        return [row[KEY_HASH] for row in self.rows(snapshot, KEY_HASH)]

    def rejects(self):
        return [row for path in sorted(self.home.rejects_dir.glob("*")) for row in pq.read_table(path).to_pylist()]

    def files(self):
        return {
            path: path.stat().st_mtime_ns
            for path in self.home.root.rglob("*")
            if path.is_file() and path not in (self.home.lock, self.home.seen)
        }


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "ingestion_of_a_test.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "ingestion_of_a_test")
    yield lambda name, **options: {"kind": "python", "read": f"ingestion_of_a_test:{name}", "options": options}
    sys.modules.pop("ingestion_of_a_test", None)


def counts(snapshot):
    for source in snapshot.sources:
        kept = source.num_kept + source.num_rejected + source.num_filtered + source.num_duplicate + source.num_superseded
        assert source.num_read == kept
        assert source.num_kept == sum(shard.num_rows for shard in source.shards)
    return [(s.num_read, s.num_kept, s.num_rejected, s.num_filtered) for s in snapshot.sources]


# ---- what is kept


def test_csv_becomes_typed_rows_in_their_order(shop) -> None:
    shop.write("a.csv", 'x,when,name,ok,y\n2.5,2024-01-02,"a ""b"", c",true,1\n,2024-01-03,"l1\nl2",false,0\n')
    snapshot = shop.ingest()
    assert {column.name: column.type for column in snapshot.columns} == {
        "x": "double",
        "when": "date32[day]",
        "name": "string",
        "ok": "bool",
        "y": "int64",
    }
    first, second = shop.rows(snapshot)
    assert (first["x"], first["name"], first["ok"], str(first["when"])) == (2.5, 'a "b", c', True, "2024-01-02")
    assert (second["x"], second["name"]) == (None, "l1\nl2")
    assert counts(snapshot) == [(2, 2, 0, 0)]


def test_a_shard_carries_the_key_hash_and_is_named_by_its_content(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    snapshot = shop.ingest()
    (shard,) = snapshot.shards
    path = shop.home.shard(shard.digest)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.digest
    assert path.stat().st_size == shard.num_bytes
    assert pq.read_schema(path).equals(arrow_schema(snapshot.columns), check_metadata=True)
    assert snapshot.key_hash == "murmur64a/1"


def test_a_file_without_a_header_has_the_given_names_and_declared_types(shop) -> None:
    shop.write("a.csv", "1|a\n2|b\n")
    options = {"kind": "csv", "path": str(shop.folder / "in" / "a.csv"), "header": False, "names": ["x", "y"], "delimiter": "|"}
    snapshot = shop.ingest(source=options, data__columns={"x": "float32"})
    assert [column.type for column in snapshot.columns] == ["float", "string"]
    assert shop.rows(snapshot) == [{"x": 1.0, "y": "a"}, {"x": 2.0, "y": "b"}]


@pytest.mark.parametrize("text", ['{"x": 1, "y": "a"}\n{"y": "b"}\n', '[{"x": 1, "y": "a"}, {"y": "b"}]'])
def test_json_lines_and_arrays_give_the_same_rows(shop, text) -> None:
    shop.write("a.json", text)
    assert shop.rows(shop.ingest("*.json")) == [{"x": 1, "y": "a"}, {"x": None, "y": "b"}]


def test_parquet_keeps_its_types(shop) -> None:
    table = pa.table(
        {"x": pa.array([1.5, None], pa.float32()), "n": pa.array([1, 2], pa.int16()), "y": pa.array(["a", "b"], pa.large_string())}
    )
    shop.write("a.parquet", table)
    snapshot = shop.ingest("*.parquet")
    assert [column.type for column in snapshot.columns] == ["float", "int16", "string"]
    assert shop.rows(snapshot) == [{"x": 1.5, "n": 1, "y": "a"}, {"x": None, "n": 2, "y": "b"}]


@pytest.mark.parametrize(
    "unit",
    [
        "ms",
        "us",
        pytest.param(
            "ns",
        ),
    ],
)
def test_a_time_with_a_zone_is_stored_in_utc(shop, unit) -> None:
    seconds = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    shop.write("a.parquet", pa.table({"x": pa.array([1_700_000_000 * seconds] * 2, pa.timestamp(unit, tz="Europe/Berlin")), "y": [0, 1]}))
    assert [str(row["x"]) for row in shop.rows(shop.ingest("*.parquet"))] == ["2023-11-14 22:13:20"] * 2


def test_a_time_with_an_offset_in_text_is_stored_in_utc(shop) -> None:
    shop.write("a.csv", "x,y\n2024-01-01T10:00:00+02:00,1\n2024-01-01T10:00:00Z,1\n")
    assert [row["x"].hour for row in shop.rows(shop.ingest())] == [8, 10]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_tensors_of_a_function_are_stored_as_their_bytes(shop, code, dtype) -> None:
    snapshot = shop.ingest(source=code("images", dtype=dtype))
    column = snapshot.column("x")
    assert (column.shape, column.dtype) == ((2, 2, 1), dtype)
    expected = np.arange(12, dtype=dtype).reshape(3, 2, 2, 1)
    assert [row["x"] for row in shop.rows(snapshot)] == [value.tobytes() for value in expected]


def test_many_row_groups_are_written_in_order(shop) -> None:
    shop.write("a.parquet", pa.table({"x": range(40_000), "y": [0, 1] * 20_000}))
    snapshot = shop.ingest("*.parquet", data__where="x % 3 > 0")
    assert [row["x"] for row in shop.rows(snapshot, "x")] == [x for x in range(40_000) if x % 3]
    (shard,) = snapshot.shards
    metadata = pq.ParquetFile(shop.home.shard(shard.digest)).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [16_384, 10_282]
    assert counts(snapshot) == [(40_000, 26_666, 0, 13_334)]


# ---- what is rejected and filtered


def test_a_column_that_only_later_batches_have_is_missing_before_and_ignored_where_nothing_pinned_it(shop, code) -> None:
    shop.write("a.parquet", pa.table({"x": [0], "more": ["b"], "y": [1]}))
    sources = [{"kind": "parquet", "path": str(shop.folder / "in" / "a.parquet")}, code("growing")]
    tree = {"name": "job", "data": {"sources": sources, "optional": ["more"]}, "target": {"column": "y"}}
    table = read_table(ingest(parse_job(tree), shop.layout), shop.layout, ["x", "more"])
    assert table.to_pydict() == {"x": [0, 1, 2], "more": ["b", None, "a"]}
    alone = parse_job(tree, {"data.sources": sources[1:], "data.optional": [], "name": "alone"})
    assert [column.name for column in ingest(alone, shop.layout).columns] == ["x", "y"]


def test_times_beyond_what_microseconds_can_say_are_refused(shop, code) -> None:
    with pytest.raises(SourceError, match="too far away"):
        shop.ingest(source=code("far"))


def test_a_name_that_duckdb_gives_to_positions_is_refused(shop) -> None:
    shop.write("a.csv", "file_row_number,x,y\n1,2,0\n")
    with pytest.raises(SchemaMismatchError, match="kept for refit"):
        shop.ingest()


def test_a_derived_number_that_is_not_finite_is_missing(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n0,1\n")
    snapshot = shop.ingest(data__derive={"z": "exp(1000 * x)"})
    assert read_table(snapshot, shop.layout, ["z"])["z"].to_pylist() == [None, 1.0]


def test_every_row_that_was_read_is_kept_rejected_or_filtered(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\nbad,1\n3\n4,1,extra\n5,0\n-1,1\n,1\n")
    shop.write("b.csv", "x,y\n7,1\n")
    snapshot = shop.ingest(data__columns={"x": "int64"}, data__where="x > 0", data__max_rejected_fraction=1)
    assert counts(snapshot) == [(7, 2, 3, 2), (1, 1, 0, 0)]
    assert [row["x"] for row in shop.rows(snapshot)] == [1, 5, 7]


def test_rejects_are_kept_with_file_place_reason_and_value(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\nbad,1\n3\n5,0\n")
    shop.ingest(data__columns={"x": "int64"}, data__max_rejected_fraction=1)
    value, line = sorted(shop.rejects(), key=lambda row: row["line"])
    told = {"column": "x", "reason": "does not fit the column's type", "value": "bad", "text": "bad,1"}
    assert value == {"file": str(path), "line": 3, "row": None, **told}
    assert (line["file"], line["line"], line["text"].strip()) == (str(path), 4, "3")
    assert line["reason"]


def test_a_value_beyond_its_type_is_rejected(shop) -> None:
    shop.write("a.csv", "x,y\n127,0\n128,1\n-129,1\n")
    snapshot = shop.ingest(data__columns={"x": "int8"}, data__max_rejected_fraction=1)
    assert counts(snapshot) == [(3, 1, 2, 0)]
    assert [row["value"] for row in shop.rejects()] == ["128", "-129"]


def test_a_source_without_faults_leaves_no_rejects_file(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    shop.ingest()
    assert list(shop.home.rejects_dir.iterdir()) == []


def test_too_many_rejects_fail_the_ingest_and_leave_the_data_set_as_it_was(shop) -> None:
    shop.write("a.csv", "x,y\n" + "1,0\n" * 50)
    before = shop.ingest(data__columns={"x": "int64"})
    files = shop.files()
    shop.write("b.csv", "x,y\n" + "1,0\n" * 8 + "bad,0\n" * 2)
    with pytest.raises(DataError, match=r'2 of 10 rows cannot be used: "x": does not fit the column\'s type .2.') as caught:
        shop.ingest(data__columns={"x": "int64"})
    assert "1.00%" in str(caught.value)
    assert read_head(shop.home) == before
    (told,) = shop.home.rejects_dir.iterdir()
    assert str(told) in str(caught.value)
    aside = (shop.home.shards_dir, shop.home.profiles_dir)  # what no snapshot names

    def known(paths):
        return {path for path in paths if path.parent not in aside}

    assert known(shop.files()) == {*known(files), told}
    assert shop.ingest(data__columns={"x": "int64"}, data__max_rejected_fraction=0.2).num_rows == 58


def test_the_limit_on_rejects_is_inclusive(shop) -> None:
    shop.write("a.csv", "x,y\n" + "1,0\n" * 99 + "bad,0\n")
    assert counts(shop.ingest(data__columns={"x": "int64"}, data__max_rejected_fraction=0.01)) == [(100, 99, 1, 0)]


@pytest.mark.parametrize(("text", "where"), [("x,y\n", None), ("x,y\n1,0\n", "x > 1"), ("", None), ("\n", None)])
def test_a_data_set_without_a_row_is_refused(shop, text, where) -> None:
    path = shop.write("a.csv", text)
    with pytest.raises(DataError, match=r"no row is left|the file is empty") as caught:
        shop.ingest(data__where=where)
    assert str(path) in str(caught.value)
    assert read_head(shop.home) is None


# ---- incremental


def test_the_same_inputs_give_the_same_snapshot_and_write_nothing(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    before = shop.ingest()
    files = shop.files()
    assert shop.ingest() == before
    assert shop.files() == files


def test_two_homes_give_one_snapshot_id(shop, tmp_path) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    job = shop.job()
    other = ingest(job, Layout(tmp_path / "other"))
    assert other == shop.ingest()


def test_only_a_new_file_is_read_and_old_shards_are_kept(shop) -> None:
    shop.write("b.csv", "x,y\n1,0\n")
    before = shop.ingest()
    files = shop.files()
    shop.write("a.csv", "x,y\n2,1\n")
    digest_of_old = before.sources[0].digest
    job = shop.job()
    told = []
    after = ingest(job, shop.layout, on_progress=told.append)
    assert {progress.name for progress in told} == {str(shop.folder / "in" / "a.csv")}
    assert after.parent == before.id
    assert after.sources[0].digest == digest_of_old
    assert after.sources[0] == before.sources[0]
    assert all(shop.files()[path] == time for path, time in files.items() if path != shop.home.head)
    assert read_head(shop.home) == after
    assert [row["x"] for row in shop.rows(after)] == [1, 2]


def test_a_changed_file_replaces_its_rows(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    shop.write("b.csv", "x,y\n2,0\n")
    before = shop.ingest()
    shop.write("a.csv", "x,y\n7,0\n8,0\n")
    after = shop.ingest()
    assert [row["x"] for row in shop.rows(after)] == [2, 7, 8]
    assert after.parent == before.id
    assert [row["x"] for row in shop.rows(before)] == [1, 2]


def test_the_rows_of_a_file_that_has_vanished_are_kept_and_the_snapshot_says_so(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    path.unlink()
    after = shop.ingest()
    assert [row["x"] for row in shop.rows(after)] == [1, 2]
    assert [source.is_vanished for source in after.sources] == [True, False]
    shop.write("a.csv", "x,y\n1,0\n")
    assert [source.is_vanished for source in shop.ingest().sources] == [False, False]


def test_the_rows_of_a_file_that_has_vanished_go_where_the_job_says_so(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    path.unlink()
    assert [row["x"] for row in shop.rows(shop.ingest(data__vanished="drop"))] == [2]


def test_all_files_may_vanish_once_their_rows_are_kept(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    shop.ingest()
    path.unlink()
    assert shop.ingest().num_rows == 1


def test_files_that_the_job_no_longer_names_take_their_rows_along(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    assert [row["x"] for row in shop.rows(shop.ingest("b.csv"))] == [2]


def test_a_renamed_file_is_not_read_again(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    path.rename(path.with_name("c.csv"))
    told = []
    after = ingest(shop.job(), shop.layout, on_progress=told.append)
    assert not told
    assert [source.name[-5:] for source in after.sources] == ["c.csv", "b.csv"]
    assert not any(source.is_vanished for source in after.sources)


def test_a_file_moved_over_another_takes_its_place(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    other = shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    path.replace(other)
    assert [row["x"] for row in shop.rows(shop.ingest())] == [1]


def test_rows_are_kept_for_the_source_that_named_them_last(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    path = shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    shop.ingest("[ab].csv")
    path.unlink()
    assert [row["x"] for row in shop.rows(shop.ingest("[ab].csv"))] == [1, 2]


def test_a_copy_counts_twice_without_a_key(shop) -> None:
    path = shop.write("a.csv", "x,y\n1,0\n")
    shop.ingest()
    shop.write("b.csv", path.read_text())
    assert [row["x"] for row in shop.rows(shop.ingest())] == [1, 1]


def test_data_that_come_back_to_what_they_were_are_the_snapshot_that_they_were(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    first = shop.ingest()
    path = shop.write("b.csv", "x,y\n2,0\n")
    shop.ingest()
    path.unlink()
    assert shop.ingest(data__vanished="drop").id == first.id
    assert read_head(shop.home) == first


def test_another_way_of_reading_begins_the_data_set_anew(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    before = shop.ingest()
    after = shop.ingest(data__where="x > 1")
    assert (after.parent, after.num_rows) == (None, 1)
    assert after.reading != before.reading


@pytest.mark.parametrize(
    "value",
    ["abc", "1.5"],
)
def test_a_value_that_does_not_fit_a_column_pinned_by_the_first_snapshot_is_rejected(shop, value) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    shop.ingest()
    shop.write("b.csv", f"x,y\n{value},0\n3,1\n4,1\n")
    with pytest.raises(DataError, match='"x": does not fit the column\'s type'):
        shop.ingest(data__max_rejected_fraction=0.3)


def test_a_column_of_another_type_is_no_heap_of_bad_rows(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    before = shop.ingest()
    path = shop.write("b.csv", "x,y\n" + "abc,0\n" * 20 + "3,1\n")
    with pytest.raises(SchemaMismatchError, match=r"\"x\": expected int64, received 'abc' and such .20 of 21.") as caught:
        shop.ingest(data__max_rejected_fraction=0.1)
    assert str(path) in str(caught.value)
    assert read_head(shop.home) == before


def test_a_fraction_does_not_fit_a_column_of_whole_numbers(shop) -> None:
    shop.write("a.csv", "x,y\n1.5,0\n2,1\n")
    assert counts(shop.ingest(data__columns={"x": "int64"}, data__max_rejected_fraction=1)) == [(2, 1, 1, 0)]


def test_a_new_file_without_a_pinned_column_is_refused_by_name(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    before = shop.ingest()
    path = shop.write("b.csv", "z,y\n1,0\n")
    with pytest.raises(SchemaMismatchError, match="missing: x") as caught:
        shop.ingest()
    assert str(path) in str(caught.value)
    assert read_head(shop.home) == before


def test_a_new_column_of_a_new_file_is_left_out(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    shop.ingest()
    shop.write("b.csv", "x,z,y\n2,9,0\n")
    after = shop.ingest()
    assert [column.name for column in after.columns] == ["x", "y"]
    assert shop.rows(after)[1] == {"x": 2, "y": 0}


def test_an_image_of_another_shape_is_refused(shop, code, tmp_path) -> None:
    shop.ingest(source=code("images"))
    other = CODE.replace("reshape(rows, 2, 2, 1)", "reshape(rows, 4, 1, 1)")
    (tmp_path / "ingestion_of_a_test.py").write_text(other)
    del sys.modules["ingestion_of_a_test"]
    with pytest.raises(SchemaMismatchError, match=r"\"x\": expected uint8 \[2, 2, 1\], received uint8 \[4, 1, 1\]"):
        shop.ingest(source=code("images", rows=5))


def test_a_file_without_a_column_of_its_siblings_is_refused_by_name(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    path = shop.write("b.csv", "x,y,z\n1,0,1\n")
    with pytest.raises(SchemaMismatchError, match="missing: z") as caught:
        shop.ingest()
    assert str(path.with_name("a.csv")) in str(caught.value)
    assert [row["z"] for row in shop.rows(shop.ingest(data__optional=["z"]))] == [None, 1]


# ---- SQL


def test_columns_are_derived_also_from_one_another(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    snapshot = shop.ingest(data__derive={"double": "x * 2 -- a comment", "more": "double + 0.5"})
    assert [(row["double"], row["more"]) for row in shop.rows(snapshot)] == [(2, 2.5), (4, 4.5)]
    assert [column.type for column in snapshot.columns] == ["int64", "int64", "int64", "double"]


def test_a_target_may_be_derived(shop) -> None:
    shop.write("a.csv", "x\n1\n2\n")
    assert [row["y"] for row in shop.rows(shop.ingest(data__derive={"y": "x > 1"}))] == [False, True]


def test_a_condition_that_is_unknown_filters_the_row(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n,1\n")
    assert counts(shop.ingest(data__where="x > 0")) == [(2, 1, 0, 1)]


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.csv"
    path.write_text("word\nsesame\n")
    return path


@pytest.mark.parametrize(
    "expression",
    [
        "(SELECT count(*) FROM read_csv('{secret}'))",
        "(SELECT count(*) FROM read_csv('/etc/passwd'))",
        "(SELECT content FROM read_text('{secret}'))",
        "(SELECT count(*) FROM '{secret}')",
        "(SELECT count(*) FROM glob('{secret}'))",
        "(SELECT count(*) FROM read_parquet('http://127.0.0.1:9/x.parquet'))",
        "(SELECT count(*) FROM job)",
        "(SELECT count(*) FROM _python_table)",
        "getenv('HOME')",
        "1); COPY (SELECT 1) TO '{secret}.out'; SELECT (1",
        "1); ATTACH '{secret}.db' AS other; SELECT (1",
        "1); SET enable_external_access = true; SELECT (1",
        "1); INSTALL httpfs; SELECT (1",
        "1) AS z FROM (COPY (SELECT 1) TO '{secret}.out') --",
        "sesam",
        "sum(x)",
        "x +",
        "*) FROM (SELECT 1",
    ],
)
@pytest.mark.parametrize("key", ["derive", "where"])
def test_an_expression_that_reaches_beyond_its_row_is_refused(shop, secret, expression, key) -> None:
    _python_table = pa.table({"a": [1]})
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    text = expression.format(secret=secret)
    given = {"data__derive": {"z": text}} if key == "derive" else {"data__where": text}
    with pytest.raises(JobError, match=rf"data\.{key}.*the SQL cannot be evaluated") as caught:
        shop.ingest(**given)
    assert caught.value.received == text
    assert {path.name for path in secret.parent.iterdir()} <= {"secret.csv", "in", "home"}
    assert read_head(shop.home) is None


@pytest.mark.parametrize(
    "statement",
    [
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SET python_enable_replacements = true",
        "COPY (SELECT 1) TO '/tmp/refit-sealed'",
        "ATTACH '/tmp/refit-sealed.db'",
        "INSTALL httpfs",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM outside",
    ],
)
def test_a_sealed_connection_stays_sealed(statement) -> None:
    import duckdb

    outside = pa.table({"a": [1]})
    assert outside.num_rows == 1
    with sealed_connection() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement)


def test_a_sealed_connection_counts_time_in_utc() -> None:
    with sealed_connection() as connection:
        assert connection.sql("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


LATE = ()


@pytest.mark.parametrize("key", ["derive", "where"])
@pytest.mark.parametrize("rows", [1, pytest.param(400_000, marks=LATE)])
def test_an_expression_that_fails_on_a_row_is_a_fault_of_the_data(shop, rows, key) -> None:
    shop.write("a.parquet", pa.table({"x": ["1"] * (rows - 1) + ["q"], "y": [0] * rows}))
    expression = "CAST(x AS INTEGER)"
    given = {"data__derive": {"z": expression}} if key == "derive" else {"data__where": f"{expression} > 0"}
    with pytest.raises(DataError, match="an expression fails on a row: Conversion Error"):
        shop.ingest("*.parquet", **given)


def test_an_expression_that_multiplies_rows_is_refused(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n2,1\n")
    with pytest.raises(RefitError):
        shop.ingest(data__derive={"z": "unnest([1, 2])"})


@pytest.mark.parametrize(
    "expression",
    ["", "[x, x]", "{'a': x}", "INTERVAL 3 DAYS", "18446744073709551615::UBIGINT"],
)
def test_a_derived_value_of_a_type_that_cannot_be_stored_is_refused(shop, expression) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    with pytest.raises(RefitError):
        shop.ingest(data__derive={"z": expression})


def test_a_condition_that_is_a_number_holds_where_it_is_not_zero(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n0,1\n")
    assert shop.ingest(data__where="x").num_rows == 1


@pytest.mark.parametrize("name", ["x", "y", "X"])
def test_a_derived_column_that_is_named_like_one_of_the_source_is_refused(shop, name) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    with pytest.raises(RefitError):
        shop.ingest(data__derive={name: "x + 1"})


# ---- what cannot be ingested


def test_columns_that_begin_with_an_underscore_are_refused(shop) -> None:
    shop.write("a.csv", "_x,_kept,y\n1,0,0\n")
    with pytest.raises(SchemaMismatchError, match="_x, _kept"):
        shop.ingest()


def test_a_key_that_is_no_column_is_refused(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    with pytest.raises(JobError, match="the key names z"):
        shop.ingest(data__key=["z"])


def test_a_line_that_is_no_utf_8_is_rejected_alone(shop) -> None:
    shop.write("a.csv", b"x,y\nf\xe9,1\nb,0\n")
    assert counts(shop.ingest(data__max_rejected_fraction=0.5)) == [(2, 1, 1, 0)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", bytes(range(256)) * 20),
        ("a.csv", b"\0" * 1000),
        ("a.csv", os.urandom(5000)),
        ("a.json", b"\x80" * 1000),
        ("a.parquet", b"\x80" * 1000),
        ("a.csv.gz", b"\x80" * 1000),
    ],
    ids=["bytes", "zeros", "random", "json", "parquet", "gzip"],
)
def test_a_file_that_is_not_what_it_is_called_is_refused_by_name(shop, name, content) -> None:
    path = shop.write(name, content)
    with pytest.raises(RefitError) as caught:
        shop.ingest(f"*{name[1:]}")
    assert str(path) in str(caught.value) or "cannot be used" in str(caught.value)
    assert read_head(shop.home) is None


def test_a_column_that_is_nearly_of_a_type_is_text_and_a_note_says_why(shop) -> None:
    shop.write("a.csv", "x,zip,y\n" + "1,02134,0\n" * 99 + "oops,10001,1\n")
    snapshot = shop.ingest()
    assert {column.name: column.type for column in snapshot.columns} == {"x": "string", "zip": "string", "y": "int64"}
    (note,) = snapshot.sources[0].notes
    assert "1 of 100 values are no int64, such as 'oops'" in note
    assert "{x: int64}" in note


def test_a_parquet_file_with_damaged_pages_is_refused_by_name(shop) -> None:
    path = shop.write("a.parquet", pa.table({"x": range(100_000), "y": [f"s{i * 7919}" for i in range(100_000)]}))
    content = bytearray(path.read_bytes())
    content[2000:200_000] = b"\x07" * 198_000
    path.write_bytes(content)
    with pytest.raises(SourceError):
        shop.ingest("*.parquet")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gaps", "a missing tensor: ArrowInvalid from to_numpy_ndarray"),
        ("changing", "a batch of another schema: its buffers are taken for the first one's types, garbage is stored without a word"),
        ("repeated", "two columns of one name: KeyError"),
        ("cases", "two columns that differ in case: KeyError"),
    ],
)
def test_batches_that_cannot_be_stored_are_refused(shop, code, name, reason, request) -> None:
    with pytest.raises(RefitError):
        shop.ingest(source=code(name))


def test_a_batch_without_a_column_of_the_first_is_refused(shop, code) -> None:
    with pytest.raises(DataError, match="columns x are missing"):
        shop.ingest(source=code("losing"))


# ---- what the hash is made of


def test_the_order_of_columns_in_a_file_does_not_count_without_a_key(shop) -> None:
    shop.write("a.csv", "b,a,y\n1,q,0\n2,r,1\n")
    shop.write("b.parquet", pa.table({"y": [0, 1], "a": ["q", "r"], "b": [1, 2]}))
    csv, parquet = shop.ingest(), shop.ingest("*.parquet", data__name="other")
    assert shop.hashes(csv) == [hash_of("q", 1), hash_of("r", 2)]
    shop.home = shop.layout.dataset("other")
    assert shop.hashes(parquet) == [hash_of("q", 1), hash_of("r", 2)]


def test_the_order_of_the_key_counts(shop) -> None:
    shop.write("a.csv", "b,a,y\n1,q,0\n")
    assert shop.hashes(shop.ingest(data__key=["b", "a"])) == [hash_of(1, "q")]


def test_without_a_key_a_corrected_label_leaves_the_hash_as_it_was(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    before = shop.hashes(shop.ingest())
    shop.write("a.csv", "x,y\n1,1\n")
    assert shop.hashes(shop.ingest()) == before == [hash_of(1)]


def test_derived_columns_do_not_count_for_the_hash(shop) -> None:
    shop.write("a.csv", "x,y\n1,0\n")
    assert shop.hashes(shop.ingest(data__derive={"a": "x + 1"})) == [hash_of(1)]


def test_a_tensor_is_hashed_by_its_bytes(shop, code) -> None:
    snapshot = shop.ingest(source=code("images"))
    assert shop.hashes(snapshot) == [hash_of(row["x"]) for row in shop.rows(snapshot)]


def test_every_stored_type_can_be_hashed() -> None:
    for name, sql in SQL_TYPES.items():
        column = Column(
            name="x",
            type=str(
                {"boolean": "bool", "date": "date32[day]", "timestamp": "timestamp[us]", "float32": "float", "float64": "double"}.get(
                    name, name
                )
            ),
        )
        assert SQL_TYPES[column_type(field_of(column).type)] == sql
