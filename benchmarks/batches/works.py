"""What one worker process does: one thing, measured, told as numbers by name."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import keras
import pyarrow.parquet as pq
import tensorflow as tf

from batches import clocks, data, ours, peers

Numbers = dict[str, float]
FIT_BATCH = 256
FIT_EPOCHS = 3


def prepare_rows(folder: str, num_rows: int, num_records: int, window_rows: int) -> Numbers:
    """Generate the table, write TFRecords of its first rows where any are asked for, and ingest it."""
    path = Path(folder)
    data.write_rows(path / "source", num_rows)
    if num_records:
        data.write_records(path / "source", path / "rows.tfrecord", num_records)
    return _ingest(path, window_rows)


def prepare_images(folder: str, num_images: int, window_rows: int) -> Numbers:
    """Generate the images and ingest them."""
    path = Path(folder)
    data.write_images(path / "source", num_images)
    return _ingest(path, window_rows)


def _ingest(path: Path, window_rows: int) -> Numbers:
    started = time.perf_counter()
    ours.prepare(path, window_rows=window_rows)
    return {"seconds": time.perf_counter() - started}


def speed(folder: str, contender: str, batch_sizes: list[int], seconds: float, window_rows: int) -> Numbers:
    """Load what a contender reads from and take batches of each size."""
    started = time.perf_counter()
    open_dataset = _open(Path(folder), contender, window_rows)
    numbers = {"load": time.perf_counter() - started}
    for batch_size in batch_sizes:
        found = clocks.measure_speed(partial(open_dataset, batch_size), seconds)
        numbers |= {f"{name} {batch_size}": value for name, value in found.items()}
    return numbers | {"peak": clocks.peak_megabytes()}


def _open(folder: Path, contender: str, window_rows: int) -> Callable[[int], tf.data.Dataset]:
    if contender in peers.PEERS:
        return peers.PEERS[contender](folder)
    if contender == "constant":
        resident = ours.load_train(folder, "resident", window_rows=window_rows)
        return lambda batch_size: tf.data.Dataset.from_tensors(next(iter(resident.open(batch_size)))).repeat().prefetch(2)
    return ours.load_train(folder, contender, window_rows=window_rows).open


def decode(folder: str, seconds: float, window_rows: int) -> Numbers:
    """Decode the columns of refit's shards on one thread, with strings as dictionaries, over and over."""
    names = [*data.FEATURES, data.LABEL]
    files = itertools.cycle(ours.shard_files(Path(folder), window_rows=window_rows))
    rows, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        with pq.ParquetFile(next(files), read_dictionary=list(data.WORDS)) as file:
            rows += sum(len(batch) for batch in file.iter_batches(columns=names, use_threads=False))
    return {"rows": rows / (time.perf_counter() - started)}


def stream(folder: str, batch_size: int, window_rows: int, num_rows: int) -> Numbers:
    """Stream so many rows, and see how much memory that takes from before the load on."""
    clocks.take_rows(tf.data.Dataset.from_tensors((tf.zeros(1), tf.zeros(1))).repeat().prefetch(2), 1_000)
    with clocks.MemoryWatch() as memory:
        train = ours.load_train(Path(folder), "streaming", window_rows=window_rows)
        clocks.take_rows(train.open(batch_size), num_rows)
    window = train.window_rows * train.row_bytes / 2**20
    return {"extra": memory.extra_megabytes, "windows": memory.extra_megabytes / window, "window": window}


def load(folder: str, window_rows: int) -> Numbers:
    """Load the train split into memory."""
    started = time.perf_counter()
    ours.load_train(Path(folder), "resident", window_rows=window_rows)
    return {"seconds": time.perf_counter() - started, "peak": clocks.peak_megabytes()}


def read_table(folder: str, window_rows: int) -> Numbers:
    """Read the same columns of the same shards with pyarrow, on all cores."""
    path = Path(folder)
    features = [data.IMAGE] if path.name == "images" else data.FEATURES
    files = ours.shard_files(path, window_rows=window_rows)
    started = time.perf_counter()
    pq.read_table(files, columns=[*features, data.LABEL])
    return {"seconds": time.perf_counter() - started, "peak": clocks.peak_megabytes()}


def fit(folder: str, steps: int, turns: int, window_rows: int) -> Numbers:
    """Fit the small CNN from the train split and from one constant batch by turns.

    Both in one process, since two processes differ by more than the limit; the first epoch of each fit is not counted.
    """
    path = Path(folder)
    batches = ours.load_train(path, "resident", window_rows=window_rows).open(FIT_BATCH)
    constant = tf.data.Dataset.from_tensors(next(iter(batches))).repeat()
    model = ours.build_model(path, window_rows=window_rows)
    found = [(_epoch_seconds(model, batches, steps), _epoch_seconds(model, constant, steps)) for _ in range(turns)]
    return {"refit": statistics.median(pair[0] for pair in found), "constant": statistics.median(pair[1] for pair in found)}


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, _epoch: int, _logs: object = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, _epoch: int, _logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def _epoch_seconds(model: keras.Model, dataset: Iterable[object], steps: int) -> float:
    clock = _Epochs()
    model.fit(dataset, steps_per_epoch=steps, epochs=FIT_EPOCHS, shuffle=False, verbose=0, callbacks=[clock])
    return statistics.median(clock.seconds[1:])


WORKS: dict[str, Callable[..., Numbers]] = {
    work.__name__: work for work in (prepare_rows, prepare_images, speed, decode, stream, load, read_table, fit)
}
