"""Work on the items of a stream side by side, results in order, memory bounded."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 8  # each holds items of its own: more would cost memory and save little time


def count_threads() -> int:
    """Threads that are worth having on this machine."""
    return max(1, min(MAX_THREADS, os.cpu_count() or 1))


def ordered_map(work: Callable[[T], R], items: Iterable[T], *, num_threads: int | None = None) -> Generator[R, None, None]:
    """What ``work`` makes of each item, in the order of the items; at most two items a thread are on their way.

    Args:
        work: called in threads; what it raises is raised here, in its turn.
        items: taken in the caller's thread.
        num_threads: by default ``count_threads()``.
    """
    num_threads = num_threads or count_threads()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The items, none of them None, made in a thread while the caller is busy with those before; at most ``depth`` wait.

    Args:
        items: run and closed in that thread; what it raises is raised here, in its turn.
        depth: at least 1.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in waiting:
                future.cancel()
            pool.submit(items.close).result()


class Behind:
    """Work that is done in a thread, piece after piece, while the caller goes on; at most ``depth`` pieces wait."""

    def __init__(self, depth: int) -> None:
        """Begin; ``depth`` is at least 1."""
        self._depth = depth
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Hand pieces over within."""
        return self

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Hand over a piece; what an earlier one raised is raised here."""
        self._waiting.append(self._pool.submit(work, *arguments))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all is done; what a piece raised is raised here."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, *_: object) -> None:
        """Give up what has not begun."""
        self._pool.shutdown(cancel_futures=True)
