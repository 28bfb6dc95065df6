"""Whatever a file holds, it ends in rows that are all accounted for or in a refusal that names it: no crash, no hang, no traceback."""

import gzip
import io
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from deployments.deep_check import check_deeply
from refit.config import parse_job
from refit.errors import RefitError, RequestError
from refit.ingestion import ingest
from refit.layout import Layout
from refit.shards import read_table


def bring_in(path, home, **changes):
    """Rows read, kept and rejected of one file in a job of its own; or the refusal."""
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    source = {"kind": kind, "path": str(path), **changes.pop("source", {})}
    data = {"sources": [source], "max_rejected_fraction": 1, **changes}
    job = parse_job({"name": "job", "data": data, "target": {"column": "y"}})
    layout = Layout(home)
    try:
        snapshot = ingest(job, layout)
    except RefitError as error:
        told = str(error)
    else:
        return counted(snapshot, layout)
    assert str(path) in told
    return told


def counted(snapshot, layout):
    (record,) = snapshot.sources
    parts = record.num_kept + record.num_rejected + record.num_filtered + record.num_duplicate + record.num_superseded
    assert record.num_read == parts
    assert len(read_table(snapshot, layout, [snapshot.columns[0].name])) == record.num_kept == snapshot.num_rows
    return record.num_read, record.num_kept, record.num_rejected


def zipped(content: bytes, name: str = "a.csv") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


GOOD = "x,y\n1,0\n2,1\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbf" + GOOD.encode(), (2, 2, 0)),
        (GOOD.replace("\n", "\r\n").encode(), (2, 2, 0)),
        (GOOD.replace("\n", "\r").encode(), (2, 2, 0)),
        (b"x,y\r\n1,0\n2,1\r3,1", (3, 3, 0)),
        (GOOD.encode("utf-16"), (2, 2, 0)),
        (GOOD.encode("utf-32"), (2, 2, 0)),
        (gzip.compress(GOOD.encode()), (2, 2, 0)),
        (zipped(GOOD.encode()), (2, 2, 0)),
        (b"x,y\n1,0\n\0,1\n3,1\n", (3, 2, 1)),
        (b"x,y\n1,0\nna\xefve,1\n3,1\n", (3, 2, 1)),
        (b"x,y\n1,0\n2\n3,1,9\n4,1\n", (4, 2, 2)),
        (b'x,y\n1,0\n"2,1\n3,1\n', (3, 2, 1)),
        (b'"x,y\n1,0\n', "quotes"),
        (b'x,y\n"a\nb",0\n2,1\n', (2, 2, 0)),
        (b"x,y\n" + b"z" * 10_000_000 + b",0\n2,1\n", (2, 2, 0)),
        (b"x,y\n" + b"z" * 50_000_000 + b",0\n2,1\n", (2, 1, 1)),
        (b"x,y\n2024-01-02,0\n02.01.2024,1\n", (2, 2, 0)),
        (b"x,y\ninf,0\nnan,1\n1.5,0\n", (3, 2, 1)),
        (b"x,y\n1,0\n123456789012345678901234567890,1\n", (2, 2, 0)),
        (b"x,x,y\n1,2,0\n", "stand twice"),
        (b"x,,y\n1,2,0\n", (1, 1, 0)),
        ("ä b,😀,y\n1,2,0\n".encode(), (1, 1, 0)),
        (b"x,y\n", "no row is left"),
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"x", "no row"),
        (b"PAR1" + bytes(100), "Parquet"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
        (gzip.compress(GOOD.encode() * 999)[:-20], "truncated"),
        (zipped(b"x,y\n") + b"", "no row is left"),
        (os.urandom(4_096), None),
    ],
)
def test_dirt_is_counted_or_refused_by_name(tmp_path, content, expected) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    found = bring_in(path, tmp_path / "home")
    if isinstance(expected, str):
        assert expected in str(found)
    elif expected is not None:
        assert found == expected


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path) -> None:
    path = tmp_path / "a.csv"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(1_100):
            file.write(bytes(1 << 20))
    assert isinstance(bring_in(path, tmp_path / "home"), str)


def test_a_folder_that_is_named_like_a_file_is_no_file(tmp_path) -> None:
    (tmp_path / "in" / "x.csv").mkdir(parents=True)
    (tmp_path / "in" / "a.csv").write_text(GOOD)
    (tmp_path / "in" / "loop.csv").symlink_to("loop.csv")
    job = parse_job({"name": "job", "data": {"sources": [{"kind": "csv", "path": f"{tmp_path}/in/*.csv"}]}, "target": {"column": "y"}})
    assert [source.name for source in ingest(job, Layout(tmp_path / "home")).sources] == [f"{tmp_path}/in/a.csv"]


@pytest.mark.parametrize("name", ["x.csv", "loop.csv", "absent.csv"])
def test_a_source_that_is_no_file_is_refused(tmp_path, name) -> None:
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    assert isinstance(bring_in(tmp_path / name, tmp_path / "home"), str)


