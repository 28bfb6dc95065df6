"""The job's expectations of its columns: are they well put, and do the rows meet them.

All of them are counted in one pass over the rows; ``unique`` takes a pass for every million rows more. Values of the
job reach the SQL as parameters only. A NaN is a missing value.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from refit.config import Expectation, Job, Scalar, nearest
from refit.errors import JobError
from refit.records import CheckRecord, Column
from refit.schema import KEY_HASH, SQL_TYPES, column_type, field_of
from refit.sources.inputs import first_line, identifier
from refit.wording import counted, percent, shorten

MAX_GROUPS = 1 << 20  # values held at a time where all must be told apart: some hundred MB at most
_MAX_EXAMPLES = 3
_EXAMPLE_POOL = 30  # so many offenders are fetched, so that three that differ can be shown

Family = Literal["number", "boolean", "text", "time", "tensor"]


def check_expectations(job: Job, connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, Column]) -> Iterator[CheckRecord]:
    """See whether the rows meet ``data.expect``: one record for each column and rule, named like ``fare: min``.

    Args:
        job: the job.
        connection: where ``rows`` can be read.
        rows: a table expression that can be scanned more than once, with the columns and ``_key_hash``.
        columns: those of ``rows``, by name.

    Raises:
        JobError: an expectation that its column cannot have, as of ``check_expectation_types``.
    """
    check_expectation_types(job, columns)
    parameters: dict[str, object] = {}

    def bind(value: object) -> str:
        parameters[name := f"p{len(parameters)}"] = value
        return f"${name}"

    rules = [rule for name, expectation in job.data.expect.items() for rule in _rules(columns[name], expectation, bind)]
    if rules:
        tallies = _count(connection, rows, rules, parameters)
        yield from (_judge(rule, tally) for rule, tally in zip(rules, tallies, strict=True))


# ---- whether the expectations are well put


def check_expectation_types(job: Job, columns: Mapping[str, Column]) -> None:
    """See without any data that every expectation can be had of its column.

    Raises:
        JobError: an unknown column, a bound or a value that is not of the column's type, a wrong regular expression; all
            faults together.
    """
    with duckdb.connect() as connection:
        ask = partial(_ask, connection)
        faults = [fault for name, expectation in job.data.expect.items() for fault in _faults(name, expectation, columns, ask)]
    if len(faults) > 1:
        raise JobError("\n".join([f"{len(faults)} faults in data.expect:", *(f"  - {fault}" for fault in faults)]))
    if faults:
        raise faults[0]


_Ask = Callable[..., bool]


def _faults(name: str, expectation: Expectation, columns: Mapping[str, Column], ask: _Ask) -> Iterator[JobError]:
    where = f"data.expect.{name}"
    if name not in columns:
        yield JobError(f'"{name}" is no column of the data.{nearest(name, columns)}', where=where)
        return
    column = columns[name]
    yield from _bound_faults(column, expectation, where, ask)
    yield from _value_faults(column, expectation, where, ask)
    if expectation.matches is not None:
        yield from _pattern_faults(column, expectation.matches, f"{where}.matches", ask)


def _bound_faults(column: Column, expectation: Expectation, where: str, ask: _Ask) -> Iterator[JobError]:
    low, high = expectation.min, expectation.max
    bounds = {"min": low, "max": high}.items()
    faults = [fault for rule, bound in bounds if bound is not None for fault in _bound_fault(column, bound, f"{where}.{rule}", ask)]
    yield from faults
    if not faults and low is not None and high is not None and _is_above(column, low, high, ask):
        yield JobError(
            f"min {_told(low)} is above max {_told(high)}, so that no value could pass.",
            where=where,
            remedy="Swap them, or leave one out.",
        )


def _bound_fault(column: Column, bound: float | str, where: str, ask: _Ask) -> Iterator[JobError]:
    kind = family(column)
    expected = {"number": "a number", "text": "text in quotes", "time": 'a date or time as text, such as "2024-01-31"'}.get(kind)
    if expected is None:
        yield JobError(f'"{column.name}" is {column.type}, of which no value is smaller than another.', where=where, remedy="Leave it out.")
    elif isinstance(bound, str) != (kind != "number") or (kind == "time" and not _can_be(column, bound, ask)):
        yield _mismatch(column, bound, where, expected)


def _value_faults(column: Column, expectation: Expectation, where: str, ask: _Ask) -> Iterator[JobError]:
    wrong = [value for value in expectation.one_of or () if value is not None and not _is_of(column, value, ask)]
    if wrong:
        expected = {
            "number": f"{'whole ' if _is_integer(column) else ''}numbers that fit {column.type}",
            "boolean": "true or false",
            "text": "text in quotes",
            "time": 'dates or times as text, such as "2024-01-31"',
            "tensor": "no one_of for a column of tensors",
        }[family(column)]
        yield _mismatch(column, wrong[0], f"{where}.one_of", expected)
    if expectation.max_other_fraction and expectation.one_of is None:
        yield JobError("max_other_fraction says nothing without one_of.", where=where, remedy="Give one_of, or leave it out.")


def _mismatch(column: Column, received: object, where: str, expected: str) -> JobError:
    return JobError(
        f'this cannot be a value of "{column.name}", which is {column.type}.', where=where, expected=expected, received=repr(received)[:80]
    )


def _pattern_faults(column: Column, pattern: str, where: str, ask: _Ask) -> Iterator[JobError]:
    if family(column) != "text":
        yield JobError(
            f'"{column.name}" is {column.type}, and a regular expression is for text.', where=where, remedy="Take min, max or one_of."
        )
        return
    try:
        ask("SELECT regexp_full_match('', $value)", pattern)
    except duckdb.Error as error:
        yield JobError(
            f"this is no regular expression: {first_line(error).removeprefix('Invalid Input Error: ')}",
            where=where,
            expected="the syntax of RE2, which has no lookahead and no back-references",
            received=repr(pattern),
        )


def family(column: Column) -> Family:
    """What sort of values the column holds, as far as rules go."""
    if column.shape is not None:
        return "tensor"
    return _FAMILIES.get(column_type(field_of(column).type), "number")


_FAMILIES: dict[str, Family] = {"boolean": "boolean", "string": "text", "date": "time", "timestamp": "time"}


def _sql_type(column: Column) -> str:
    return SQL_TYPES[column_type(field_of(column).type)]


def _is_integer(column: Column) -> bool:
    return column.shape is None and bool(pa.types.is_integer(field_of(column).type))


def _is_of(column: Column, value: Scalar, ask: _Ask) -> bool:
    kind = family(column)
    if kind == "number":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        has_fraction = isinstance(value, float) and not value.is_integer()
        return is_number and not (has_fraction and _is_integer(column)) and _can_be(column, value, ask)
    if kind == "time":
        return isinstance(value, str) and _can_be(column, value, ask)
    return isinstance(value, bool) if kind == "boolean" else isinstance(value, str) and kind == "text"


def _can_be(column: Column, value: object, ask: _Ask) -> bool:
    try:
        return ask(f"SELECT TRY_CAST($value AS {_sql_type(column)}) IS NOT NULL", value)
    except duckdb.InvalidInputException:  # a whole number of more than 128 bits
        return False


def _is_above(column: Column, low: float | str, high: float | str, ask: _Ask) -> bool:
    kind = "DOUBLE" if family(column) == "number" else _sql_type(column)
    return ask(f"SELECT CAST($value AS {kind}) > CAST($high AS {kind})", low, high=high)


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, value: object, **more: object) -> bool:
    return bool(connection.execute(sql, {"value": value, **more}).fetchall()[0][0])


# ---- rules as SQL


@dataclass(frozen=True)
class _Rule:
    """One rule of one column.

    Attributes:
        breaks: SQL condition on a row whose value breaks the rule; empty for ``unique``, which no row breaks alone.
        says: what is said of the values that break it.
        good: what is said of all values where none breaks it.
        extreme: the aggregate whose value is told, ``min`` or ``max``.
        allowed: share of the values that may break it.
    """

    column: Column
    name: str
    breaks: str
    says: str
    good: str
    only_warns: bool
    extreme: str = ""
    allowed: float = 0.0

    @property
    def is_of_missing(self) -> bool:
        """Whether it counts the values that are missing, among all; other rules are about values that are there."""
        return self.name in ("not_null", "max_missing_fraction")


@dataclass(frozen=True)
class _Tally:
    """What was counted for a rule: values that it is about, those that break it, the extreme of all, and offenders."""

    num_values: int
    num_bad: int
    extreme: str | None
    examples: Sequence[str | None]


_Bind = Callable[[object], str]


def present_sql(column: Column) -> str:
    """SQL condition: the column's value is there. NaN is not."""
    name = identifier(column.name)
    is_float = column.shape is None and pa.types.is_floating(field_of(column).type)
    return f"({name} IS NOT NULL AND NOT isnan({name}))" if is_float else f"({name} IS NOT NULL)"


