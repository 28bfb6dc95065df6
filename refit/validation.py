"""A snapshot against its schema, the job's expectations and the champion's data: do the rows exist, fit, suffice, and mean the same.

Every check says what it found. One that fails stops the run before anything is trained; one that warns stands in the report.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa

from refit import drift, expectations, labels, leakage, registry, sizes
from refit.assignments import NO_SIDE, Sides
from refit.casting import sealed_connection
from refit.config import Feature, ImageFeature, Job, TargetKind, TimestampFeature, nearest
from refit.errors import CorruptRecordError, DataError, UnknownNameError
from refit.layout import DatasetLayout, Layout
from refit.records import CheckRecord, Column, DriftRecord, SnapshotRecord, ValidationRecord
from refit.schema import field_of, is_encoded, is_number, is_time, is_whole
from refit.shards import live_mask, live_rows_sql, shard_paths, telling_damage
from refit.snapshots import read_snapshot
from refit.sources.inputs import literal
from refit.stages import read_stage
from refit.wording import counted

_log = logging.getLogger(__name__)
_SIDE = "_side"


def validate_snapshot(job: Job, snapshot: SnapshotRecord, layout: Layout) -> ValidationRecord:
    """Check a snapshot; what failed stands among the checks, see ``raise_failed``.

    Raises:
        JobError: an expectation cannot be checked, since its column does not exist or is of another type.
        SourceError: a shard is missing or damaged.
    """
    checks = [*_column_checks(job, snapshot), *_input_checks(snapshot)]
    if _can_be_read(job, snapshot):
        expectations.check_expectation_types(job, {column.name: column for column in snapshot.columns})
        checks += _content_checks(job, snapshot, layout)
    _warn(checks, "validate")
    measured = None if _failed(checks) else measure_drift(job, snapshot, layout)
    return ValidationRecord(checks=(*checks, *_drift_checks(job, measured)), drift=measured)


def raise_failed(record: ValidationRecord, snapshot: SnapshotRecord) -> ValidationRecord:
    """Return the record if every check held or only warns.

    Raises:
        DataError: with all that failed.
    """
    failed = [f"{check.name}: {check.detail}" for check in _failed(record.checks)]
    if failed:
        lines = [f"{len(failed)} checks failed:", *(f"  - {text}" for text in failed)]
        listing = "\n".join(lines) if len(failed) > 1 else f"{failed[0].rstrip('.')}."
        raise DataError(listing, where=f"snapshot {snapshot.id}", remedy="Mend the source or the job.")
    return record


def _can_be_read(job: Job, snapshot: SnapshotRecord) -> bool:
    """Whether the rows can be looked at: their target is there and is no tensor."""
    return any(column.name == job.target.column and fits_target(column, None) for column in snapshot.columns)


def _warn(checks: Iterable[CheckRecord], stage: str) -> None:
    for check in checks:
        if not check.ok and check.only_warns:
            _log.warning("%s: %s: %s", stage, check.name, check.detail)


def _failed(checks: Iterable[CheckRecord]) -> list[CheckRecord]:
    return [check for check in checks if not check.ok and not check.only_warns]


# ---- columns and inputs


def _column_checks(job: Job, snapshot: SnapshotRecord) -> Iterator[CheckRecord]:
    columns = {column.name: column for column in snapshot.columns}
    wanted = (*job.feature_columns, job.target.column, *job.drift.columns)
    lost = [name for name in wanted if name not in columns]
    yield CheckRecord.of("columns", not lost, f"all {len(columns)} are there", _missing(lost, columns))
    if not lost:
        yield from _kind_checks(job, columns)


def _missing(lost: list[str], columns: dict[str, Column]) -> str:
    return "; ".join(f'"{name}" is no column of the data.{nearest(name, columns)}' for name in dict.fromkeys(lost))


def _kind_checks(job: Job, columns: dict[str, Column]) -> Iterator[CheckRecord]:
    wrong = [
        f'"{name}" is {columns[name].type}, which cannot be a {feature.kind}'
        if not fits(columns[name], feature.kind)
        else f'"{name}": {fault}'
        for name, feature in job.feature_columns.items()
        if (fault := option_fault(columns[name], feature)) or not fits(columns[name], feature.kind)
    ]
    yield CheckRecord.of("feature kinds", not wrong, "each fits its column", "; ".join(wrong))
    target = columns[job.target.column]
    kind = job.target.kind
    bad = f'"{target.name}" is {target.type}: no {kind or "target"}'
    yield CheckRecord.of("target kind", fits_target(target, kind), f'"{target.name}" is {target.type}', bad)


def fits_target(column: Column, kind: TargetKind | None) -> bool:
    """Whether the column can be predicted as this kind, or as any."""
    if column.shape is not None:
        return False
    if kind == "multilabel":
        return column.type == "string"
    return is_number(column) if kind == "regression" else column.type == "string" or is_number(column)


VECTOR_DTYPES = ("float32", "float64", "uint8", "int32", "int64")


def fits(column: Column, kind: str) -> bool:
    """Whether a feature of this kind can be made of the column."""
    if kind == "image":
        return is_encoded(column) or (column.shape is not None and len(column.shape) == 3 and column.dtype in ("uint8", "float32"))
    if kind == "vector":
        return column.shape is not None and len(column.shape) == 1 and column.dtype in VECTOR_DTYPES
    if column.shape is not None:
        return False
    if kind == "timestamp":
        return is_time(column)
    if kind == "numeric":
        return is_number(column)
    return column.type == "string" or (kind == "category" and is_whole(column))


def option_fault(column: Column, feature: Feature) -> str:
    """What of the feature's options does not go with the column; empty where all do."""
    if isinstance(feature, ImageFeature):
        return _image_fault(column, feature)
    if isinstance(feature, TimestampFeature) and pa.types.is_date(field_of(column).type):
        wrong = [part for part in feature.parts or () if part in ("hour", "minute")]
        return f"a date has no {wrong[0]}" if wrong else ""
    return ""


