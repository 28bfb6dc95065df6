"""A run from its beginning to its record: adopted or begun, skipped where nothing changed, and always ended by name."""

import contextlib
import getpass
import hashlib
import logging
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import refit
from refit import references
from refit.config import Job, PythonSource, digest, job_digest, nearest
from refit.errors import CodeError, CorruptRecordError, RefitError, RequestError, StorageError, UnknownNameError
from refit.full_disk import full_disk, is_disk_full
from refit.ingestion import list_current
from refit.layout import Layout, RunLayout
from refit.records import (
    CodeRecord,
    EvaluationRecord,
    ExportRecord,
    FitRecord,
    GateRecord,
    PublishRecord,
    Rows,
    RunRecord,
    SnapshotRecord,
    SplitRecord,
    Status,
)
from refit.stages import read_seconds, read_stage

PACKAGES = ("tensorflow", "keras", "prefect", "pyarrow", "duckdb", "numpy")
_BUILDERS = ("models.convnet:build_model", "models.dense:build_model")
_log = logging.getLogger(__name__)


class Run(BaseModel):
    """A run in progress, as stages receive it: its id, its own job, and where everything lies."""

    model_config = ConfigDict(frozen=True)

    id: str
    job: Job
    home: Path
    is_adopted: bool = False

    @property
    def layout(self) -> Layout:
        """All paths."""
        return Layout(self.home)

    @property
    def key(self) -> str:
        """The job's name as keys of Prefect's artifacts take it."""
        return self.job.name.lower().replace("_", "-")

    @property
    def paths(self) -> RunLayout:
        """Paths of this run."""
        return self.layout.run(self.job.name, self.id)


@dataclass(frozen=True)
class Inputs:
    """What a run depends on, looked at before any work: its digest decides whether anything changed."""

    digest: str
    builder_sha256: str
    git: str | None


def check_references(job: Job) -> None:
    """See that the code that a job names is allowed, is there, and takes its options; nothing is imported.

    Raises:
        CodeError: it is not; ``where`` is the key in the job.
    """
    if job.model.build:
        _check_reference("model", "build", job.model.build, job.model.options, positional=2)
    for number, callback in enumerate(job.fit.callbacks):
        _check_reference(f"fit.callbacks.{number}", "use", callback.use, callback.options, positional=0)
    for where, said in job.fit.objectives.items():
        _check_reference(where, "use", said.use, said.options, positional=0, also=references.OBJECTIVES)
    for number, source in enumerate(job.data.sources):
        if isinstance(source, PythonSource):
            _check_reference(f"data.sources.{number}", "read", source.read, source.options, positional=0)


def _check_reference(
    section: str, key: str, reference: str, options: Mapping[str, Any], *, positional: int, also: Sequence[str] = ()
) -> None:
    try:
        references.check_options(reference, options, positional=positional, also=also)
    except CodeError as error:
        place = f"{section}.options" if error.where == "options" else f"{section}.{key}"
        error.where = place if error.where in ("", "options") else f"{place}: {error.where}"
        raise


def inspect_inputs(job: Job, layout: Layout) -> Inputs:
    """Digest of data, job, builder, lock, installed packages and git state. Reads the sources; imports no TensorFlow.

    Raises:
        SourceError: a source is missing.
        CodeError: the builder is.
    """
    builder = _builder_digest(job)
    git = git_state(references.CHECKOUT)
    lock = references.CHECKOUT / "requirements.lock"
    everything = {
        "data": list_current(job, layout),
        "job": job_digest(job),
        "builder": builder,
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "versions": read_versions(),
        "git": git,
    }
    return Inputs(digest=digest(everything), builder_sha256=builder, git=git)


def _builder_digest(job: Job) -> str:
    return references.source_digest(job.model.build or _BUILDERS[0])


def read_versions() -> dict[str, str]:
    """Versions of Python, refit and the packages that a result depends on, without importing them."""
    found = {"python": platform.python_version(), "refit": refit.__version__}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_state(checkout: Path) -> str | None:
    """The commit, with ``+`` and a digest of what is not committed; None where this is no checkout."""
    commit = _git(checkout, "rev-parse", "HEAD")
    status = _git(checkout, "status", "--porcelain=v1", "-z", "--untracked-files=all")
    if commit is None or status is None:
        return None
    if not status:
        return commit.decode().strip()
    content = hashlib.sha256(_git(checkout, "diff", "HEAD", "--binary") or b"")
    for name in sorted(entry[3:] for entry in status.decode().split("\0") if entry.startswith("??")):
        path = checkout / name
        content.update(name.encode())
        content.update(path.read_bytes() if path.is_file() else b"")
    return f"{commit.decode().strip()}+{content.hexdigest()[:12]}"


