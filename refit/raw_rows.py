"""Rows of inputs that are to be predicted, read as ingestion reads them: parsed, cast and derived, bad ones to the rejects.

What a row must have is what the model's features are made of. All other columns of an input, the target's among them, come along.
"""

import contextlib
import difflib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa

from refit.casting import evaluation_sql, is_reserved, sealed_connection
from refit.config import Job
from refit.errors import RefusedError, SchemaMismatchError
from refit.inference import text_schema
from refit.reading import InputRows, WantedColumns, check_names
from refit.records import Column
from refit.rejects import Rejects
from refit.schema import field_of
from refit.served import Served
from refit.sources import open_input
from refit.sources.inputs import Batches, DoubtfulError, Input, Lines, Text, identifier
from refit.wording import format_column

_TEXT = str(pa.string())
_MARK = "_input_"


@dataclass(frozen=True)
class RawPlan:
    """How rows of one input are read.

    Attributes:
        job: with that part of its SQL that the features need.
        columns: those of the input that are cast: as they are pinned, or texts as they stand.
        carried: those that go along as they are.
        schema: of the rows that come out: columns of the input and features.
        shown: columns of the input in their order, with their names in ``schema``.
    """

    job: Job
    columns: tuple[Column, ...]
    carried: tuple[Column, ...]
    schema: pa.Schema
    shown: Mapping[str, str]


@dataclass
class RawCounts:
    """Rows of one input: read, and rejected."""

    name: str
    digest: str
    num_read: int = 0
    num_rejected: int = 0


class CarefullyError(Exception):
    """An input is to be read again from the start, with all care; ``number`` says which."""

    def __init__(self, number: int) -> None:
        """Keep the input's number."""
        super().__init__(number)
        self.number = number


@dataclass
class RawReader:
    """Reads inputs one after the other.

    Attributes:
        counts: of the inputs so far; complete when ``read`` has ended.
        plan: of the first input, once that is open.
    """

    served: Served
    job: Job
    inputs: Sequence[Input]
    rejects: Rejects
    spool: Path
    counts: list[RawCounts] = field(default_factory=list)
    plan: RawPlan | None = None

    def read(self) -> Generator[pa.Table, None, None]:
        """Rows in the order of the inputs; all tables have the plan's schema.

        Raises:
            RefusedError: an input cannot be read.
            SchemaMismatchError: an input lacks what the features need, or has other columns than the first.
            CarefullyError: an input is not what a quick look took it for.
        """
        for number, found in enumerate(self.inputs):
            try:
                with (
                    sealed_connection((file.name for file in found.files), [str(self.spool)]) as connection,
                    open_input(found, self.spool) as opened,
                ):
                    yield from self._rows(connection, found, opened)
            except DoubtfulError as error:
                raise CarefullyError(number) from error

    def _rows(self, connection: duckdb.DuckDBPyConnection, found: Input, opened: Text | Lines | Batches) -> Iterator[pa.Table]:
        plan, opened = plan_rows(self.served, self.job, found, opened)
        if self.plan is None:
            self.plan = plan
        elif plan.schema != self.plan.schema:
            raise _unlike(self.plan, plan, self.inputs[0], found)
        rows = InputRows(connection, plan.job, plan.columns, plan.schema, found, opened, carried=plan.carried)
        counts = RawCounts(found.name, found.digest)
        self.counts.append(counts)
        misfits = self.rejects.misfits(found.name)
        with contextlib.closing(misfits):
            for table in rows.read(misfits):
                counts.num_rejected = len(misfits)
                yield table
            num_misfits = len(misfits)
            counts.num_rejected = self.rejects.write(found.name, rows.faults) + misfits.finish(rows.locate)
        counts.num_read = rows.num_read + counts.num_rejected - num_misfits


def _unlike(first: RawPlan, plan: RawPlan, one: Input, other: Input) -> SchemaMismatchError:
    return SchemaMismatchError(
        "the inputs do not have the same columns.",
        where=other.name,
        expected=f"{', '.join(first.shown)}, as in {one.name}",
        received=", ".join(plan.shown),
        remedy="Predict them one by one.",
    )


