"""Records go to disk whole or not at all, and come back as they were."""

import json
import math
import os
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from refit.config import Job
from refit.errors import CorruptRecordError
from refit.records import (
    CodeRecord,
    Column,
    EvaluationRecord,
    RunRecord,
    ShardRecord,
    SnapshotRecord,
    SourceRecord,
    SplitRecord,
    write_array,
    write_atomically,
)

JOB = Job.model_validate({"name": "a", "data": {"sources": [{"kind": "csv", "path": "a.csv"}]}, "target": {"column": "y"}})


def run_record(**changes):
    given = {
        "run": "r1",
        "job": "a",
        "status": "running",
        "config_digest": "d",
        "code": CodeRecord(git=None, builder_sha256="b"),
        "versions": {"python": "3.12"},
        "started": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        "inputs_digest": "i",
        "parameters": JOB,
    }
    return RunRecord(**(given | changes))


def snapshot(*counts):
    sources = tuple(
        SourceRecord(name=str(i), digest=str(i), num_read=n, num_kept=n, shards=(ShardRecord(digest=f"s{i}", num_rows=n, num_bytes=1),))
        for i, n in enumerate(counts)
    )
    columns = (Column(name="x", type="double"), Column(name="image", type="fixed_size_binary[4]", shape=(2, 2, 1), dtype="uint8"))
    return SnapshotRecord(id="s", dataset="d", key=("x",), key_hash="md5-64/1", columns=columns, sources=sources)


@pytest.mark.parametrize("record", [run_record(), snapshot(3, 4), SplitRecord(by="hash", num_rows={"train": 1}, digest="x")])
def test_a_record_comes_back_from_disk_as_it_was(tmp_path, record) -> None:
    path = tmp_path / "deep" / "record.json"
    assert record.write(path) is record
    assert type(record).read(path) == record


@given(st.dictionaries(st.text(max_size=5), st.floats()))
def test_any_number_of_a_metric_comes_back_as_it_was(tmp_path_factory, metrics) -> None:
    path = tmp_path_factory.mktemp("records") / "evaluation.json"
    again = EvaluationRecord.read(path) if EvaluationRecord(metrics={"test": metrics}, num_rows=1).write(path) else None
    assert again.metrics["test"].keys() == metrics.keys()
    assert all(again.metrics["test"][k] == v or (math.isnan(v) and math.isnan(again.metrics["test"][k])) for k, v in metrics.items())


def test_a_record_on_disk_is_json_for_every_reader_even_with_metrics_that_are_no_numbers(tmp_path) -> None:
    EvaluationRecord(metrics={"test": {"a": math.nan, "b": math.inf, "c": -math.inf}}, num_rows=1).write(tmp_path / "e.json")

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "e.json").read_text(), parse_constant=refuse)
    assert found["metrics"]["test"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}


def test_a_missing_record_means_that_its_stage_is_not_complete(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        SplitRecord.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\0" * 100, b'{"by": "hash"}', b'{"by": 3, "num_rows": {}, "digest": ""}']
)
def test_a_damaged_record_is_named_with_its_path(tmp_path, content) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(CorruptRecordError, match="no valid SplitRecord") as caught:
        SplitRecord.read(path)
    assert caught.value.where == str(path)


def test_every_beginning_of_a_record_is_damaged(tmp_path) -> None:
    path = tmp_path / "split.json"
    SplitRecord(by="hash", num_rows={"train": 1}, digest="x").write(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptRecordError):
            SplitRecord.read(path)


def test_a_field_of_a_newer_program_is_ignored(tmp_path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"by": "hash", "num_rows": {"test": 3}, "digest": "x", "invented_later": 1}')
    assert SplitRecord.read(path).num_rows == {"test": 3}


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        run_record().status = "completed"


def test_a_record_that_cannot_be_serialised_leaves_the_old_one_and_nothing_aside(tmp_path) -> None:
    path = tmp_path / "run.json"
    run_record().write(path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="serialize"):
        run_record(seconds={"fit": 1.0}).model_copy(update={"seconds": {"fit": object()}}).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_aside(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):  # noqa: PT012
        patched.setattr(os, "fsync", full)
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_take_its_place_leaves_nothing_aside(tmp_path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_written_file_can_be_read_by_others(tmp_path) -> None:
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_snapshot_adds_up_its_shards_in_order_of_the_sources() -> None:
    record = snapshot(3, 4)
    assert record.num_rows == 7
    assert [shard.digest for shard in record.shards] == ["s0", "s1"]
    assert record.column("image").shape == (2, 2, 1)
    with pytest.raises(KeyError):
        record.column("none")
    assert "7 rows" in record.brief()


@pytest.mark.parametrize(
    ("status", "unfinished"), [("running", True), ("cancelled", True), ("completed", False), ("failed", False), ("abandoned", False)]
)
def test_a_run_is_unfinished_while_it_may_be_taken_up(status, unfinished) -> None:
    assert run_record(status=status).is_unfinished is unfinished


def test_an_array_comes_back_as_it_was_and_names_no_objects(tmp_path) -> None:
    write_array(tmp_path / "deep" / "a.npy", np.arange(5, dtype=np.uint64))
    found = np.load(tmp_path / "deep" / "a.npy", allow_pickle=False)
    assert (found.dtype, found.tolist()) == (np.uint64, [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="Object arrays"):
        write_array(tmp_path / "b.npy", np.array([{}], dtype=object))
    assert not (tmp_path / "b.npy").exists()
