"""Which published version is asked, what of, and what its run knows of the rows that it takes. Loads without TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit.config import CsvSource, IdxSource, ImagesSource, Job, JsonSource, Located, ParquetSource, nearest, parse_job
from refit.errors import CorruptRecordError, RequestError, UnknownNameError
from refit.layout import Layout
from refit.prediction_files import Places, check_output
from refit.records import BatchesRecord, Record, SnapshotRecord
from refit.registry import VersionRecord, versions
from refit.runs import read_run
from refit.stages import read_stage

# Endings of inputs, without those of compressed files, which are told by their content.
_KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".dat", ".data"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
}
_COMPRESSED = (".gz", ".zst", ".zip")
_TABBED = (".tsv", ".tab")
_ELSEWHERE = {"manifest", "labels"}  # files beside those that the model learned from
_STORE = {"endpoint", "region"}
KINDS: Mapping[str, type[Located]] = {
    "csv": CsvSource,
    "parquet": ParquetSource,
    "json": JsonSource,
    "images": ImagesSource,
    "idx": IdxSource,
}


@dataclass(frozen=True)
class Request:
    """What is to be predicted, and where to.

    Attributes:
        source: file, glob or address of the rows.
        output: file of the predictions.
        kind: of the source; by default told by its ending.
        options: of the source, over those of the job's own source of that kind.
        max_rejected_fraction: a larger share of bad rows fails; by default the job's.
        force: replace an output that is there.
        batch_rows: rows that the model is given at a time; by default what suits its inputs.
    """

    source: str
    output: Path
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    max_rejected_fraction: float | None = None
    force: bool = False
    batch_rows: int | None = None


@dataclass(frozen=True)
class Served:
    """A version of a model with its run's own job, snapshot and plan."""

    name: str
    version: int
    run: str
    saved_model: Path
    job: Job
    snapshot: SnapshotRecord
    plan: BatchesRecord


def find_served(layout: Layout, name: str, version: int | None = None) -> Served:
    """The version of a model that serves, or the one that is asked for.

    Raises:
        UnknownNameError: there is no such model or version.
        RequestError: the run that made it is not known, or no longer there.
    """
    known = versions(layout, name)
    record = known[-1] if version is None else _choose(known, version, layout.model(name).root, name)
    place = layout.model(name).version(record.version)
    if record.run is None:
        what = f'version {record.version} of "{name}" was not made by a run of refit: nobody can say which columns it takes.'
        raise RequestError(what, where=str(place), remedy="Name a version of a run with --version, or publish one: refit promote RUN.")
    run = layout.run(name, record.run)
    try:
        job = read_run(layout, name, record.run).parameters
    except FileNotFoundError as error:
        raise _without_run(name, record, run.root) from error
    stages: list[Record | None] = [read_stage(run, "ingest", SnapshotRecord), read_stage(run, "convert", BatchesRecord)]
    snapshot, plan = stages
    if not (isinstance(snapshot, SnapshotRecord) and isinstance(plan, BatchesRecord)):
        raise CorruptRecordError(
            "the run has no record of its data or its features.", where=str(run.stages_dir), remedy="Restore the folder."
        )
    return Served(name, record.version, record.run, place, job, snapshot, plan)


def _choose(known: list[VersionRecord], version: int, where: Path, name: str) -> VersionRecord:
    found = next((record for record in known if record.version == version), None)
    if found is None:
        near = nearest(str(version), [str(record.version) for record in known])
        raise UnknownNameError(f'there is no version {version} of "{name}" on disk.{near}', where=str(where))
    return found


def _without_run(name: str, record: VersionRecord, where: Path) -> RequestError:
    return RequestError(
        f'the run that made version {record.version} of "{name}" is gone, and with it the types of its columns.',
        where=str(where),
        remedy="Restore the run's folder, or name another version with --version.",
    )


# ---- the request


def check_request(served: Served, request: Request) -> tuple[Job, Places]:
    """See that a request can be begun: the job with its input, and the places of its files.

    Raises:
        RequestError: the input's kind or options are wrong, or the output cannot be written.
    """
    job = job_over(served.job, request.source, request.kind, request.options)
    return job, check_output(request.output, request.source, force=request.force)


def job_over(job: Job, path: str, kind: str | None, options: Mapping[str, Any]) -> Job:
    """The job with one source: the input, read as the job reads its own source of that kind.

    Args:
        job: of the run.
        path: file, glob or address.
        kind: of the source; by default told by the path's ending.
        options: of the source, over those of the job's own.

    Raises:
        RequestError: the kind is not told, or an option is wrong.
    """
    kind = kind or _kind_of(path, job)
    if kind not in KINDS:
        raise RequestError(f'"{kind}" is no kind of input.{nearest(kind, KINDS)}', expected=", ".join(KINDS))
    own = next((source for source in job.data.sources if isinstance(source, KINDS[kind])), None)
    source: dict[str, Any] = {"delimiter": "\t"} if _ending(path) in _TABBED and kind == "csv" else {}
    source |= own.model_dump(mode="json", exclude_unset=True, exclude=_ELSEWHERE if "://" in path else _ELSEWHERE | _STORE) if own else {}
    tree = job.model_dump(mode="json", exclude_unset=True)
    tree["data"]["sources"] = [{**source, "kind": kind, "path": path}]
    return parse_job(tree, {f"data.sources.0.{key}": value for key, value in options.items()})


def _ending(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")


def _kind_of(path: str, job: Job) -> str:
    known = _KINDS.get(_ending(path))
    if known is not None:
        return known
    own = {source.kind for source in job.data.sources} & {"images", "idx"}
    if len(own) == 1:
        return own.pop()
    raise RequestError(
        "the ending of the input does not tell what it is.",
        received=path,
        expected=", ".join(_KINDS),
        remedy=f"Give --kind: {', '.join(KINDS)}.",
    )