def _image_fault(column: Column, feature: ImageFeature) -> str:
    if is_encoded(column):
        return "" if feature.resize else "images stored encoded have any size: say resize: [height, width]"
    channels = (column.shape or (1,))[-1]
    if feature.color and channels not in (1, 3):
        return f"color is for images of 1 or 3 channels, these have {channels}"
    return ""


def _input_checks(snapshot: SnapshotRecord) -> Iterator[CheckRecord]:
    """What ingestion noticed, said where people look."""
    refused = [source.refused for source in snapshot.sources if source.refused]
    yield CheckRecord.of(
        "inputs readable", not refused, counted(len(snapshot.sources), "input"), f"refused: {_some(refused)}", only_warns=True
    )
    gone = [f"{source.name} ({source.num_kept:,} rows)" for source in snapshot.sources if source.is_vanished]
    if gone:
        yield CheckRecord(
            name="inputs there", ok=False, only_warns=True, detail=f"vanished, and their rows kept (data.vanished): {_some(gone)}"
        )
    notes = [note for source in snapshot.sources for note in source.notes]
    if notes:
        more = f" And {len(notes) - 5:,} more." if len(notes) > 5 else ""
        yield CheckRecord(name="inputs as expected", ok=False, only_warns=True, detail=" ".join(notes[:5]) + more)


def _some(words: list[str]) -> str:
    more = f"; and {len(words) - 3:,} more" if len(words) > 3 else ""
    return "; ".join(word.rstrip(".") for word in words[:3]) + more


# ---- rows


