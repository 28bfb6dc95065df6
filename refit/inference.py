"""Types of columns that the job does not declare: found over the whole input at the first ingest, and pinned from then on.

A column gets a type only if every value of every input fits it; one that nearly does is text, and a note says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from refit.casting import text_cast
from refit.config import ColumnType
from refit.errors import RefusedError
from refit.records import Column
from refit.schema import ARROW_TYPES
from refit.sources.inputs import DoubtfulError, Text, first_line, identifier

CANDIDATES: tuple[ColumnType, ...] = ("boolean", "int64", "float64", "date", "timestamp")
_SAMPLE_ROWS = 20_000
_NEARLY = 0.9
_WORDS = "lower({0}) IN ('true', 'false')"  # DuckDB takes 0, 1, t, y, no for truth values too
_NO_CODE = "NOT regexp_matches({0}, '^\\s*[+-]?0[0-9]')"  # 02134 is a code: as a number it would lose its zero

_NO_LOSS = "NOT contains({0}, '_') AND NOT regexp_full_match(trim({0}), '[+-]?[0-9]{{16,}}')"  # a float would keep 15 digits of them


@dataclass
class Guess:
    """What the values of one text column have been so far."""

    num_values: int = 0
    num_rows: int = 0
    misfits: dict[ColumnType, int] = field(default_factory=lambda: dict.fromkeys(CANDIDATES, 0))
    examples: dict[ColumnType, str] = field(default_factory=dict)

    @property
    def type(self) -> ColumnType:
        """The first type that every value fits; text where there is none, or no value."""
        fitting = [kind for kind in CANDIDATES if self.num_values and kind in self.misfits and not self.misfits[kind]]
        return fitting[0] if fitting else "string"

    def note(self, name: str) -> str | None:
        """A sentence where the column is text because of a few values only."""
        if self.type != "string" or not self.num_values:
            return None
        kind, count = min(self.misfits.items(), key=lambda item: item[1], default=("string", self.num_values))
        if kind == "string" or count > (1 - _NEARLY) * self.num_values:
            return None
        share = f"{count:,} of {self.num_values:,} values are no {kind}, such as {self.examples.get(kind, '')!r}"
        return f'"{name}" was read as text: {share}. Declare data.columns: {{{name}: {kind}}} to reject those rows instead.'


def guess_types(connection: duckdb.DuckDBPyConnection, text: Text, names: list[str], guesses: Mapping[str, Guess], where: str) -> None:
    """Look at all values of one input.

    Args:
        connection: a sealed one that may read it.
        text: the input.
        names: the columns to look at.
        guesses: by column; what the input says is added.
        where: the input, for errors.

    Raises:
        RefusedError: it cannot be read.
        DoubtfulError: it was read quickly, and is not what it seemed to be.
    """
    if not names:
        return
    try:
        with connection.cursor() as cursor:
            sample = _count(cursor, f"(SELECT * FROM {text.scan} LIMIT {_SAMPLE_ROWS})", {n: list(CANDIDATES) for n in names})  # noqa: S608
            left = {name: [kind for kind, missed in found.misfits.items() if _may_fit(found, missed)] for name, found in sample.items()}
            counted = _count(cursor, text.scan, left)
    except duckdb.Error as error:
        if not text.is_proved:
            raise DoubtfulError from error
        raise RefusedError(f"the file cannot be read: {first_line(error)}", where=where) from error
    if not text.is_proved and any(found.num_rows != text.count_rows() for found in counted.values()):
        raise DoubtfulError
    for name, found in counted.items():
        _add(guesses[name], found)


def _may_fit(found: Guess, missed: int) -> bool:
    return missed <= (1 - _NEARLY) * found.num_values


def _add(guess: Guess, found: Guess) -> None:
    guess.num_values += found.num_values
    guess.misfits = {kind: missed + found.misfits[kind] for kind, missed in guess.misfits.items() if kind in found.misfits}
    guess.examples = {**found.examples, **guess.examples}


def _count(connection: duckdb.DuckDBPyConnection, scan: str, kinds: Mapping[str, list[ColumnType]]) -> dict[str, Guess]:
    terms = ["count(*)", *(f"count({identifier(name)})" for name in kinds)]
    for name, candidates in kinds.items():
        for kind in candidates:
            missed = f"{identifier(name)} IS NOT NULL AND NOT coalesce({_fits(identifier(name), kind)}, false)"
            terms += [f"count_if({missed})", f"min({identifier(name)}) FILTER (WHERE {missed})"]
    (values,) = connection.sql(f"SELECT {', '.join(terms)} FROM {scan}").fetchall()  # noqa: S608 -- our own names and a source's scan
    return dict(_read_counts(kinds, values))


def _read_counts(kinds: Mapping[str, list[ColumnType]], counted: Sequence[Any]) -> Iterator[tuple[str, Guess]]:
    num_rows, *values = counted
    rest = iter(values[len(kinds) :])
    for (name, candidates), num_values in zip(kinds.items(), values, strict=False):
        pairs = {kind: (next(rest), next(rest)) for kind in candidates}
        misfits: dict[ColumnType, int] = {kind: int(missed or 0) for kind, (missed, _) in pairs.items()}
        examples = {kind: str(example)[:80] for kind, (_, example) in pairs.items() if example is not None}
        yield name, Guess(int(num_values), int(num_rows), misfits, examples)


def _fits(name: str, kind: ColumnType) -> str:
    if kind == "boolean":
        return _WORDS.format(f"trim({name})")
    cast = f"{text_cast(name, kind)} IS NOT NULL"
    if kind == "int64":  # 130.0 is whole, but others in its column may not be
        return f"{cast} AND NOT contains({name}, '.') AND {_NO_CODE.format(name)}"
    if kind == "float64":
        return f"{cast} AND {_NO_CODE.format(name)} AND {_NO_LOSS.format(name)}"
    return cast


def guessed_columns(guesses: Mapping[str, Guess]) -> tuple[Column, ...]:
    """The columns with the types that were found."""
    return tuple(Column(name=name, type=str(ARROW_TYPES[guess.type])) for name, guess in guesses.items())


def text_schema(text: Text) -> pa.Schema:
    """How an input of text arrives: every column as a string."""
    return pa.schema([(name, pa.string()) for name in text.names])
