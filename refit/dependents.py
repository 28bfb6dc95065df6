"""What depends on a data set: its runs, and the models that were trained on rows that are forgotten since."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from refit import registry
from refit.layout import Layout, RunLayout
from refit.lineage import trace_learning
from refit.records import Record, SnapshotRecord
from refit.snapshots import find_dataset, read_forgotten, read_shelf
from refit.splits import LEARNED, membership_path
from refit.stages import read_stage


class DatasetRun(Record):
    """What is needed of ``run.json``, whatever release wrote it."""

    run: str
    job: str
    status: str
    snapshot: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The data set's name, however the job said it."""
        data = self.parameters.get("data") or {}
        return str(data.get("name") or self.parameters.get("name") or self.job)

    @property
    def is_unfinished(self) -> bool:
        """Whether a later start of the job would go on with it."""
        return self.status in ("running", "cancelled")


def read_dataset_runs(layout: Layout, name: str) -> list[DatasetRun]:
    """All runs on a data set, oldest first of each job.

    Raises:
        CorruptRecordError: what a run needs cannot be told.
    """
    found = []
    for job in layout.jobs():
        for run in layout.runs(job):
            with contextlib.suppress(FileNotFoundError):
                record = _read_run(layout.run(job, run))
                found += [record] if record.dataset == name else []
    return found


def _read_run(paths: RunLayout) -> DatasetRun:
    record, ingested = DatasetRun.read(paths.record), read_stage(paths, "ingest", SnapshotRecord)
    return record if record.snapshot or ingested is None else record.model_copy(update={"snapshot": ingested.id})


# ---- runs that had seen what is forgotten


class TrainedRun(Record):
    """A run that learned from forgotten rows, or started from one that did; ``num_rows`` is null where there is no record of its rows."""

    run: str
    job: str
    num_rows: int | None
    versions: tuple[int, ...] = Field((), description="Published versions of its model that are on disk.")
    serves: int | None = Field(None, description="The one of them that serves.")
    remedy: str


def find_trained(layout: Layout, name: str) -> Iterator[TrainedRun]:
    """Runs that were trained or validated on rows that are forgotten, with the published versions of their models."""
    home = find_dataset(layout, name)
    forgotten, shelf = read_forgotten(home), read_shelf(home)
    for run in read_dataset_runs(layout, name) if len(forgotten) else ():
        num_rows = _count_trained(trace_learning(layout, run.job, run.run), forgotten)
        if num_rows or (num_rows is None and run.snapshot in shelf.tombstones):
            yield _trained(layout, run, num_rows)


def _count_trained(runs: Iterable[RunLayout], forgotten: np.ndarray) -> int | None:
    """How many of the rows that runs learned from are forgotten now; None where one of them has no list of its rows."""
    try:
        lists = [np.load(membership_path(paths, side), allow_pickle=False) for paths in runs for side in LEARNED]
    except (OSError, ValueError, EOFError):
        return None
    return len(np.intersect1d(np.concatenate(lists), forgotten))


def _trained(layout: Layout, run: DatasetRun, num_rows: int | None) -> TrainedRun:
    numbers = registry.versions(layout, run.job) if run.job in registry.models(layout) else []
    versions = tuple(version.version for version in numbers if version.run == run.run)
    serves = next((version.version for version in numbers if version.run == run.run and version.serving), None)
    tell = partial(TrainedRun, run=run.run, job=run.job, num_rows=num_rows, versions=versions, serves=serves)
    folders = ", ".join(str(layout.model(run.job).version(version)) for version in versions)
    where = f"{layout.run(run.job, run.run).root}{f', {folders}' if folders else ''}"
    if serves is not None:
        return tell(
            remedy=f"Version {serves} serves: train anew with refit run FILE --force and promote that run, or go back to a version that is "
            f"not listed here with refit rollback {run.job} --to VERSION. Then remove {where}."
        )
    return tell(remedy=f"It does not serve. Remove {where} where the model must go too.")