def _rules(column: Column, expectation: Expectation, bind: _Bind) -> Iterator[_Rule]:
    warns, share = expectation.otherwise == "warn", expectation.max_missing_fraction
    if expectation.not_null:
        yield _Rule(column, "not_null", f"NOT {present_sql(column)}", "are missing", "are there", warns)
    if share is not None:
        yield _Rule(column, "max_missing_fraction", f"NOT {present_sql(column)}", "are missing", "are there", warns, allowed=share)
    yield from _bound_rules(column, expectation, bind)
    yield from _membership_rules(column, expectation, bind)
    if expectation.unique:
        yield _Rule(column, "unique", "", "repeat the value of another row", "differ", warns)


def _bound_rules(column: Column, expectation: Expectation, bind: _Bind) -> Iterator[_Rule]:
    warns, name = expectation.otherwise == "warn", identifier(column.name)
    if expectation.min is not None:
        bound, low = _bound_sql(column, expectation.min, bind), _told(expectation.min)
        yield _Rule(column, "min", f"{name} < {bound}", f"are below {low}", f"are {low} or more", warns, extreme="min")
    if expectation.max is not None:
        bound, high = _bound_sql(column, expectation.max, bind), _told(expectation.max)
        yield _Rule(column, "max", f"{name} > {bound}", f"are above {high}", f"are {high} or less", warns, extreme="max")


