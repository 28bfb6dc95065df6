"""Stages of a run: each leaves one record when it is complete, and a run that is taken up again does not repeat it."""

import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from refit.layout import RunLayout
from refit.records import Record

STAGES = (
    *("ingest", "validate", "split", "convert", "build", "folds", "start", "fit"),
    *("export", "baselines", "evaluate", "gate", "publish", "report"),
)
_log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)


class _Envelope(Record):
    seconds: float


class _Complete(Record, Generic[R]):
    seconds: float
    record: R


def run_stage(layout: RunLayout, name: str, kind: type[R], produce: Callable[[], R]) -> R:
    """Return the stage's record: the one on disk where the stage is complete, else what ``produce`` makes.

    Args:
        layout: the run.
        name: one of ``STAGES``.
        kind: class of the record.
        produce: does the work; what it writes must be complete when it returns.
    """
    done = read_stage(layout, name, kind)
    if done is not None:
        _log.info("%s: done before the interruption", name)
        return done
    started = time.perf_counter()
    record = produce()
    seconds = time.perf_counter() - started
    _log.info("%s: %s (%.1f s)", name, record.brief(), seconds)
    _Complete[kind](seconds=seconds, record=record).write(layout.stage(name))  # type: ignore[valid-type]
    return record


def read_stage(layout: RunLayout, name: str, kind: type[R]) -> R | None:
    """The record of a complete stage, or None.

    Raises:
        CorruptRecordError: the file is there and cannot be read.
    """
    try:
        return _Complete[kind].read(layout.stage(name)).record  # type: ignore[valid-type]
    except FileNotFoundError:
        return None


def read_seconds(layout: RunLayout) -> dict[str, float]:
    """Wall seconds of each complete stage, in order."""
    found = ((name, layout.stage(name)) for name in STAGES)
    return {name: round(_Envelope.read(path).seconds, 3) for name, path in found if path.exists()}


def forget_stages(layout: RunLayout, *names: str) -> None:
    """Let stages be done again."""
    for name in names:
        layout.stage(name).unlink(missing_ok=True)
