"""How many steps are run at once: as the job says, or as measured where that is worth its time.

A group of steps has the same results as the steps one by one, but for who hears of them: nobody does within a group. It saves what
Python and TensorFlow do around a step, which counts where steps are short.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Literal

Clock = Callable[[], float]
_WARM_UP, _SINGLES, _GROUPS = 3, 20, 3
_GROUP_SECONDS, _MAX_GROUP = 0.1, 64  # a signal is heard, and progress told, between groups
_WORTH_SECONDS = 60.0  # what is left of a fit for which another function is traced
_GAIN = 0.97


class Pace:
    """Measures single steps, then groups of them, and keeps what is faster."""

    def __init__(
        self,
        asked: int | Literal["auto"],
        *,
        steps_per_epoch: int,
        num_steps: int,
        chosen: int | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Decide at once where there is nothing to measure.

        Args:
            asked: what the job says.
            steps_per_epoch: no group is larger.
            num_steps: steps of the fit, at most.
            chosen: what was measured before an interruption.
            clock: seconds.
        """
        decided = chosen if asked == "auto" else asked
        self.size = min(decided or 1, steps_per_epoch)
        self.chosen = None if decided is None else self.size
        self._most, self._left = min(_MAX_GROUP, steps_per_epoch), num_steps
        self._seconds: list[float] = []
        self._single = 0.0
        self._clock = clock

    @contextlib.contextmanager
    def timing(self, count: int) -> Iterator[None]:
        """Around a group of so many steps."""
        if self.chosen is not None:
            yield
            return
        started = self._clock()
        yield
        self._left -= count
        if count == self.size:
            self._seconds.append((self._clock() - started) / count)
            self._decide()

    def _decide(self) -> None:
        if self.size == 1 and len(self._seconds) == _WARM_UP + _SINGLES:
            self._single = statistics.median(self._seconds[_WARM_UP:])
            self._seconds = []
            size = min(self._most, int(_GROUP_SECONDS / self._single))
            if size < 2 or self._single * self._left < _WORTH_SECONDS:
                self.chosen = 1
            else:
                self.size = size
        elif self.size > 1 and len(self._seconds) == 1 + _GROUPS:
            is_faster = statistics.median(self._seconds[1:]) < _GAIN * self._single
            self.size = self.chosen = self.size if is_faster else 1
