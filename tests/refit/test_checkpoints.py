"""A checkpoint is there whole or not at all; a damaged or foreign one is passed over."""

import json
import logging
import math
import time

import ml_dtypes
import numpy as np
import pytest

from refit.checkpoints import CheckpointRecord, CheckpointWriter, HostCopy, read_newest, remove_checkpoints, write_checkpoint
from refit.errors import StorageError
from refit.records import Resumption


def arrays_of(epoch, seed=0):
    generator = np.random.default_rng(seed + epoch)
    return {
        "model": [generator.normal(size=(3, 2)).astype(np.float32), np.array(epoch, np.int64), np.ones(5, ml_dtypes.bfloat16)],
        "optimizer": [generator.integers(0, 9, 11).astype(np.int32) for _ in range(12)],
        "empty": [np.zeros((0, 4))],
        "none": [],
    }


def record_of(epoch, *, step=0, belongs_to="fit", callbacks=None):
    return CheckpointRecord(
        belongs_to=belongs_to,
        epoch=epoch,
        step=step,
        steps_per_epoch=10,
        history={"loss": [1.5, 0.1 + 0.2], "val_loss": [math.inf, 1e-300]},
        validation_epochs=[0, 1],
        logs={"loss": 1 / 3},
        callbacks=callbacks or {"early_stopping": {"wait": 2, "best": 0.1 + 0.2}},
        resumed_at=(Resumption(epoch=1, step=10),),
        events={"train/events": 17},
    )


