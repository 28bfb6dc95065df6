"""Work on the items of a stream side by side, results in order, memory bounded."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