def test_one_bad_file_does_not_stop_the_others(tmp_path, caplog) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(GOOD)
    (tmp_path / "in" / "b.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    data = {"sources": [{"kind": "csv", "path": f"{tmp_path}/in/*.csv"}]}
    job = {"name": "job", "data": data, "target": {"column": "y"}}
    good, bad = ingest(parse_job(job), Layout(tmp_path / "home")).sources
    assert (good.num_kept, bad.num_read) == (2, 0)
    assert "PNG" in str(bad.refused)
    assert str(tmp_path / "in" / "b.csv") in caplog.text
    data["refused"] = "fail"
    with pytest.raises(RefitError, match="PNG"):
        ingest(parse_job(job), Layout(tmp_path / "other"))


@pytest.mark.parametrize("expression", ["(SELECT count(*) FROM read_csv('{other}'))", "(SELECT content FROM read_text('{other}'))"])
def test_sql_that_reads_another_file_is_refused(tmp_path, expression) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "secret.csv").write_text("sesam\n1\n")
    job = {
        "name": "job",
        "data": {
            "sources": [{"kind": "csv", "path": f"{tmp_path}/a.csv"}],
            "derive": {"z": expression.format(other=tmp_path / "secret.csv")},
        },
        "target": {"column": "y"},
    }
    with pytest.raises(RequestError):
        ingest(parse_job(job), Layout(tmp_path / "home"))


def test_values_that_do_not_fit_are_listed_once_though_the_file_had_to_be_read_twice(tmp_path) -> None:
    path = tmp_path / "a.csv"  # the ragged row at the end is found when the first values have been noted already
    path.write_text("x,y\n" + "".join(f"{'bad' if i % 50 == 0 else i},{i % 2}\n" for i in range(200_000)) + "1,2,3\n4,5\n")
    assert bring_in(path, tmp_path / "home", columns={"x": "int64"}) == (200_002, 196_001, 4_001)
    (rejects,) = (tmp_path / "home").rglob("rejects/*.parquet")
    table = pq.read_table(rejects)
    assert sorted(table["line"].to_pylist()) == sorted([i + 2 for i in range(0, 200_000, 50)] + [200_002])
    assert table.filter(pc.equal(table["line"], 102))["text"].to_pylist() == ["bad,0"]


def test_a_file_of_nothing_but_bad_rows_is_told_and_listed(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "bad,0\n" * 50_000)
    told = bring_in(path, tmp_path / "home", columns={"x": "int64"})
    assert "no row is left" in told
    (rejects,) = (tmp_path / "home").rglob("rejects/*.parquet")
    assert pq.read_metadata(rejects).num_rows == 50_000


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_parquet_file_is_refused_by_name(tmp_path, damage) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": list(range(10_000)), "y": [0, 1] * 5_000}), path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-100], "flipped": content[:200] + bytes(2_000) + content[2_200:], "text": b"x,y\n1,2\n"}[damage])
    assert isinstance(bring_in(path, tmp_path / "home"), str)


# ---- what others test their parsers with


def corpus(folder: str, pattern: str) -> list[Path]:
    root = Path(os.environ.get("REFIT_DATA", "absent")) / folder
    return sorted(path for path in root.rglob(pattern) if path.is_file())


ABSENT = "REFIT_DATA names no folder with "


@pytest.mark.skipif(not corpus("csv_dirty", "*.csv"), reason=f"{ABSENT}csv_dirty")
def test_no_table_of_the_dirty_corpus_crashes_an_ingest(tmp_path) -> None:
    files = [*corpus("csv_dirty", "*.csv"), *corpus("csv_dirty", "*.tsv")]
    outcomes = {path: bring_in(path, tmp_path / str(number)) for number, path in enumerate(files)}
    assert len(outcomes) > 100
    assert sum(isinstance(outcome, tuple) for outcome in outcomes.values()) > 60


def job_over(path, column):
    """A job of its own over one file."""
    source = {"kind": "parquet" if path.suffix == ".parquet" else "csv", "path": str(path)}
    data = {"sources": [source], "max_rejected_fraction": 1}
    return parse_job({"name": "job", "data": data, "target": {"column": column}, "fit": {"batch_size": 1}})


def deep_check(path, home):
    """Whether ``refit check --deep`` finds nothing wrong with a job over the file's first column; anything but a refusal is raised."""
    try:
        first = ingest(job_over(path, "y"), Layout(home)).columns[0].name
        check_deeply(job_over(path, first))
    except RefitError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not corpus("csv_dirty", "*.csv"), reason=f"{ABSENT}csv_dirty")
def test_no_table_of_the_dirty_corpora_crashes_a_deep_check(tmp_path) -> None:
    files = [*corpus("csv_dirty", "*.csv"), *corpus("csv_dirty", "*.tsv"), *corpus("parquet_bad", "*.parquet")]
    outcomes = [deep_check(path, tmp_path / str(number)) for number, path in enumerate(files)]
    assert (len(outcomes), any(outcomes)) == (120, True)  # most have too few rows to be divided


@pytest.mark.skipif(not corpus("parquet_bad", "*.parquet"), reason=f"{ABSENT}parquet_bad")
def test_no_broken_parquet_file_crashes_an_ingest(tmp_path) -> None:
    for number, path in enumerate(corpus("parquet_bad", "*.parquet")):
        bring_in(path, tmp_path / str(number))