def write(folder, epoch, *, keep=2, seed=0, also_keep=None, **more):
    return write_checkpoint(folder, HostCopy().take(record_of(epoch, **more), arrays_of(epoch, seed)), keep=keep, also_keep=also_keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def newest_epoch(folder, belongs_to="fit"):
    found = read_newest(folder, belongs_to=belongs_to)
    return None if found is None else found.record.epoch


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    write(tmp_path, 2)
    read = read_newest(tmp_path, belongs_to="fit")
    ignored = {"arrays", "arrays_sha256"}
    assert read.record.model_dump(exclude=ignored) == record_of(2).model_dump(exclude=ignored)
    for group, arrays in arrays_of(2).items():
        received = read.arrays(group)
        assert [(array.dtype, array.shape) for array in received] == [(array.dtype, array.shape) for array in arrays]
        assert [array.tobytes() for array in received] == [array.tobytes() for array in arrays]


def test_what_a_callback_knows_comes_back_even_where_it_is_infinite(tmp_path):
    write(tmp_path, 1, callbacks={"plateau": {"wait": 0, "best": math.inf}})
    assert read_newest(tmp_path, belongs_to="fit").record.callbacks["plateau"]["best"] == math.inf


def test_without_checkpoints_there_is_none(tmp_path):
    assert read_newest(tmp_path, belongs_to="fit") is None
    assert read_newest(tmp_path / "nowhere", belongs_to="fit") is None


def test_so_many_of_the_newest_are_kept_and_the_one_that_is_asked_for(tmp_path):
    for epoch in (1, 2, 10, 3):
        write(tmp_path, epoch, also_keep="000001-000000000")
    assert names(tmp_path) == ["000001-000000000", "000003-000000000", "000010-000000000"]
    assert newest_epoch(tmp_path) == 10


def test_the_validation_of_an_epoch_comes_before_the_next_epoch(tmp_path):
    write(tmp_path, 4)
    write(tmp_path, 3, step=10)
    found = read_newest(tmp_path, belongs_to="fit").record
    assert (found.epoch, found.step, found.total_steps) == (4, 0, 40)


def test_what_is_at_a_position_stays_for_it_is_the_same(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 1, seed=5)
    np.testing.assert_array_equal(read_newest(tmp_path, belongs_to="fit").arrays("model")[0], arrays_of(1)["model"][0])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("arrays.bin", truncate),
        ("arrays.bin", flip),
        ("arrays.bin", empty),
        ("arrays.bin", remove),
        ("state.json", truncate),
        ("state.json", empty),
        ("state.json", remove),
    ],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(name, damage, tmp_path, caplog):
    write(tmp_path, 1)
    damage(write(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING):
        assert newest_epoch(tmp_path) == 1
    assert "000002-000000000 is damaged" in caplog.text


def test_where_all_are_damaged_there_is_none(tmp_path):
    for epoch in (1, 2):
        flip(write(tmp_path, epoch) / "arrays.bin")
    assert newest_epoch(tmp_path) is None


def test_a_checkpoint_of_another_fit_is_not_used(tmp_path, caplog):
    write(tmp_path, 1, keep=3)
    write(tmp_path, 2, keep=3, belongs_to="other")
    assert newest_epoch(tmp_path) == 1
    assert "belongs to another fit" in caplog.text
    assert newest_epoch(tmp_path, "third") is None


def test_arrays_that_are_objects_are_not_loaded(tmp_path):
    state = write(tmp_path, 1) / "state.json"
    record = json.loads(state.read_text())
    record["arrays"][0]["dtype"] = "object"
    state.write_text(json.dumps(record))
    found = read_newest(tmp_path, belongs_to="fit")
    with pytest.raises(TypeError, match="references"):
        found.arrays("model")


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_earlier_ones_and_no_rest(failing, tmp_path, monkeypatch):
    write(tmp_path, 1, keep=1)

    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refit.checkpoints.os.fsync" if failing == "fsync" else "pathlib.Path.rename", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["000001-000000000"]
    assert newest_epoch(tmp_path) == 1


def test_what_a_killed_writer_left_aside_is_no_checkpoint_and_goes_with_the_next_writer(tmp_path):
    write(tmp_path, 1, keep=1)
    (tmp_path / ".checkpoint.abc").mkdir()
    (tmp_path / ".checkpoint.abc" / "arrays.bin").write_bytes(b"half")
    assert newest_epoch(tmp_path) == 1
    CheckpointWriter(tmp_path, keep=1, found=record_of(1)).close()
    assert names(tmp_path) == ["000001-000000000"]


def test_damaged_and_foreign_ones_after_the_one_that_is_taken_make_room(tmp_path):
    write(tmp_path, 1, keep=9)
    flip(write(tmp_path, 7, keep=9) / "arrays.bin")
    write(tmp_path, 8, keep=9, belongs_to="other")
    found = read_newest(tmp_path, belongs_to="fit")
    writer = CheckpointWriter(tmp_path, keep=1, found=found.record)
    writer.save(record_of(2), arrays_of(2))
    writer.wait()
    writer.close()
    assert names(tmp_path) == ["000002-000000000"]


def test_all_can_be_removed_or_all_but_one(tmp_path):
    folder = tmp_path / "checkpoints"
    for epoch in (1, 2):
        write(folder, epoch)
    remove_checkpoints(folder, but="000001-000000000")
    assert names(folder) == ["000001-000000000"]
    remove_checkpoints(folder)
    remove_checkpoints(folder)
    assert not folder.exists()


# ---- in the background


def test_what_is_written_is_the_state_at_the_time_of_saving(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    changing = np.zeros(1 << 22)
    for epoch in (1, 2, 3):
        changing[:] = epoch
        writer.save(record_of(epoch), {"model": [changing]})
        changing[:] = -1
    writer.wait()
    writer.close()
    found = read_newest(tmp_path, belongs_to="fit")
    assert found.record.epoch == 3
    assert set(found.arrays("model")[0].tolist()) == {3.0}
    assert names(tmp_path) == ["000002-000000000", "000003-000000000"]


def test_the_best_one_stays_and_is_named_in_those_after_it(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=1)
    for epoch in range(1, 5):
        writer.save(record_of(epoch), arrays_of(epoch), is_best=epoch == 2)
    writer.wait()
    writer.close()
    assert names(tmp_path) == ["000002-000000000", "000004-000000000"]
    assert read_newest(tmp_path, belongs_to="fit").record.best == writer.best == "000002-000000000"


def test_a_disk_that_refuses_ends_the_fit_with_its_reason_and_keeps_what_is_there(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(record_of(1), arrays_of(1))
    writer.wait()

    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refit.checkpoints.os.fsync", full)
    writer.save(record_of(2), arrays_of(2))
    while writer.is_writing:
        time.sleep(0.01)
    with pytest.raises(StorageError, match="cannot be written: No space left on device") as caught:
        writer.check()
    assert str(tmp_path) in str(caught.value)
    writer.close()
    assert newest_epoch(tmp_path) == 1


def test_a_folder_that_cannot_be_made_is_told_before_the_fit(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        CheckpointWriter(tmp_path / "file" / "checkpoints", keep=1)
