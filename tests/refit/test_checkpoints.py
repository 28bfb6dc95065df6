"""A checkpoint is there whole or not at all; a damaged or foreign one is passed over."""

import hashlib
import json
import logging
import math

import numpy as np
import pytest

from refit.checkpoints import Checkpoint, CheckpointRecord, read_newest, remove_checkpoints, write_checkpoint
from refit.records import Resumption


def checkpoint(step, *, belongs_to="fit", callbacks=None, seed=0):
    generator = np.random.default_rng(seed + step)
    arrays = {
        "model": [generator.normal(size=(3, 2)).astype(np.float32), np.array(step, np.int64)],
        "optimizer": [generator.integers(0, 9, 11).astype(np.int32) for _ in range(12)],
        "early_stopping": [],
    }
    record = CheckpointRecord(
        belongs_to=belongs_to,
        epoch=step // 10,
        step=step,
        stop_training=False,
        history={"loss": [1.5, 0.1 + 0.2], "val_loss": [math.inf, 1e-300]},
        validation_epochs=[0, 1],
        callbacks=callbacks or {"early_stopping": {"wait": 2, "best": 0.1 + 0.2}},
        resumed_at=(Resumption(epoch=1, step=10),),
        num_arrays={},
        arrays_sha256="",
    )
    return Checkpoint(record, arrays)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder, belongs_to="fit"):
    found = read_newest(folder, belongs_to=belongs_to)
    return None if found is None else found.record.step


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    written = checkpoint(20)
    write_checkpoint(tmp_path, written, keep=2)
    read = read_newest(tmp_path, belongs_to="fit")
    ignored = {"num_arrays", "arrays_sha256"}
    assert read.record.model_dump(exclude=ignored) == written.record.model_dump(exclude=ignored)
    assert list(read.arrays) == list(written.arrays)
    for group, arrays in written.arrays.items():
        assert len(read.arrays[group]) == len(arrays)
        for expected, received in zip(arrays, read.arrays[group], strict=True):
            assert (received.dtype, received.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(received, expected)


def test_what_a_callback_knows_comes_back_even_where_it_is_infinite(tmp_path):
    write_checkpoint(tmp_path, checkpoint(10, callbacks={"plateau": {"wait": 0, "best": math.inf}}), keep=1)
    assert read_newest(tmp_path, belongs_to="fit").record.callbacks["plateau"]["best"] == math.inf


def test_without_checkpoints_there_is_none(tmp_path):
    assert read_newest(tmp_path, belongs_to="fit") is None
    assert read_newest(tmp_path / "nowhere", belongs_to="fit") is None


def test_so_many_of_the_newest_are_kept(tmp_path):
    for step in (10, 20, 100, 30):
        write_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert names(tmp_path) == ["000000000030", "000000000100"]
    assert newest_step(tmp_path) == 100


def test_the_same_step_may_be_written_again(tmp_path):
    write_checkpoint(tmp_path, checkpoint(10), keep=2)
    write_checkpoint(tmp_path, checkpoint(10, seed=5), keep=2)
    found = read_newest(tmp_path, belongs_to="fit")
    np.testing.assert_array_equal(found.arrays["model"][0], checkpoint(10, seed=5).arrays["model"][0])


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
        ("arrays.npz", truncate),
        ("arrays.npz", flip),
        ("arrays.npz", empty),
        ("arrays.npz", remove),
        ("state.json", truncate),
        ("state.json", empty),
        ("state.json", remove),
    ],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(name, damage, tmp_path, caplog):
    write_checkpoint(tmp_path, checkpoint(10), keep=2)
    damage(write_checkpoint(tmp_path, checkpoint(20), keep=2) / name)
    with caplog.at_level(logging.WARNING):
        assert newest_step(tmp_path) == 10
    assert "000000000020 is damaged" in caplog.text


def test_where_all_are_damaged_there_is_none(tmp_path):
    for step in (10, 20):
        flip(write_checkpoint(tmp_path, checkpoint(step), keep=2) / "arrays.npz")
    assert newest_step(tmp_path) is None


def test_a_checkpoint_of_another_fit_is_not_used(tmp_path, caplog):
    write_checkpoint(tmp_path, checkpoint(10), keep=3)
    write_checkpoint(tmp_path, checkpoint(20, belongs_to="other"), keep=3)
    assert newest_step(tmp_path) == 10
    assert "belongs to another fit" in caplog.text
    assert newest_step(tmp_path, "third") is None


def test_arrays_that_are_pickles_are_not_loaded(tmp_path):
    folder = write_checkpoint(tmp_path, checkpoint(10), keep=1)
    planted = tmp_path / "planted.npz"
    np.savez(planted, **{"model/000000": np.array([{"a": 1}], dtype=object)})
    record = json.loads((folder / "state.json").read_text())
    record |= {"arrays_sha256": hashlib.sha256(planted.read_bytes()).hexdigest(), "num_arrays": {"model": 1}}
    planted.rename(folder / "arrays.npz")
    (folder / "state.json").write_text(json.dumps(record))
    assert newest_step(tmp_path) is None


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_earlier_ones_and_no_rest(failing, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, checkpoint(10), keep=1)

    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refit.checkpoints.os.fsync" if failing == "fsync" else "pathlib.Path.rename", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, checkpoint(20), keep=1)
    assert names(tmp_path) == ["000000000010"]
    assert newest_step(tmp_path) == 10


def test_what_a_killed_writer_left_aside_is_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path, checkpoint(10), keep=1)
    (tmp_path / ".checkpoint.abc").mkdir()
    (tmp_path / ".checkpoint.abc" / "arrays.npz").write_bytes(b"half")
    assert newest_step(tmp_path) == 10


def test_all_can_be_removed(tmp_path):
    write_checkpoint(tmp_path / "checkpoints", checkpoint(10), keep=1)
    remove_checkpoints(tmp_path / "checkpoints")
    remove_checkpoints(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
