"""Rows that do not fit into memory: row groups in a drawn order, read in windows, of which each is shuffled by itself.

The order of an epoch's rows is fixed by (seed, epoch) alone. It is cut into windows of whole batches, so that a window is read
without those before it; a row group on a border is read for both of its windows, and gives each its part. Row groups are dealt to
windows like cards: of every run of neighbours each window gets one, so that data sorted by label reach every window alike.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from refit.packing import Packing, Pick, pack_groups
from refit.row_groups import Mask, Numbers, RowGroups
from refit.slicing import Records, Slicing, finish, slice_batches

_THREADS = 2  # decode and pack side by side; more would take from the fit
_LEAVING_SECONDS = 0.05  # a thread is out of Python that long after a window was read
Window = tuple[Any, ...]
_GROUPS, _VALIDATION = 1, 2  # what is drawn from one (seed, epoch) must not be drawn from the same numbers


def draw_numbers(count: int, *, seed: int, epoch: int, purpose: int) -> npt.NDArray[np.uint64]:
    """Numbers at random, uint64 ``[count]``, the same for all releases of NumPy.

    Source: https://numpy.org/neps/nep-0019-rng-policy.html; Salmon et al. (2011), https://doi.org/10.1145/2063384.2063405
    """
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, 0, 0, epoch], np.uint64)).random_raw(count)


def deal_groups(num_chosen: Numbers, num_windows: int, *, seed: int, epoch: int) -> Numbers:
    """The order in which row groups are read in an epoch, those without wanted rows left out.

    Neighbours in the data are dealt to windows, one to each, at random; within a window's hand the order is drawn, too.
    """
    groups = np.flatnonzero(num_chosen)
    drawn, hands = draw_numbers(2 * len(groups), seed=seed, epoch=epoch, purpose=_GROUPS).reshape(2, -1), np.arange(len(groups))
    deal = hands // num_windows
    dealt = np.lexsort((drawn[0], deal))
    last = len(groups) - len(groups) % num_windows
    window = hands % num_windows
    window[last:] = np.argsort(draw_numbers(num_windows, seed=seed, epoch=epoch, purpose=_GROUPS + 2))[: len(groups) - last]
    return groups[dealt[np.lexsort((drawn[1], window))]]


def draw_validation(is_pool: Mask, num_validation: int, *, seed: int, epoch: int) -> Mask:
    """Which rows of the pool are validation rows in an epoch: bool of the same shape, exactly ``num_validation`` of them true."""
    drawn = draw_numbers(int(is_pool.sum()), seed=seed, epoch=epoch, purpose=_VALIDATION)
    bound = np.partition(drawn, num_validation - 1)[num_validation - 1]
    chosen = drawn < bound
    chosen[np.flatnonzero(drawn == bound)[: num_validation - int(chosen.sum())]] = True
    validation = np.zeros_like(is_pool)
    validation[is_pool] = chosen
    return validation


@dataclass(frozen=True)
class Course:
    """All rows of one pass in windows of ``window_rows``, the last of fewer."""

    groups: RowGroups
    order: Numbers
    window_rows: int

    def picks(self, window: int) -> list[Pick]:
        """What of which row groups makes a window."""
        ends = np.cumsum(self.groups.num_chosen[self.order])
        first, stop = window * self.window_rows, min((window + 1) * self.window_rows, int(ends[-1]))
        within = range(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, stop, side="left")) + 1)
        counts = self.groups.num_chosen[self.order]
        starts = ends - counts
        return [Pick(int(self.order[at]), max(0, first - int(starts[at])), min(int(counts[at]), stop - int(starts[at]))) for at in within]


def start_threads(count: int = _THREADS) -> ThreadPoolExecutor:
    """A pool of which all threads run already: one that TensorFlow's threads started would round the smallest floats to zero.

    Source: tsl/platform/denormal.h, which TensorFlow's own threads set; a thread inherits it from the one that starts it.
    """
    pool, together = ThreadPoolExecutor(count, thread_name_prefix="refit-window"), Barrier(count)
    list(pool.map(lambda _: together.wait(), range(count)))
    return pool


class Gate:
    """Lets the process end: a thread of TensorFlow's that is in Python when the interpreter goes would wait for it for ever.

    Source: https://docs.python.org/3.11/c-api/init.html#c.PyEval_RestoreThread
    """

    def __init__(self) -> None:
        """Begin open."""
        self._is_open = True
        self._lock = Lock()

    def let(self, read: Callable[[], Window | None]) -> Window | None:
        """What ``read`` gives; None once the gate is closed."""
        with self._lock:
            return read() if self._is_open else None

    def close(self) -> None:
        """Wait for what is being read, and let nothing more be read."""
        with self._lock:
            self._is_open = False
        time.sleep(_LEAVING_SECONDS)


@dataclass(frozen=True)
class Streaming:
    """Rows of one side on disk, or of the pool of which ``num_validation`` are drawn as validation rows for each epoch."""

    groups: RowGroups
    packing: Packing
    window_rows: int
    class_weights: tuple[float, ...] | None = None
    num_validation: int = 0
    pool: ThreadPoolExecutor = field(default_factory=start_threads, repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self.groups.num_rows - self.num_validation

    def shuffled(self, *, seed: int, epoch: int, step: int, slicing: Slicing, device: str | None = None) -> tf.data.Dataset:
        """Batches of epoch after epoch without end, from a position on; one window is read ahead."""
        window_steps = self._window_steps(self.num_rows, slicing)
        num_steps = slicing.num_steps(self.num_rows)

        def windows() -> Iterator[Window]:
            number, skipped = divmod(step, window_steps)
            at = epoch
            while True:
                course = self._course(at, seed, window_steps * slicing.batch_size)
                for window in range(number, -(-num_steps // window_steps)):
                    yield self._read(course, window, (seed, at, skipped if (at, window) == (epoch, number) else 0))
                at, number = at + 1, 0

        weights = None if self.class_weights is None else tf.constant(self.class_weights, tf.float32)
        return finish(self._batches(windows, slicing, weights, is_shuffled=True), device=device)

    def in_order(self, slicing: Slicing) -> tf.data.Dataset:
        """Every row once, in the order of the snapshot."""

        def windows() -> Iterator[Window]:
            yield from self._pass(self.groups, slicing)

        return finish(self._batches(windows, slicing, None, is_shuffled=False))

    def validation(self, *, seed: int, epoch: int | tf.Variable, slicing: Slicing) -> tf.data.Dataset:
        """The pool's validation rows of an epoch, in the order of the snapshot; a variable is read when reading begins."""

        def windows() -> Iterator[Window]:
            number = int(epoch.numpy()) if isinstance(epoch, tf.Variable) else int(epoch)
            pool = self.groups
            yield from self._pass(pool.choose(draw_validation(pool.is_chosen, self.num_validation, seed=seed, epoch=number)), slicing)

        return finish(self._batches(windows, slicing, None, is_shuffled=False))

    def _window_steps(self, num_rows: int, slicing: Slicing) -> int:
        """Batches of a window: as many in each as can be, and no more than the window may hold."""
        most = max(1, self.window_rows // slicing.batch_size)
        num_steps = max(1, slicing.num_steps(num_rows))
        return -(-num_steps // -(-num_steps // most))

    def _course(self, epoch: int, seed: int, window_rows: int) -> Course:
        groups = self.groups
        if self.num_validation:
            groups = groups.choose(groups.is_chosen & ~draw_validation(groups.is_chosen, self.num_validation, seed=seed, epoch=epoch))
        order = deal_groups(groups.num_chosen, -(-groups.num_rows // window_rows), seed=seed, epoch=epoch)
        return Course(groups, order, window_rows)

    def _pass(self, groups: RowGroups, slicing: Slicing) -> Iterator[Window]:
        window_rows = self._window_steps(groups.num_rows, slicing) * slicing.batch_size
        course = Course(groups, np.flatnonzero(groups.num_chosen), window_rows)
        for window in range(-(-groups.num_rows // window_rows)):
            yield self._read(course, window, (0, 0, 0))

    def _read(self, course: Course, window: int, place: tuple[int, int, int]) -> Window:
        matrix, words = pack_groups(course.groups, course.picks(window), self.packing, self.pool)
        return np.array([*place, window], np.int64), matrix, *words

    def _batches(self, windows: Any, slicing: Slicing, weights: Any, *, is_shuffled: bool) -> tf.data.Dataset:  # noqa: ANN401 -- tensors
        words = (tf.TensorSpec([None], tf.string) for _ in self.packing.words)
        signature = (tf.TensorSpec([4], tf.int64), tf.TensorSpec([None, self.packing.row_bytes], tf.uint8), *words)

        def one_window(place: Any, matrix: Any, *words: Any) -> Any:  # noqa: ANN401 -- tensors
            order = tf.range(tf.shape(matrix)[0])
            if is_shuffled:
                drawn = tf.random.experimental.stateless_fold_in(place[:2], place[3])
                order = tf.random.experimental.stateless_shuffle(order, seed=drawn)
            return slice_batches(Records(matrix, words, self.packing), order, first=place[2], slicing=slicing, weights=weights)

        gate = Gate()
        weakref.finalize(self.pool, gate.close)

        def gated() -> Iterator[Window]:
            reading = windows()
            while (window := gate.let(lambda: next(reading, None))) is not None:
                yield window

        return tf.data.Dataset.from_generator(gated, output_signature=signature).prefetch(1).flat_map(one_window)