# ---- columns


def plan_rows(served: Served, job: Job, found: Input, opened: Text | Lines | Batches) -> tuple[RawPlan, Text | Lines | Batches]:
    """Decide what is read of an input, and how.

    Returns:
        The plan; and the input, which may have been looked at.

    Raises:
        RefusedError: the names of its columns cannot be used.
        SchemaMismatchError: it lacks what the features need.
    """
    given, received, opened = _given(job, found, opened)
    check_names(list(given), found.name)
    _check_reserved(given, found)
    pinned = {column.name: column for column in served.snapshot.source_columns}
    _check_shapes(pinned, given, found)
    optional = tuple(pinned[name] for name in job.data.optional if name in pinned and name not in given)
    known = tuple(pinned.get(name, column) for name, column in given.items() if name in pinned or not isinstance(opened, Batches))
    carried = tuple(column for name, column in given.items() if name not in pinned) if isinstance(opened, Batches) else ()
    with sealed_connection() as connection:
        probe = _Probe(connection, served, job, (*known, *optional), carried, tuple(given), received)
        needed = probe.job()
        schema = probe.evaluate(needed) or pa.schema([])
    _check_features(served, job, schema.names, given, found)
    shown = _marks(job, list(given))
    types = {shown[column.name]: column for column in (*known, *(c for c in carried if c.shape is not None))}
    types |= {feature.name: feature.column for feature in served.plan.features}
    names = dict.fromkeys((*shown.values(), *(feature.name for feature in served.plan.features)))
    fields = [field_of(types[name]).with_name(name) if name in types else schema.field(name) for name in names]
    return RawPlan(needed, (*known, *optional), carried, pa.schema(fields), shown), opened


def _given(job: Job, found: Input, opened: Text | Lines | Batches) -> tuple[dict[str, Column], pa.Schema, Text | Lines | Batches]:
    """Columns of an input in order, and the types in which DuckDB gets them."""
    if not isinstance(opened, Batches):
        return {name: Column(name=name, type=_TEXT) for name in opened.names}, text_schema(opened), opened
    batches = opened.read()
    first = next(batches, None)
    given = {column.name: column for column in opened.columns}
    if first is None:
        return given, pa.schema([field_of(column) for column in given.values()]), replace(opened, read=lambda: iter(()))
    plain = WantedColumns(iter([first.slice(0, 0)]), tuple(given.values()), found, job.data.optional)
    return given, next(plain).schema, replace(opened, read=lambda: chain([first], batches))


def _check_reserved(given: Mapping[str, Column], found: Input) -> None:
    reserved = [name for name in given if is_reserved(name)]
    if reserved:
        raise RefusedError(
            f'the columns {", ".join(reserved)} have names that are kept for refit: file_row_number, and all that begin with "_".',
            where=found.name,
            remedy="Rename them.",
        )


def _check_shapes(pinned: Mapping[str, Column], given: Mapping[str, Column], found: Input) -> None:
    other = [(column, pinned[name]) for name, column in given.items() if name in pinned]
    told = [
        f'"{column.name}": expected {format_column(known)}, received {format_column(column)}'
        for column, known in other
        if (column.shape, column.dtype) != (known.shape, known.dtype)
    ]
    if told:
        raise SchemaMismatchError(f"columns are of another shape than the model learned from: {'; '.join(told)}.", where=found.name)


