"""Which runs a model has learned in: a warm start hands on what earlier versions had learned, and with it of which rows."""

from collections.abc import Iterator

from refit.layout import Layout, RunLayout
from refit.records import WarmStart
from refit.stages import read_stage


def trace_learning(layout: Layout, model: str, run: str) -> Iterator[RunLayout]:
    """The runs that a run's weights have been through, newest first; they may be there no longer.

    Raises:
        CorruptRecordError: what one started from cannot be read.
    """
    current: str | None = run
    while current is not None:
        paths = layout.run(model, current)
        yield paths
        start = read_stage(paths, "start", WarmStart)
        current = start.run if start and start.num_taken else None
