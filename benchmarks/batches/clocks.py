"""How speed and memory are taken, the same for every contender."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tensorflow as tf

MIN_BATCHES = 20
TURN_SECONDS = 0.1
SAMPLE_SECONDS = 0.01

Seconds = dict[str, float]


@tf.function  # type: ignore[untyped-decorator]  # TensorFlow is untyped
def _take(iterator: Any, steps: tf.Tensor) -> tf.Tensor:  # noqa: ANN401 -- a tf.data iterator
    """Take batches within a graph, as Keras's train function does; returns their rows."""
    rows = tf.constant(0)
    for _ in tf.range(steps):
        _, label = next(iterator)
        rows += tf.shape(label)[0]
    return rows


def measure_speed(open_dataset: Callable[[], tf.data.Dataset], seconds: float) -> Seconds:
    """Batches taken for some seconds, and at least 20 of them, after a warm-up.

    Returns:
        ``first``: seconds from opening the data set to its first batch; ``rows``: rows a second; ``cpu``: microseconds of CPU a row.
    """
    started = time.perf_counter()
    iterator = iter(open_dataset())
    next(iterator)
    first = time.perf_counter() - started
    steps = _warm_up(iterator)
    rows = batches = 0
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds or batches < MIN_BATCHES:
        rows += int(_take(iterator, tf.constant(steps)))
        batches += steps
    return {
        "first": first,
        "rows": rows / (time.perf_counter() - started),
        "cpu": (time.process_time() - cpu) / rows * 1e6,
    }


def _warm_up(iterator: Any) -> int:  # noqa: ANN401 -- a tf.data iterator
    """How many batches come in about a tenth of a second."""
    _take(iterator, tf.constant(1))
    steps = 1
    while True:
        started = time.perf_counter()
        _take(iterator, tf.constant(steps))
        if time.perf_counter() - started > TURN_SECONDS:
            return steps
        steps *= 2


def take_rows(dataset: tf.data.Dataset, num_rows: int) -> None:
    """Take so many rows, rounded up to turns of 16 batches."""
    iterator = iter(dataset)
    while num_rows > 0:
        num_rows -= int(_take(iterator, tf.constant(16)))


def _status(field: str) -> float:
    """Megabytes that Linux tells of this process. Source: proc_pid_status(5)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status does not tell {field}")
    return int(found[1]) / 1024


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return _status("VmHWM")


class MemoryWatch:
    """Within it ``extra_megabytes`` grows to the most memory held above that at its start, mapped files not counted."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.extra_megabytes = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._at_start = _status("RssAnon")
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.extra_megabytes = max(self.extra_megabytes, _status("RssAnon") - self._at_start)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