def _bound_sql(column: Column, bound: float | str, bind: _Bind) -> str:
    if isinstance(bound, str):
        return f"CAST({bind(bound)} AS {_sql_type(column)})"
    if column.type == "float":  # 0.1 as a float is above 0.1 as a double
        with np.errstate(over="ignore"):
            bound = float(np.float32(bound))
    return f"CAST({bind(bound)} AS DOUBLE)"


def _membership_rules(column: Column, expectation: Expectation, bind: _Bind) -> Iterator[_Rule]:
    warns, name = expectation.otherwise == "warn", identifier(column.name)
    if expectation.one_of is not None:
        listed = [value for value in expectation.one_of if value is not None]
        among = ", ".join(f"CAST({bind(value)} AS {_sql_type(column)})" for value in listed)
        breaks = f"{name} NOT IN ({among})" if listed else "true"
        says, good = "are none of those listed", f"are among the {counted(len(listed), 'value')} listed"
        yield _Rule(column, "one_of", breaks, says, good, warns, allowed=expectation.max_other_fraction)
    if expectation.matches is not None:
        breaks = f"NOT regexp_full_match({name}, {bind(expectation.matches)})"
        yield _Rule(column, "matches", breaks, f"do not match {expectation.matches}", f"match {expectation.matches}", warns)


# ---- counting


def _count(connection: duckdb.DuckDBPyConnection, rows: str, rules: Sequence[_Rule], parameters: dict[str, object]) -> list[_Tally]:
    selected = ", ".join(part for rule in rules for part in _aggregates(rule))
    found = connection.execute(f"SELECT count(*), {selected} FROM {rows}", parameters).fetchall()  # noqa: S608 -- values are parameters
    ((num_rows, *rest),) = found
    tallies = [_tally(rule, num_rows, *rest[4 * i : 4 * i + 4]) for i, rule in enumerate(rules)]
    return [
        _count_repeats(connection, rows, rule.column, tally) if rule.name == "unique" else tally
        for rule, tally in zip(rules, tallies, strict=True)
    ]