def _content_checks(job: Job, snapshot: SnapshotRecord, layout: Layout) -> Iterator[CheckRecord]:
    home = layout.dataset(snapshot.dataset)
    columns = {column.name: column for column in snapshot.columns}
    with sealed_connection(str(path) for path in shard_paths(home, snapshot.shards)) as connection:
        rows = live_rows_sql(connection, home, snapshot.shards)
        with telling_damage(home, snapshot.shards):
            yield from expectations.check_expectations(job, connection, rows, columns)
            yield from labels.check_labels(job, connection, rows, columns)
            yield from sizes.check_sizes(job, snapshot.num_rows, labels.class_sizes(job, connection, rows, columns[job.target.column]))


# ---- sides


def check_sides(job: Job, snapshot: SnapshotRecord, layout: Layout, sides: Sides) -> tuple[CheckRecord, ...]:
    """See whether the test split holds rows that training has met under another key; it only warns.

    Args:
        job: its features.
        snapshot: it was found valid.
        layout: where the rows lie.
        sides: uint8 ``[rows]`` in snapshot order.

    Raises:
        SourceError: a shard is missing or damaged.
    """
    home, columns = layout.dataset(snapshot.dataset), {column.name: column for column in snapshot.columns}
    with sealed_connection(str(path) for path in shard_paths(home, snapshot.shards)) as connection:
        rows = _sided_rows_sql(connection, home, snapshot, sides)
        with telling_damage(home, snapshot.shards):
            checks = tuple(leakage.check_duplicates(job, connection, rows, columns, _SIDE))
    _warn(checks, "split")
    return checks


def _sided_rows_sql(connection: duckdb.DuckDBPyConnection, home: DatasetLayout, snapshot: SnapshotRecord, sides: Sides) -> str:
    """A table expression over the rows that are on a side, which stands in the column ``_side``."""
    parts, start = [], 0
    for number, shard in enumerate(snapshot.shards):
        stored = np.full(shard.num_rows, NO_SIDE, dtype=np.uint8)
        stored[live_mask(home, shard)] = sides[start : start + shard.num_live]
        start += shard.num_live
        connection.register(f"_sides_{number}", pa.table({_SIDE: stored}))
        path = literal(str(home.shard(shard.digest)))
        joined = f"read_parquet({path}, hive_partitioning=false) POSITIONAL JOIN _sides_{number}"
        parts.append(f"SELECT * FROM {joined} WHERE {_SIDE} < {NO_SIDE}")  # noqa: S608 -- names of our own
    return f"({' UNION ALL BY NAME '.join(parts)})"


# ---- drift


def measure_drift(job: Job, snapshot: SnapshotRecord, layout: Layout) -> DriftRecord:
    """New rows against those that the serving champion was trained on."""
    serving = registry.champion_record(layout, job.name)
    if serving is None or serving.run is None:
        return drift.measure_drift(job, snapshot, None, layout, version=None)
    trained = _trained_on(job, serving.run, layout)
    measured = drift.measure_drift(job, snapshot, trained, layout, version=serving.version if trained else None)
    gone = f"The data that version {serving.version} was trained on are no longer on disk."
    return measured if trained else measured.model_copy(update={"why_not": gone})


def _trained_on(job: Job, run: str, layout: Layout) -> SnapshotRecord | None:
    """The snapshot of a run as it is now: rows may have been forgotten since, or all of it removed."""
    with contextlib.suppress(UnknownNameError, CorruptRecordError):
        then = read_stage(layout.run(job.name, run), "ingest", SnapshotRecord)
        return read_snapshot(layout.dataset(then.dataset), then.id) if then else None
    return None


def _drift_checks(job: Job, measured: DriftRecord | None) -> Iterator[CheckRecord]:
    if measured is None or job.drift.policy == "report":
        return
    told = "; ".join(f"{column.name} {column.verdict}" for column in measured.drifted)
    good = measured.why_not or f"{len(measured.columns)} columns are as the champion knew them"
    yield CheckRecord(name="drift", ok=not told, detail=told or good, only_warns=job.drift.policy == "warn")
