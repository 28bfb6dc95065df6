"""Requests to end: what SIGTERM and Ctrl-C ask for is noted, so that a fit can leave at the next step with its state on the disk."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether the process was asked to end, and by which signal."""

    signal_number: int | None = None
    _earlier: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def is_asked(self) -> bool:
        """Whether it was."""
        return self.signal_number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Keep the first request; a second one ends at once, by whoever handled the signal before."""
        if self.is_asked:
            self._hand_on(number, frame)
        self.signal_number = number

    def leave(self) -> None:
        """End as the signal would have ended the process when it came.

        Raises:
            BaseException: what the earlier handler raises: KeyboardInterrupt, Prefect's TerminationSignal, or else SystemExit.
        """
        self._hand_on(self.signal_number or signal.SIGTERM, None)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        earlier = self._earlier.get(number)
        if callable(earlier):
            earlier(number, frame)
        raise SystemExit(128 + number)


@contextlib.contextmanager
def noting_stop() -> Iterator[StopRequest]:
    """While the block runs, signals that ask to end are noted. In another thread than the main one signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    for number in _ASKING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # a shell's background job does not hear Ctrl-C
            request._earlier[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        for asked, earlier in request._earlier.items():
            signal.signal(asked, earlier)