@dataclass(frozen=True)
class _Probe:
    """Tries the job's SQL over no rows, to find out what an input allows and what the features need."""

    connection: duckdb.DuckDBPyConnection
    served: Served
    whole: Job
    columns: tuple[Column, ...]
    carried: tuple[Column, ...]
    names: tuple[str, ...]
    received: pa.Schema

    def job(self) -> Job:
        """The job with as little of its SQL as makes the features. Rows that it does not learn from are predicted too."""
        parts: list[_Part] = []
        for part in self._all_parts():
            if self.evaluate(self._job_of([*parts, part])) is not None:
                parts.append(part)
        makes = self._features(parts)
        for part in reversed(parts):
            fewer = [other for other in parts if other != part]
            if self._features(fewer) == makes:
                parts = fewer
        return self._job_of(parts)

    def evaluate(self, job: Job) -> pa.Schema | None:
        """What comes out; None where the SQL names what is not there."""
        self.connection.register("_source", self.received.empty_table())
        names = [column.name for column in self.carried]
        try:
            return self.connection.sql(evaluation_sql(job, self.columns, self.received, carried=names)).to_arrow_table().schema
        except (duckdb.BinderException, duckdb.CatalogException):
            return None

    def _all_parts(self) -> list["_Part"]:
        data, given = self.whole.data, {name.casefold() for name in self.names}
        derived = [_Part(sql, name) for name, sql in data.derive.items() if name.casefold() not in given]
        return [*derived, *(_Part(sql) for sql in data.select)]

    def _job_of(self, parts: Sequence["_Part"]) -> Job:
        shown = [f"{identifier(name)} AS {identifier(mark)}" for name, mark in _marks(self.whole, self.names).items() if name != mark]
        derive = {part.name: part.sql for part in parts if part.name}
        select = [*shown, *(part.sql for part in parts if not part.name)]
        data = self.whole.data.model_copy(update={"derive": derive, "select": select, "where": None, "key": []})
        return self.whole.model_copy(update={"data": data})

    def _features(self, parts: Sequence["_Part"]) -> set[str] | None:
        schema = self.evaluate(self._job_of(parts))
        return None if schema is None else {feature.name for feature in self.served.plan.features} & set(schema.names)


@dataclass(frozen=True)
class _Part:
    """One of the job's expressions: of ``data.derive`` with its name, of ``data.select`` without."""

    sql: str
    name: str = ""


def _marks(job: Job, names: Sequence[str]) -> dict[str, str]:
    """Columns of an input with their names among the rows: others where the job selects, since it may use the same ones."""
    return {name: f"{_MARK}{number}" if job.data.select else name for number, name in enumerate(names)}


def _check_features(served: Served, job: Job, found_names: Sequence[str], given: Mapping[str, Column], found: Input) -> None:
    """See that all features are there.

    Raises:
        SchemaMismatchError: with all that are not.
    """
    taken = [f.name for f in served.plan.features if f.name in job.data.derive and f.name in given and not job.data.select]
    if taken:
        raise SchemaMismatchError(
            f"{', '.join(map(repr, taken))} is made by data.derive, and the input has a column of that name already.",
            where=found.name,
            remedy="Rename it.",
        )
    missing = [feature.name for feature in served.plan.features if feature.name not in found_names]
    if missing:
        told = "; ".join(_tell_missing(name, served, job, list(given)) for name in missing)
        what = f"the input lacks what version {served.version} of {served.name} is made to predict from: {told}."
        raise SchemaMismatchError(
            what, where=found.name, received=", ".join(given), remedy="Mend the input, or the source's options (--set)."
        )


def _tell_missing(name: str, served: Served, job: Job, given: list[str]) -> str:
    if name in {column.name for column in served.snapshot.source_columns} and not job.data.select:
        return f'"{name}"{_near(name, given)}'
    expressions = [job.data.derive[name]] if name in job.data.derive else job.data.select
    whole = " ".join(_with_parts(expressions, job)).casefold()
    absent = [column.name for column in served.snapshot.source_columns if column.name not in given and column.name.casefold() in whole]
    missing = ", ".join(f'"{column}"{_near(column, given)}' for column in absent)
    return f'"{name}", which is made by {"; ".join(expressions)}' + (f" (missing: {missing})" if missing else "")


def _with_parts(expressions: Sequence[str], job: Job) -> list[str]:
    """Expressions with those of the derived columns that they name, which may name others."""
    found = list(expressions)
    for expression in found:
        found += [sql for name, sql in job.data.derive.items() if name in expression and sql not in found]
    return found


def _near(name: str, given: list[str]) -> str:
    close = difflib.get_close_matches(name, given, n=1)
    return f' (is it "{close[0]}"?)' if close else ""
