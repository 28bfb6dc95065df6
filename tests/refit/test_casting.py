"""What a text becomes: nothing that it does not say, whatever stands around it and whichever way it was read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit import shards
from refit.casting import sealed_connection
from refit.config import parse_job
from refit.errors import CorruptRecordError, JobError
from refit.ingestion import ingest, read_head
from refit.layout import Layout
from refit.records import ShardRecord
from refit.schema import KEY_HASH
from refit.shards import ShardWriter, live_rows_sql, read_table, shard_paths

HASH = pa.field(KEY_HASH, pa.uint64(), nullable=False)


def bring_in(folder, content, source=None, home=None, **data):
    (folder / "in").mkdir(exist_ok=True, parents=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, folder / "in" / "a.parquet")
    else:
        (folder / "in" / "a.csv").write_text(content)
    path = str(folder / "in" / ("a.parquet" if isinstance(content, pa.Table) else "a.csv"))
    source = {"kind": path.rpartition(".")[2], "path": path, **(source or {})}
    job = parse_job({"name": "job", "data": {"sources": [source], **data}, "target": {"column": "y"}})
    layout = Layout(home or folder / "home")
    snapshot = ingest(job, layout)
    return snapshot, {name: read_table(snapshot, layout, [name])[name].to_pylist() for name in (c.name for c in snapshot.columns)}


def test_a_null_value_is_missing_with_blanks_around_it_too(tmp_path) -> None:
    _, rows = bring_in(tmp_path, "x,z,y\n -999,-999 ,1\n-999,1.5,0\n7,2,0\n", {"null_values": ["", "-999"]})
    assert (rows["x"], rows["z"]) == ([None, None, 7], [None, 1.5, 2.0])


def test_blanks_around_a_value_do_not_belong_to_it(tmp_path) -> None:
    text = "n,f,d,t,b,s,y\n\t5, 1.5\t,\t2024-01-02, 2024-01-02 10:00:00\t, true ,\ta b ,1\n6,2,2024-01-03,2024-01-03,false,c,0\n"
    snapshot, rows = bring_in(tmp_path, text)
    assert snapshot.sources[0].num_rejected == 0
    assert (rows["n"], rows["f"], rows["b"], rows["s"]) == ([5, 6], [1.5, 2.0], [True, False], ["a b", "c"])
    assert [str(value) for value in (*rows["d"], *rows["t"])] == ["2024-01-02", "2024-01-03", "2024-01-02 10:00:00", "2024-01-03 00:00:00"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02 10:00:00", "2024-01-02 10:00:00"),
        ("2024-1-2 1:00+02:00", "2024-01-01 23:00:00"),
        ("2024-01-02 10:00+02", "2024-01-02 08:00:00"),
        ("2024-01-02T10:00:00.5Z", "2024-01-02 10:00:00.500000"),
        ("Infinity", None),
        (" infinity", None),
        ("2024-02-30", None),
    ],
)
def test_a_time_is_a_moment_in_utc_or_a_reject(tmp_path, text, expected) -> None:
    _, rows = bring_in(tmp_path, f"t,y\n{text},1\n2024-01-01,0\n", columns={"t": "timestamp"}, max_rejected_fraction=1)
    assert [str(value) for value in rows["t"][:-1]] == ([expected] if expected else [])


def test_typed_columns_are_cast_without_loss(tmp_path) -> None:
    table = pa.table(
        {
            "d": pa.array([0, 86_400_000_000, 3_600_000_000], pa.timestamp("us")),
            "b": [0, 1, 5],
            "big": pa.array([1, 2, 3], pa.decimal128(38, 0)),
            "y": [0, 1, 0],
        }
    )
    snapshot, rows = bring_in(tmp_path, table, columns={"d": "date", "b": "boolean"}, max_rejected_fraction=1)
    assert ([str(value) for value in rows["d"]], rows["b"]) == (["1970-01-01", "1970-01-02"], [False, True])
    assert snapshot.column("big").type == "string"


def test_long_numbers_are_no_floats_so_that_no_two_of_them_become_one(tmp_path) -> None:
    snapshot, _ = bring_in(tmp_path, "id,y\n12345678901234567890,1\n12345678901234567891,0\n", key=["id"])
    assert snapshot.num_rows == 2


@pytest.mark.parametrize("folder", ["x=9", "c0=5", "y=1"])
def test_a_folder_that_is_named_like_a_partition_says_nothing_of_the_rows(tmp_path, folder) -> None:
    snapshot, rows = bring_in(tmp_path / folder, "x,y\n1,0\n2,1\n")
    home = Layout(tmp_path / folder / "home").dataset("job")
    with sealed_connection(str(path) for path in shard_paths(home, snapshot.shards)) as connection:
        found = connection.sql(f"SELECT x, y FROM {live_rows_sql(connection, home, snapshot.shards)}").fetchall()
    assert (found, rows["x"], rows["y"]) == ([(1, 0), (2, 1)], [1, 2], [0, 1])


def test_a_broken_character_counts_in_a_column_that_nothing_reads(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(b"x,s,y\n1,ok,1\n2,b\xffd,0\n3,ok,1\n")
    source = {"kind": "csv", "path": str(tmp_path / "in" / "a.csv")}
    tree = {"name": "job", "data": {"sources": [source], "select": ["x", "y"], "key": ["x"], "max_rejected_fraction": 1}}
    snapshot = ingest(parse_job({**tree, "target": {"column": "y"}}), Layout(tmp_path / "home"))
    assert (snapshot.num_rows, snapshot.sources[0].num_rejected) == (2, 1)


@pytest.mark.parametrize("expression", ["random()", "x + now()", "row_number() OVER ()", "sum(x) over ()", "current_date", "uuid()"])
def test_an_expression_that_says_another_thing_tomorrow_is_refused(tmp_path, expression) -> None:
    with pytest.raises(JobError, match="another time, or with other rows"):
        bring_in(tmp_path, "x,y\n1,0\n2,1\n", derive={"z": expression})


def test_the_name_of_such_a_function_may_stand_in_a_text_or_a_column(tmp_path) -> None:
    _, rows = bring_in(tmp_path, "now,y\n1,0\n2,1\n", derive={"z": "now + 1", "w": "'random()'", "v": '"now" * 2 -- uuid()'})
    assert (rows["z"], rows["w"], rows["v"]) == ([2, 3], ["random()"] * 2, [2, 4])


def test_a_job_of_nothing_but_its_target_is_refused(tmp_path) -> None:
    with pytest.raises(JobError, match="nothing but the target"):
        bring_in(tmp_path, "y\n1\n0\n")


@pytest.mark.parametrize("step", [1_000, 65_536, 30_000])
def test_shards_are_cut_at_the_same_rows_in_whatever_pieces_they_come(tmp_path, step, monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 2 * shards.ROW_GROUP_ROWS)

    def write(name, step) -> tuple[ShardRecord, ...]:
        home = Layout(tmp_path / name).dataset("d")
        home.shards_dir.mkdir(parents=True)
        table = pa.table({"x": range(80_000), KEY_HASH: pa.array(range(80_000), pa.uint64())}).cast(pa.schema([("x", pa.int64()), HASH]))
        writer = ShardWriter(home, table.schema)
        for start in range(0, len(table), step):
            writer.write(table.slice(start, step))
        return writer.finish()

    expected = write("whole", 80_000)
    assert [shard.num_rows for shard in expected] == [32_768, 32_768, 14_464]
    assert write("pieces", step) == expected


def test_a_head_without_its_record_is_no_new_beginning(tmp_path) -> None:
    snapshot, _ = bring_in(tmp_path, "x,y\n1,0\n2,1\n")
    home = Layout(tmp_path / "home").dataset("job")
    home.snapshot(snapshot.id).unlink()
    with pytest.raises(CorruptRecordError, match="has no record"):
        read_head(home)
