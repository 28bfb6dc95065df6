"""Rows that do not fit into memory: row groups in a drawn order, read in windows, of which each is shuffled by itself.

The order of an epoch's rows is fixed by (seed, epoch) alone. It is cut into windows of whole batches, so that a window is read
without those before it; a row group on a border is read for both of its windows, and gives each its part. Row groups are dealt to
windows like cards: of every run of neighbours each window gets one, so that data sorted by label reach every window alike.
"""

import atexit
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import Barrier, get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from refit.packing import Packing, Pick, pack_groups
from refit.row_groups import Mask, Numbers, RowGroups
from refit.slicing import Records, Slicing, finish, slice_batches

_THREADS = 2  # decode and pack side by side; more would take from the fit
_ENTERING_SECONDS = 0.05  # a thread that found the gate open is in Python by then
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
    """Lets the process end: no thread of TensorFlow's comes into Python once it is closed, for there it would wait for ever.

    Source: https://docs.python.org/3.11/c-api/init.html#c.PyEval_RestoreThread
    """

    def __init__(self) -> None:
        """Begin open; it closes when the process ends."""
        with tf.device("CPU:0"):
            self.is_open = tf.Variable(True, trainable=False)
        self._inside: set[int] = set()
        _gates.add(self)

    def let(self, read: Callable[[int], Window], number: int) -> Window:
        """What ``read`` gives; the end of the data once the process ends.

        Raises:
            StopIteration: no pool takes work any more.
        """
        self._inside.add(get_ident())
        try:
            return read(number)
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise StopIteration from error
            raise
        finally:
            self._inside.discard(get_ident())

    def close(self) -> None:
        """Let nothing more be read, and wait for what is."""
        self.is_open.assign(False)
        time.sleep(_ENTERING_SECONDS)
        while self._inside:
            time.sleep(_ENTERING_SECONDS)


_gates: "weakref.WeakSet[Gate]" = weakref.WeakSet()


@atexit.register
def _close_gates() -> None:
    for gate in list(_gates):
        gate.close()


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
        num_windows = -(-slicing.num_steps(self.num_rows) // window_steps)
        start = epoch * num_windows + step // window_steps
        course = lru_cache(maxsize=1)(partial(self._course, seed=seed, window_rows=window_steps * slicing.batch_size))

        def read(number: int) -> Window:
            at, window = divmod(number, num_windows)
            return self._read(course(at), window, (seed, at, step % window_steps if number == start else 0))

        weights = None if self.class_weights is None else tf.constant(self.class_weights, tf.float32)
        numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        return finish(self._batches(numbers, read, slicing, weights, is_shuffled=True), device=device)

    def in_order(self, slicing: Slicing) -> tf.data.Dataset:
        """Every row once, in the order of the snapshot."""
        return self._pass(self.groups.num_rows, lambda _: self.groups, tf.constant(0, tf.int64), slicing)

    def validation(self, *, seed: int, epoch: int | tf.Variable, slicing: Slicing) -> tf.data.Dataset:
        """The pool's validation rows of an epoch, in the order of the snapshot; a variable is read when reading begins."""
        is_pool = self.groups.is_chosen

        def choose(number: int) -> RowGroups:
            return self.groups.choose(draw_validation(is_pool, self.num_validation, seed=seed, epoch=number))

        return self._pass(self.num_validation, choose, epoch, slicing)

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

    def _pass(self, num_rows: int, choose: Callable[[int], RowGroups], epoch: Any, slicing: Slicing) -> tf.data.Dataset:  # noqa: ANN401
        """Rows that are chosen for an epoch, in the order of the snapshot."""
        window_rows = self._window_steps(num_rows, slicing) * slicing.batch_size
        num_windows = -(-num_rows // window_rows)

        @lru_cache(maxsize=1)
        def course(number: int) -> Course:
            groups = choose(number)
            return Course(groups, np.flatnonzero(groups.num_chosen), window_rows)

        def read(number: int) -> Window:
            at, window = divmod(number, num_windows)
            return self._read(course(at), window, (0, 0, 0))

        windows = tf.data.Dataset.range(num_windows).map(lambda window: tf.cast(epoch, tf.int64) * num_windows + window)
        return finish(self._batches(windows, read, slicing, None, is_shuffled=False))

    def _read(self, course: Course, window: int, place: tuple[int, int, int]) -> Window:
        matrices, words = pack_groups(course.groups, course.picks(window), self.packing, self.pool)
        return np.array([*place, window], np.int64), *matrices, *words

    def _batches(
        self,
        numbers: tf.data.Dataset,
        read: Callable[[int], Window],
        slicing: Slicing,
        weights: Any,  # noqa: ANN401 -- tensors
        *,
        is_shuffled: bool,
    ) -> tf.data.Dataset:
        """Batches of the windows that are read by their numbers."""
        gate, widths = Gate(), self.packing.widths
        shapes = [[4], *([None, width] for width in widths), *([None] for _ in self.packing.words)]
        dtypes = [tf.int64, *(tf.uint8 for _ in widths), *(tf.string for _ in self.packing.words)]

        def load(number: Any) -> Any:  # noqa: ANN401 -- tensors
            values = tf.numpy_function(partial(gate.let, read), [number], dtypes)
            return tuple(map(tf.ensure_shape, values, shapes))

        def one_window(place: Any, *packed: Any) -> Any:  # noqa: ANN401 -- tensors
            matrices, words = packed[: len(widths)], packed[len(widths) :]
            order = tf.range(tf.shape(matrices[0])[0])
            if is_shuffled:
                drawn = tf.random.experimental.stateless_fold_in(place[:2], place[3])
                order = tf.random.experimental.stateless_shuffle(order, seed=drawn)
            return slice_batches(Records(matrices, words, self.packing), order, first=place[2], slicing=slicing, weights=weights)

        return numbers.take_while(lambda _: gate.is_open).map(load).prefetch(1).flat_map(one_window)
