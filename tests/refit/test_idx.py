"""IDX files: every type and dimension as written, and a refusal that names the file for everything else."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.config import IdxSource
from refit.errors import RefusedError, SourceError
from refit.sources import idx
from refit.sources.seen import Seen

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def encode(values):
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, CODES[str(values.dtype)], values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def images_of(num_rows, *shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 100, (num_rows, *shape)).astype(dtype)


def list_inputs(path, labels=None):
    source = IdxSource(kind="idx", path=str(path), labels=labels and str(labels))
    return idx.list_inputs(source, {}, Seen())


def read(found, spool):
    with idx.open_input(found, spool) as opened:
        return pa.Table.from_batches(list(opened.read())), opened


def read_content(folder, content, labels=None):
    (folder / "images").write_bytes(content)
    if labels is not None:
        (folder / "labels").write_bytes(labels)
    return read(list_inputs(folder / "images", folder / "labels" if labels is not None else None)[0], folder)


def tensors(table, name="image"):
    return table[name].combine_chunks().to_numpy_ndarray()


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_images_and_labels_come_as_they_were_written(tmp_path, packed):
    values, labels = images_of(7, 4, 5), np.arange(7, dtype=np.uint8)
    table, opened = read_content(tmp_path, packed(encode(values)), packed(encode(labels)))
    assert np.array_equal(tensors(table), values[..., np.newaxis])
    assert table["label"].to_pylist() == labels.tolist()
    assert table.schema.field("label").type == pa.int64()
    assert [(c.name, c.type, c.shape, c.dtype) for c in opened.columns] == [
        ("image", "fixed_size_binary[20]", (4, 5, 1), "uint8"),
        ("label", "int64", None, None),
    ]
    assert opened.rejects == []


@given(st.sampled_from(sorted(CODES)), st.lists(st.integers(1, 4), min_size=2, max_size=4), st.booleans())
def test_every_type_and_number_of_dimensions_round_trips(tmp_path_factory, dtype, shape, is_gzip):
    values = images_of(*shape, dtype=dtype)
    content = gzip.compress(encode(values)) if is_gzip else encode(values)
    table, _ = read_content(tmp_path_factory.mktemp("idx"), content)
    result = tensors(table)
    assert result.dtype == values.dtype
    assert np.array_equal(result, values[..., np.newaxis] if values.ndim == 3 else values)


@pytest.mark.parametrize(("dtype", "stored"), [("uint8", "int64"), ("int16", "int16"), ("float32", "float"), ("float64", "double")])
def test_a_single_dimension_is_a_column_of_values(tmp_path, dtype, stored):
    table, opened = read_content(tmp_path, encode(images_of(5, dtype=dtype)))
    assert table["value"].to_pylist() == images_of(5, dtype=dtype).tolist()
    assert (opened.columns[0].name, opened.columns[0].type) == ("value", stored)


def test_a_batch_is_bounded_in_rows_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_BATCH_BYTES", 100)
    (tmp_path / "images").write_bytes(encode(images_of(10, 5, 5)))
    with idx.open_input(list_inputs(tmp_path / "images")[0], tmp_path) as opened:
        assert [len(batch) for batch in opened.read()] == [4, 4, 2]


def test_a_gzipped_file_is_never_whole_in_memory(tmp_path):
    with gzip.open(tmp_path / "images", "wb", compresslevel=1) as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, 200, 1024, 1024))
        for _ in range(200):
            file.write(bytes(1 << 20))
    found = list_inputs(tmp_path / "images")[0]
    tracemalloc.start()
    try:
        with idx.open_input(found, tmp_path) as opened:
            assert sum(len(batch) for batch in opened.read()) == 200
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


GOOD = encode(images_of(3, 2, 2))
DAMAGED = {
    "an empty file": (b"", "ends too early"),
    "half a header": (GOOD[:9], "ends too early"),
    "another format": (b"\x89PNG" + GOOD[4:], "its first four bytes are wrong"),
    "an unknown type": (GOOD[:2] + b"\x0a" + GOOD[3:], "Received: 00 00 0a 03"),
    "no dimension": (GOOD[:3] + b"\0" + GOOD[4:], "its first four bytes are wrong"),
    "too many dimensions": (GOOD[:3] + b"\x05" + GOOD[4:], "its first four bytes are wrong"),
    "rows without bytes": (struct.pack(">BBBB3I", 0, 0, 8, 3, 5, 0, 9), "make no sense"),
    "rows of many gigabytes": (struct.pack(">BBBB3I", 0, 0, 8, 3, 1, 1 << 31, 1 << 31), "make no sense"),
    "a missing byte": (GOOD[:-1], "Expected: 12 bytes behind the header. Received: 11."),
    "a byte too many": (GOOD + b"x", "Expected: 12 bytes behind the header. Received: 13."),
    "a missing byte, gzipped": (gzip.compress(GOOD[:-1]), "ends too early"),
    "a byte too many, gzipped": (gzip.compress(GOOD + b"x"), "goes on behind its last row"),
    "a truncated gzip": (gzip.compress(GOOD)[:-12], "damaged"),
    "a gzip without its checksum": (gzip.compress(GOOD)[:-8], "damaged"),
    "a gzip with a wrong checksum": (gzip.compress(GOOD)[:-8] + bytes(8), "damaged"),
    "a gzip with something behind it": (gzip.compress(GOOD) + b"something", "damaged"),
    "a gzip of noise": (gzip.compress(GOOD)[:10] + b"\xff" * 40, "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path, kind):
    content, message = DAMAGED[kind]
    with pytest.raises(RefusedError, match="images") as caught:
        read_content(tmp_path, content)
    assert message in str(caught.value)
    assert str(tmp_path / "images") in str(caught.value)


def test_damaged_labels_are_refused_by_their_own_name(tmp_path):
    with pytest.raises(RefusedError, match="labels: the file ends too early"):
        read_content(tmp_path, GOOD, b"\0\0")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, np.uint8), "Expected: 3 labels. Received: 4."),
        (np.zeros((3, 2), np.uint8), "Received: 2 dimensions of uint8"),
        (np.zeros(3, np.float32), "Received: 1 dimensions of float32"),
    ],
    ids=["another number", "two dimensions", "floats"],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    with pytest.raises(RefusedError) as caught:
        read_content(tmp_path, GOOD, encode(labels))
    assert message in str(caught.value)


def test_files_are_matched_in_the_order_of_their_names(tmp_path):
    for number in (2, 1):
        (tmp_path / f"{number}-images").write_bytes(encode(np.full((2, 2, 2), number, np.uint8)))
        (tmp_path / f"{number}-labels").write_bytes(encode(np.full(2, number, np.uint8)))
    found = list_inputs(tmp_path / "*-images", tmp_path / "*-labels")
    assert [Path(one.name).name for one in found] == ["1-images", "2-images"]
    for number, one in enumerate(found, start=1):
        table, _ = read(one, tmp_path)
        assert table["label"].to_pylist() == [number, number] == tensors(table)[:, 0, 0, 0].tolist()


def test_different_numbers_of_files_are_an_error_of_the_source(tmp_path):
    for name in ("1-images", "2-images", "1-labels"):
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(SourceError, match=r"Expected: 2 files of labels\. Received: 1"):
        list_inputs(tmp_path / "*-images", tmp_path / "*-labels")


def test_the_digest_follows_images_and_labels_but_not_their_place(tmp_path):
    def digest_of(folder, images, labels):
        folder.mkdir(exist_ok=True)
        (folder / "images").write_bytes(images)
        (folder / "labels").write_bytes(labels)
        return list_inputs(folder / "images", folder / "labels")[0].digest

    first = digest_of(tmp_path / "a", GOOD, b"1")
    assert digest_of(tmp_path / "b", GOOD, b"1") == first
    assert digest_of(tmp_path / "a", GOOD, b"2") != first
    assert digest_of(tmp_path / "a", b"1", GOOD) != first
    assert list_inputs(tmp_path / "a" / "images")[0].digest != first


def test_fashion_mnist_holds_six_thousand_images_of_each_class(tmp_path):
    folder = Path(os.environ.get("REFIT_DATA", "")) / "fashion_mnist"
    if "REFIT_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("REFIT_DATA names no folder with fashion_mnist")
    table, opened = read(list_inputs(folder / "train-images*", folder / "train-labels*")[0], tmp_path)
    assert np.bincount(table["label"].to_numpy()).tolist() == [6000] * 10
    assert opened.columns[0].shape == (28, 28, 1)
    assert round(float(tensors(table).mean()) / 255, 4) == 0.286  # the mean that torchvision's users normalise with
