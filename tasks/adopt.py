"""Own the job and find the run to work on: an interrupted one first, else a new one. No task: it holds the lock around all others."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from refit import ownership, runs
from refit.config import Job, parse_job
from refit.layout import home_layout
from refit.records import RunRecord
from tasks.credentials import credentials


@contextlib.contextmanager
def adopt(job: Job, overrides: Mapping[str, Any], *, force: bool, fresh: bool) -> Iterator[tuple[runs.Run, RunRecord | None]]:
    """Yield the run, and the earlier run since which nothing changed, if there is one and nobody asked for more.

    Raises:
        RequestError: the overrides or the code that the job names are wrong; nothing was begun.
        AlreadyRunningError: another process owns the job.
    """
    job = parse_job(job.model_dump(mode="json", exclude_unset=True), overrides)
    runs.check_references(job)
    layout = home_layout().create()
    logging.getLogger("refit").setLevel(logging.INFO)  # Prefect forwards a library's lines only where its logger has a level
    with ownership.own_job(layout, job.name):
        with credentials(job):
            run, inputs = runs.adopt_or_begin(job, layout, fresh=fresh)
        is_wanted = force or fresh or bool(overrides)
        with runs.recording_failure(run), credentials(run.job):
            yield run, None if inputs is None or is_wanted else runs.find_unchanged(layout, job.name, inputs)
