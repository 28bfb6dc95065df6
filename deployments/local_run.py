"""One run in this process: skipped before Prefect is started where nothing changed.

Otherwise Prefect's server starts while TensorFlow is imported: each takes seconds, and neither needs the other.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich

from deployments.quiet import import_tensorflow
from deployments.server import prepare_server
from refit import ownership, runs
from refit.config import Job
from refit.jobfile import read_job, telling_place
from refit.layout import Layout, home_layout
from refit.records import RunRecord


def run_here(file: Path, overrides: Mapping[str, Any], *, deployment: str | None, force: bool, fresh: bool) -> RunRecord:
    """Run the job of a file and return its record.

    Raises:
        RequestError: the file or the overrides are wrong.
        AlreadyRunningError: another process owns the job.
        RefitError: the run failed; its record says how.
    """
    job = read_job(file, overrides, deployment=deployment)
    with telling_place(file, deployment, overrides):
        runs.check_references(job)
    layout = home_layout().create()
    skipped = _skip(job, layout, is_wanted=force or fresh or bool(overrides))
    return skipped or _run_flow(job, layout, force=force or bool(overrides), fresh=fresh)


def _skip(job: Job, layout: Layout, *, is_wanted: bool) -> RunRecord | None:
    """The record of a skipped run, where no interrupted run waits and nothing changed. Secrets are Prefect's, which is not up yet."""
    if is_wanted or job.data.secrets:
        return None
    with ownership.own_job(layout, job.name):
        if runs.find_unfinished(layout, job.name):
            return None
        inputs = runs.inspect_inputs(job, layout)
        unchanged = runs.find_unchanged(layout, job.name, inputs)
        return runs.skip_run(job, layout, inputs, unchanged) if unchanged else None


def _run_flow(job: Job, layout: Layout, *, force: bool, fresh: bool) -> RunRecord:
    rich.reconfigure(stderr=True)
    rich.get_console().print("[dim]starting Prefect and TensorFlow[/]")  # some ten seconds without another word
    wait = prepare_server()
    # refit's own lines tell what happens, and its error tells what failed. Source: handlers in prefect/logging/logging.yml
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    importing = threading.Thread(target=import_tensorflow, daemon=True)
    importing.start()
    from flows.retrain import retrain

    _show_log()
    wait()
    importing.join()
    state = retrain(job=job, force=force, fresh=fresh, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return runs.read_run(layout, job.name, str(result))


class _StageLines(logging.Handler):
    """Lines of refit's log on stderr, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        console = rich.get_console()
        console.print(f"[{colour}]{time.strftime('%H:%M:%S')}[/]", end=" ")
        console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def _show_log() -> None:
    logger = logging.getLogger("refit")
    logger.addHandler(_StageLines())
    logger.setLevel(logging.INFO)
    logger.propagate = False