def _aggregates(rule: _Rule) -> Iterator[str]:
    """Values that are there, offenders, the extreme value, and some offenders by ascending hash of their row's key."""
    name, present = identifier(rule.column.name), present_sql(rule.column)
    breaks = f"({rule.breaks or 'false'})" if rule.is_of_missing else f"({present} AND {rule.breaks or 'false'})"
    has_examples = rule.breaks and not rule.is_of_missing
    yield f"count(*) FILTER (WHERE {present})"
    yield f"count(*) FILTER (WHERE {breaks})"
    yield f"CAST({rule.extreme}({name}) FILTER (WHERE {present}) AS VARCHAR)" if rule.extreme else "NULL"
    # the cast stands outside: DuckDB evaluates what stands inside for every row, whatever the filter says
    yield f"CAST(arg_min({name}, {KEY_HASH}, {_EXAMPLE_POOL}) FILTER (WHERE {breaks}) AS VARCHAR[])" if has_examples else "NULL"


def _tally(rule: _Rule, num_rows: int, num_present: int, num_bad: int, extreme: str | None, examples: list[str] | None) -> _Tally:
    return _Tally(num_rows if rule.is_of_missing else num_present, num_bad, extreme, examples or [])


def num_parts(num_rows: int) -> int:
    """In how many passes rows are told apart, so that a pass holds about ``MAX_GROUPS`` of them at most."""
    return max(1, math.ceil(num_rows / MAX_GROUPS))


def _count_repeats(connection: duckdb.DuckDBPyConnection, rows: str, column: Column, tally: _Tally) -> _Tally:
    """Exact: equal values have equal hashes, so that each pass sees all rows of the values that it counts."""
    name, parts = identifier(column.name), num_parts(tally.num_values)
    text = f"CAST({name} AS VARCHAR)" if column.shape is None else "NULL"
    num_bad = 0
    examples: list[str | None] = []
    for part in range(parts):
        repeats = (
            f"SELECT {text} AS value, count(*) AS num FROM {rows} WHERE {present_sql(column)} AND hash({name}) % {parts} = {part} "  # noqa: S608
            f"GROUP BY {name} HAVING count(*) > 1"
        )
        found = f"SELECT coalesce(sum(num - 1), 0), max_by(value, (num, value), {_MAX_EXAMPLES}) FROM ({repeats})"  # noqa: S608
        ((num, values),) = connection.execute(found).fetchall()
        num_bad, examples = num_bad + int(num), [*examples, *(values or [])]
    return _Tally(tally.num_values, num_bad, None, examples)


# ---- words


def _judge(rule: _Rule, tally: _Tally) -> CheckRecord:
    ok = tally.num_bad <= rule.allowed * tally.num_values
    return CheckRecord(name=f"{rule.column.name}: {rule.name}", ok=ok, detail=_detail(rule, tally, ok=ok), only_warns=rule.only_warns)


def _detail(rule: _Rule, tally: _Tally, *, ok: bool) -> str:
    if not tally.num_values:
        return "no value is there"
    extreme = f", the {'smallest' if rule.extreme == 'min' else 'largest'} is {tally.extreme}" if rule.extreme else ""
    if not tally.num_bad:
        return f"all {counted(tally.num_values, 'value')} {rule.good}{extreme}"
    limit = f"; {'up to' if ok else 'at most'} {percent(rule.allowed)} may be" if rule.allowed else ""
    bad = f"{tally.num_bad:,} of {counted(tally.num_values, 'value')} ({percent(tally.num_bad / tally.num_values)})"
    return f"{bad} {rule.says}{extreme}{limit}{_for_example(rule, tally)}"


def _for_example(rule: _Rule, tally: _Tally) -> str:
    distinct = list(dict.fromkeys(value for value in tally.examples if value is not None))[:_MAX_EXAMPLES]
    shown = [shorten(value) if family(rule.column) == "text" else value for value in distinct]
    return f"; for example {', '.join(shown)}" if shown else ""


def _told(value: object) -> str:
    return value if isinstance(value, str) else f"{value:,.15g}"