def _git(checkout: Path, *arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, check=True).stdout  # noqa: S603, S607 -- fixed words
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- beginning


def find_unfinished(layout: Layout, job: str) -> RunRecord | None:
    """The newest run of a job that was interrupted and can be finished; call it as the job's owner."""
    return next((record for record in reversed(read_runs(layout, job)) if record.is_unfinished), None)


def find_unchanged(layout: Layout, job: str, inputs: Inputs) -> RunRecord | None:
    """The newest completed run of a job, if its inputs were these."""
    completed = [r for r in read_runs(layout, job) if r.status == "completed" and r.verdict != "skipped"]
    return completed[-1] if completed and completed[-1].inputs_digest == inputs.digest else None


def adopt_or_begin(job: Job, layout: Layout, *, fresh: bool = False) -> tuple[Run, Inputs | None]:
    """Take up the job's unfinished run, or begin a new one.

    Args:
        job: of a new run; an unfinished one goes on with its own.
        layout: all paths.
        fresh: leave unfinished runs alone, marked as abandoned.

    Returns:
        The run; and, for a new one, what it depends on.
    """
    unfinished = find_unfinished(layout, job.name)
    while unfinished is not None and fresh:
        end_run(layout, unfinished, "abandoned", error="left for a fresh run")
        unfinished = find_unfinished(layout, job.name)
    if unfinished is not None:
        _log.info("taking up run %s, which was interrupted", unfinished.run)
        _write(layout, unfinished.model_copy(update={"status": "running"}))
        return Run(id=unfinished.run, job=unfinished.parameters, home=layout.home, is_adopted=True), None
    inputs = inspect_inputs(job, layout)
    return _begin(job, layout, inputs), inputs


def _begin(job: Job, layout: Layout, inputs: Inputs) -> Run:
    now = datetime.now(UTC)
    run = Run(id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}", job=job, home=layout.home)
    record = RunRecord(
        run=run.id,
        job=job.name,
        status="running",
        config_digest=job_digest(job),
        code=CodeRecord(git=inputs.git, builder_sha256=inputs.builder_sha256),
        versions=read_versions(),
        started=now,
        inputs_digest=inputs.digest,
        parameters=job,
    )
    _write(layout, record)
    return run


def skip_run(job: Job, layout: Layout, inputs: Inputs, unchanged: RunRecord) -> RunRecord:
    """Record that nothing changed."""
    run = _begin(job, layout, inputs)
    return mark_skipped(run, unchanged)


def mark_skipped(run: Run, unchanged: RunRecord) -> RunRecord:
    """End a run because its inputs are those of an earlier one."""
    reason = f"Nothing changed since run {unchanged.run}: the same data, job, code and packages."
    record = read_run(run.layout, run.job.name, run.id).model_copy(
        update={"verdict": "skipped", "reasons": (reason,), "unchanged_since": unchanged.run, "model_version": unchanged.model_version}
    )
    return end_run(run.layout, record, "completed")


# ---- ending


# What each stage adds to the run's record.
_TOLD: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "ingest": (SnapshotRecord, lambda snapshot: {"snapshot": snapshot.id}),
    "split": (SplitRecord, lambda split: {"rows": Rows(**split.num_rows)}),
    "fit": (FitRecord, lambda fit: {"weights_sha256": fit.weights_sha256, "resumed_at": fit.resumed_at}),
    "export": (ExportRecord, lambda export: {"saved_model": export.path}),
    "evaluate": (EvaluationRecord, lambda scores: {"metrics": scores.metrics, "champion": scores.champion, "baselines": scores.baselines}),
    "gate": (
        GateRecord,
        lambda gate: {"verdict": gate.verdict, "reasons": tuple(reason.text for reason in gate.reasons), "comparison": gate.comparison},
    ),
    "publish": (PublishRecord, lambda published: {"model_version": published.version}),
}


