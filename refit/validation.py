"""A snapshot against the job: do the columns exist, fit their kinds, identify their rows, and suffice."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from refit.config import Job, nearest
from refit.errors import DataError
from refit.layout import Layout
from refit.records import CheckRecord, Column, SnapshotRecord, ValidationRecord
from refit.schema import KEY_HASH, is_number, is_whole
from refit.splits import read_table

MINIMUM_ROWS = 20


def validate_snapshot(job: Job, snapshot: SnapshotRecord, layout: Layout) -> ValidationRecord:
    """Check a snapshot; all failures are reported together.

    Raises:
        DataError: at least one check failed.
    """
    checks = tuple(_checks(job, snapshot, layout))
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        listing = failed[0] if len(failed) == 1 else "\n".join([f"{len(failed)} checks failed:", *(f"  - {text}" for text in failed)])
        raise DataError(listing, where=f"snapshot {snapshot.id}", remedy="Mend the source or the job.")
    return ValidationRecord(checks=checks)


def _checks(job: Job, snapshot: SnapshotRecord, layout: Layout) -> Iterator[CheckRecord]:
    columns = {column.name: column for column in snapshot.columns}
    lost = [name for name in (*(job.features or {}), job.target.column, *job.data.key) if name not in columns]
    yield _check("columns", not lost, f"all {len(columns)} are there", _missing(lost, columns))
    if not lost:
        yield from _kind_checks(job, columns)
        yield from _content_checks(job, snapshot, layout)


def _missing(lost: list[str], columns: dict[str, Column]) -> str:
    return "; ".join(f'"{name}" is no column of the data.{nearest(name, columns)}' for name in dict.fromkeys(lost))


def _check(name: str, ok: bool, good: str, bad: str) -> CheckRecord:
    return CheckRecord(name=name, ok=ok, detail=good if ok else bad)


def _kind_checks(job: Job, columns: dict[str, Column]) -> Iterator[CheckRecord]:
    wrong = [
        f'"{name}" is {columns[name].type}, which cannot be a {feature.kind}'
        for name, feature in (job.features or {}).items()
        if not fits(columns[name], feature.kind)
    ]
    yield _check("feature kinds", not wrong, "each fits its column", "; ".join(wrong))
    target = columns[job.target.column]
    ok = target.shape is None and (is_number(target) if job.target.kind == "regression" else target.type == "string" or is_number(target))
    yield _check(
        "target kind", ok, f'"{target.name}" is {target.type}', f'"{target.name}" is {target.type}: no {job.target.kind or "target"}'
    )


def fits(column: Column, kind: str) -> bool:
    """Whether a feature of this kind can be made of the column."""
    if kind == "image":
        return column.shape is not None and len(column.shape) == 3 and column.dtype in ("uint8", "float32")
    if column.shape is not None:
        return False
    return is_number(column) if kind == "numeric" else column.type == "string" or is_whole(column)


def _content_checks(job: Job, snapshot: SnapshotRecord, layout: Layout) -> Iterator[CheckRecord]:
    enough = snapshot.num_rows >= MINIMUM_ROWS
    yield _check(
        "rows", enough, f"{snapshot.num_rows:,}", f"{snapshot.num_rows} rows are too few to split and judge; {MINIMUM_ROWS} at least"
    )
    table = read_table(snapshot, layout, [KEY_HASH, *dict.fromkeys([job.target.column, *job.data.key])])
    labels = table[job.target.column]
    yield _check("labels", labels.null_count == 0, "none is missing", f"{labels.null_count:,} are missing; filter them with data.where")
    distinct = pc.count_distinct(labels).as_py()
    yield _check("target varies", distinct > 1, f"{distinct:,} values", f'"{job.target.column}" has the same value in every row')
    if job.data.key:
        nulls = sum(table[name].null_count for name in job.data.key)
        yield _check("key complete", nulls == 0, "no part is missing", f"{nulls:,} values of {', '.join(job.data.key)} are missing")
        repeated = len(table) - len(np.unique(table[KEY_HASH].to_numpy()))
        yield _check("key unique", repeated == 0, "each row has its own", f"{repeated:,} rows repeat the key of another row")
