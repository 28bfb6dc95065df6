"""What people use instead: each function loads its data and returns how to open batches of a size, without end."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from batches import AbsentError, data

Open = Callable[[int], tf.data.Dataset]
SHUFFLE_ROWS = 10_000


def _optional(module: str) -> Any:  # noqa: ANN401 -- a module that may be absent
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise AbsentError("not installed (pip install 'refit[bench]')") from None


def open_pandas(folder: Path) -> Open:
    """A frame in slices through a shuffle buffer."""
    pandas = _optional("pandas")
    frame = pandas.concat([pandas.read_parquet(path, columns=[*data.FEATURES, data.LABEL]) for path in _sources(folder)])
    labels = frame.pop(data.LABEL)
    slices = tf.data.Dataset.from_tensor_slices((dict(frame), labels))
    return lambda batch_size: slices.shuffle(SHUFFLE_ROWS).repeat().batch(batch_size).prefetch(tf.data.AUTOTUNE)


def open_records(folder: Path) -> Open:
    """Serialised examples in the order of the file, parsed a batch at a time.

    ``tf.data.experimental.make_batched_features_dataset`` does the same with a shuffle and was 3 to 7 times slower.
    """
    return _open_examples(tf.data.TFRecordDataset(str(folder / "rows.tfrecord")))


def open_records_shuffled(folder: Path) -> Open:
    """The same through a shuffle buffer."""
    return _open_examples(tf.data.TFRecordDataset(str(folder / "rows.tfrecord")).shuffle(SHUFFLE_ROWS))


def _open_examples(examples: tf.data.Dataset) -> Open:
    dtypes = {**dict.fromkeys(data.FLOATS, tf.float32), **dict.fromkeys((*data.WHOLE, data.LABEL), tf.int64)}
    features = {name: tf.io.FixedLenFeature([], dtypes.get(name, tf.string)) for name in (*data.FEATURES, data.LABEL)}

    def parse(batch: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        columns = tf.io.parse_example(batch, features)
        return columns, columns.pop(data.LABEL)

    def open_dataset(batch_size: int) -> tf.data.Dataset:
        batches = examples.repeat().batch(batch_size)
        return batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    return open_dataset


def open_keras(folder: Path) -> Open:
    """What ``fit(x={column: array})`` reads from, strings as codes."""
    table = pq.read_table(_sources(folder), columns=[*data.FEATURES, data.LABEL], read_dictionary=list(data.WORDS))
    arrays = {name: _numbers(table[name]) for name in table.column_names}
    return _open_arrays(arrays, arrays.pop(data.LABEL))


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    whole = values.unify_dictionaries().combine_chunks()
    return np.asarray((whole.indices if pa.types.is_dictionary(whole.type) else whole).to_numpy())


def open_keras_images(folder: Path) -> Open:
    """What ``fit(x=array)`` reads from."""
    return _open_arrays(*read_images(folder))


def _open_arrays(x: np.ndarray | dict[str, np.ndarray], y: np.ndarray) -> Open:
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    return lambda batch_size: ArrayDataAdapter(x, y, batch_size=batch_size, shuffle=True).get_tf_dataset().repeat()


def open_huggingface(folder: Path) -> Open:
    """A ``datasets.Dataset`` of the Parquet files through its ``to_tf_dataset``."""
    datasets = _optional("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_parquet(_sources(folder), cache_dir=str(folder / "huggingface"), columns=[*data.FEATURES, data.LABEL])

    def open_dataset(batch_size: int) -> tf.data.Dataset:
        return rows.to_tf_dataset(batch_size, columns=list(data.FEATURES), label_cols=data.LABEL, shuffle=True).repeat()

    return open_dataset


def open_slices(folder: Path) -> Open:
    """Images in slices through a shuffle buffer, batched, then scaled."""
    unscaled = open_slices_unscaled(folder)
    return lambda batch_size: unscaled(batch_size).map(_scale, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _scale(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cast(images, tf.float32) / 255.0, labels


def open_slices_unscaled(folder: Path) -> Open:
    """The same without the scaling, which refit leaves to the model."""
    slices = tf.data.Dataset.from_tensor_slices(read_images(folder))
    return lambda batch_size: slices.shuffle(SHUFFLE_ROWS).repeat().batch(batch_size).prefetch(tf.data.AUTOTUNE)


def read_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[rows, 32, 32, 3]`` uint8 and labels ``[rows]`` int64."""
    table = pq.read_table(_sources(folder), columns=[data.IMAGE, data.LABEL])
    pixels = np.frombuffer(table[data.IMAGE].combine_chunks().buffers()[1], dtype=np.uint8)
    return pixels.reshape(-1, *data.IMAGE_SHAPE), table[data.LABEL].to_numpy()


def _sources(folder: Path) -> list[str]:
    return data.source_files(folder / "source")


PEERS: dict[str, Callable[[Path], Open]] = {
    "pandas": open_pandas,
    "records": open_records,
    "records shuffled": open_records_shuffled,
    "keras": open_keras,
    "huggingface": open_huggingface,
    "keras images": open_keras_images,
    "slices": open_slices,
    "slices unscaled": open_slices_unscaled,
}