def complete_run(run: Run) -> RunRecord:
    """The whole record of a run whose stages are done; with status ``completed`` but not yet written."""
    return collect(run).model_copy(update={"status": "completed", "ended": datetime.now(UTC)})


def collect(run: Run) -> RunRecord:
    """The run's record with everything that its complete stages say."""
    paths, record = run.paths, read_run(run.layout, run.job.name, run.id)
    found: dict[str, Any] = {"seconds": read_seconds(paths)}
    for name, (kind, say) in _TOLD.items():
        stage = read_stage(paths, name, kind)
        if stage is not None:
            found |= say(stage)
    if paths.report.exists():
        found["report"] = run.layout.relative(paths.report)
    return record.model_copy(update=found)


def end_run(layout: Layout, record: RunRecord, status: Status, *, error: str | None = None) -> RunRecord:
    """Write a run's last record."""
    return _write(layout, record.model_copy(update={"status": status, "ended": datetime.now(UTC), "error": error}))


@contextlib.contextmanager
def recording_failure(run: Run) -> Iterator[None]:
    """Whatever ends the block early is written into the run's record: failed for errors, cancelled for what the next start goes on from."""
    try:
        yield
    except StorageError as error:
        _end_early(run, "cancelled", error)
        raise
    except Exception as error:
        if is_disk_full(error):
            told = full_disk(str(run.paths.root))
            _end_early(run, "cancelled", told)
            raise told from error
        _end_early(run, "failed", error)
        raise
    except BaseException as error:
        _end_early(run, "cancelled", error)
        raise


def _end_early(run: Run, status: Status, error: BaseException) -> None:
    text = str(error) if isinstance(error, RefitError) else f"{type(error).__name__}: {error}"
    try:
        try:
            record = collect(run)
        except CorruptRecordError:  # the error that ended the run is the one to tell
            record = read_run(run.layout, run.job.name, run.id)
        end_run(run.layout, record.model_copy(update={"verdict": None, "reasons": ()}), status, error=text)
    except OSError as lost:  # the record still says that the run is going on, and the next start takes it up
        _log.warning("the end of run %s cannot be written: %s", run.id, lost.strerror or lost)


def write_run(run: Run, record: RunRecord) -> RunRecord:
    """Put ``run.json`` in place."""
    return _write(run.layout, record)


def _write(layout: Layout, record: RunRecord) -> RunRecord:
    return record.write(layout.run(record.job, record.run).record)


# ---- reading


def read_runs(layout: Layout, job: str) -> list[RunRecord]:
    """All readable records of a job's runs, oldest first; an unreadable one is reported and left out."""
    found = []
    for run in layout.runs(job):
        try:
            found.append(RunRecord.read(layout.run(job, run).record))
        except FileNotFoundError:
            continue
        except CorruptRecordError as error:
            _log.warning("%s", error)
    return found


def read_run(layout: Layout, job: str, run: str) -> RunRecord:
    """One run's record."""
    return RunRecord.read(layout.run(job, run).record)


def find_run(layout: Layout, name: str) -> RunRecord:
    """The run that a person means: its id, ``job/id``, the beginning of an id if only one begins so, or ``job/latest``.

    Raises:
        UnknownNameError: there is none, or more than one.
    """
    job, _, run = name.rpartition("/")
    jobs = [job] if job else layout.jobs()
    if job and job not in layout.jobs():
        raise UnknownNameError(f'there is no job "{job}" with runs.{nearest(job, layout.jobs())}', where=str(layout.runs_dir))
    pairs = [(j, r) for j in jobs for r in layout.runs(j) if layout.run(j, r).record.exists()]
    matches = (
        pairs[-1:] if job and run == "latest" else [p for p in pairs if p[1] == run] or [p for p in pairs if run and p[1].startswith(run)]
    )
    if len(matches) > 1:
        raise RequestError(f'"{name}" is the beginning of {len(matches)} runs.', received=", ".join(f"{j}/{r}" for j, r in matches[:5]))
    if not matches:
        raise UnknownNameError(f'there is no run "{name}".', where=str(layout.runs_dir), remedy="refit runs lists them.")
    return read_run(layout, *matches[0])


def current_user() -> str:
    """Who acts, for histories."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
