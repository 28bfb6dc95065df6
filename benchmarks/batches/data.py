"""The data of the benchmark: one Parquet table of mixed columns, one of images, and TFRecords of the first."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FLOATS = tuple(f"f{i:02}" for i in range(20))
WHOLE = tuple(f"n{i}" for i in range(4))
WORDS = {"city": 10, "company": 100, "product": 1_000, "agent": 10_000}
KEY, LABEL, IMAGE = "id", "y", "image"
FEATURES = (*FLOATS, *WHOLE, *WORDS)
IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10
PIECE_ROWS = 2_000_000
ROW_BYTES = 4 * len(FLOATS) + 8 * len(WHOLE) + 4 * len(WORDS) + 4


def write_rows(folder: Path, num_rows: int) -> None:
    """Rows of 20 float32, 4 int64, 4 string columns and a label of two classes, in files of 2 million rows."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, num_rows, PIECE_ROWS)):
        table = _rows(first, min(PIECE_ROWS, num_rows - first), np.random.default_rng(number))
        pq.write_table(table, folder / f"{number:03}.parquet", compression="lz4", use_dictionary=list(WORDS))


def _rows(first: int, num_rows: int, generator: np.random.Generator) -> pa.Table:
    columns: dict[str, pa.Array] = {KEY: pa.array(np.arange(first, first + num_rows))}
    columns |= {name: pa.array(generator.standard_normal(num_rows, dtype=np.float32)) for name in FLOATS}
    columns |= {name: pa.array(generator.integers(0, 1_000, num_rows)) for name in WHOLE}
    for name, count in WORDS.items():
        codes = pa.array(generator.integers(0, count, num_rows, dtype=np.int32))
        columns[name] = pa.DictionaryArray.from_arrays(codes, [f"{name} {i:05}" for i in range(count)]).cast(pa.string())
    columns[LABEL] = pa.array(generator.integers(0, 2, num_rows))
    return pa.table(columns)


def write_images(folder: Path, num_images: int) -> None:
    """Images of 32 x 32 x 3 bytes at random with a label of ten classes; an image is bytes with its shape in the field's metadata."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    width = math.prod(IMAGE_SHAPE)
    pixels = pa.Array.from_buffers(pa.binary(width), num_images, [None, pa.py_buffer(generator.bytes(num_images * width))])
    field = pa.field(IMAGE, pixels.type, metadata={"shape": json.dumps(IMAGE_SHAPE), "dtype": "uint8"})
    labels = pa.array(generator.integers(0, NUM_CLASSES, num_images))
    schema = pa.schema([pa.field(KEY, pa.int64()), field, pa.field(LABEL, pa.int64())])
    table = pa.Table.from_arrays([pa.array(np.arange(num_images)), pixels, labels], schema=schema)
    pq.write_table(table, folder / "000.parquet", use_dictionary=False)


def write_records(folder: Path, path: Path, num_rows: int) -> None:
    """The first rows as TFRecords of ``tf.train.Example``, a feature for each column."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in _first_rows(folder, num_rows):
            writer.write(tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in row.items()})).SerializeToString())


def _first_rows(folder: Path, num_rows: int) -> Iterator[dict[str, object]]:
    with pq.ParquetFile(folder / "000.parquet") as file:
        batch = next(file.iter_batches(num_rows, columns=[*FEATURES, LABEL]))
    yield from batch.to_pylist()


def _feature(value: object) -> object:
    import tensorflow as tf

    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(value).encode()]))


def source_files(folder: Path) -> list[str]:
    """The Parquet files of a table, in order."""
    return [str(path) for path in sorted(folder.glob("*.parquet"))]
