"""Types of columns that the job does not declare: found over the whole input at the first ingest, and pinned from then on.

A column gets a type only if every value of every input fits it; one that nearly does is text, and a note says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.casting import text_cast
from refit.config import ColumnType
from refit.errors import RefusedError
from refit.parallel import ordered_map
from refit.records import Column
from refit.schema import ARROW_TYPES
from refit.sources.inputs import Lines, Text, first_line, identifier
from refit.text_casts import cast_by_arrow

CANDIDATES: tuple[ColumnType, ...] = ("boolean", "int64", "float64", "date", "timestamp")
_SAMPLE_ROWS = 20_000
_NEARLY = 0.9
_LONG_NUMBER = 16
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


def guess_types(
    connection: duckdb.DuckDBPyConnection, text: Text | Lines, names: list[str], guesses: Mapping[str, Guess], where: str
) -> None:
    """Look at all values of one input.

    Args:
        connection: a sealed one that may read it.
        text: the input.
        names: the columns to look at.
        guesses: by column; what the input says is added.
        where: the input, for errors.

    Raises:
        RefusedError: it cannot be read.
        DoubtfulError: its lines are not its rows.
    """
    if not names:
        return
    with connection.cursor() as cursor:
        try:
            counted = _count_scan(cursor, text, names) if isinstance(text, Text) else _count_lines(cursor, text, names)
        except duckdb.Error as error:
            raise RefusedError(f"the file cannot be read: {first_line(error)}", where=where) from error
    for name, found in counted.items():
        _add(guesses[name], found)


def _count_scan(cursor: duckdb.DuckDBPyConnection, text: Text, names: list[str]) -> dict[str, Guess]:
    sample = _count(cursor, f"(SELECT * FROM {text.scan} LIMIT {_SAMPLE_ROWS})", dict.fromkeys(names, CANDIDATES))  # noqa: S608
    return _count(cursor, text.scan, _still_possible(sample))


def _count_lines(cursor: duckdb.DuckDBPyConnection, lines: Lines, names: list[str]) -> dict[str, Guess]:
    """As ``_count_scan``; the texts of a column are counted by DuckDB only where not all of them are surely of its type."""
    pieces = ordered_map(lambda piece: lines.cleaned(piece).select(names), lines.read())
    with closing(pieces):
        counted: dict[str, Guess] = {name: Guess() for name in names}
        possible: dict[str, list[ColumnType]] | None = None
        for texts in pieces:
            possible = possible or _still_possible(_count_texts(cursor, texts.slice(0, _SAMPLE_ROWS), dict.fromkeys(names, CANDIDATES)))
            for name, found in _count_texts(cursor, texts, possible).items():
                _add(counted[name], found)
    return counted


def _count_texts(cursor: duckdb.DuckDBPyConnection, texts: pa.RecordBatch, kinds: Mapping[str, Sequence[ColumnType]]) -> dict[str, Guess]:
    sure = {name: _sure_guess(texts[name], candidates) for name, candidates in kinds.items()}
    rest = {name: kinds[name] for name, guess in sure.items() if guess is None}
    if rest:
        cursor.register("_texts", pa.Table.from_batches([texts.select(list(rest))]))
    return {**{name: guess for name, guess in sure.items() if guess}, **(_count(cursor, "_texts", rest) if rest else {})}


def _sure_guess(texts: pa.StringArray, kinds: Sequence[ColumnType]) -> Guess | None:
    """What DuckDB would count, where all texts surely fit all of these types; None: it must be asked."""
    if all(is_surely(texts, kind) for kind in kinds):
        return Guess(len(texts) - texts.null_count, len(texts), dict.fromkeys(kinds, 0))
    return None


def _still_possible(sample: Mapping[str, Guess]) -> dict[str, list[ColumnType]]:
    return {name: [kind for kind, missed in found.misfits.items() if _may_fit(found, missed)] for name, found in sample.items()}


def _may_fit(found: Guess, missed: int) -> bool:
    return missed <= (1 - _NEARLY) * found.num_values


def _add(guess: Guess, found: Guess) -> None:
    guess.num_values += found.num_values
    guess.misfits = {kind: missed + found.misfits[kind] for kind, missed in guess.misfits.items() if kind in found.misfits}
    guess.examples = {**found.examples, **guess.examples}


def _count(connection: duckdb.DuckDBPyConnection, scan: str, kinds: Mapping[str, Sequence[ColumnType]]) -> dict[str, Guess]:
    terms = ["count(*)", *(f"count({identifier(name)})" for name in kinds)]
    for name, candidates in kinds.items():
        for kind in candidates:
            missed = f"{identifier(name)} IS NOT NULL AND NOT coalesce({_fits(identifier(name), kind)}, false)"
            terms += [f"count_if({missed})", f"min({identifier(name)}) FILTER (WHERE {missed})"]
    (values,) = connection.sql(f"SELECT {', '.join(terms)} FROM {scan}").fetchall()  # noqa: S608 -- our own names and a source's scan
    return dict(_read_counts(kinds, values))


def _read_counts(kinds: Mapping[str, Sequence[ColumnType]], counted: Sequence[Any]) -> Iterator[tuple[str, Guess]]:
    num_rows, *values = counted
    rest = iter(values[len(kinds) :])
    for (name, candidates), num_values in zip(kinds.items(), values, strict=False):
        pairs = {kind: (next(rest), next(rest)) for kind in candidates}
        misfits: dict[ColumnType, int] = {kind: int(missed or 0) for kind, (missed, _) in pairs.items()}
        examples = {kind: str(example)[:80] for kind, (_, example) in pairs.items() if example is not None}
        yield name, Guess(int(num_values), int(num_rows), misfits, examples)


def read_fits(connection: duckdb.DuckDBPyConnection, texts: pa.StringArray, kind: ColumnType) -> list[bool]:
    """Whether each text fits a type; a missing one fits all."""
    connection.register("_texts", pa.table({"text": texts}))
    return [fits for (fits,) in connection.sql(f"SELECT text IS NULL OR coalesce({_fits('text', kind)}, false) FROM _texts").fetchall()]  # noqa: S608


def _fits(name: str, kind: ColumnType) -> str:
    if kind == "boolean":
        return _WORDS.format(f"trim({name})")
    cast = f"{text_cast(name, kind)} IS NOT NULL"
    if kind == "int64":  # 130.0 is whole, but others in its column may not be
        return f"{cast} AND NOT contains({name}, '.') AND {_NO_CODE.format(name)}"
    if kind == "float64":
        return f"{cast} AND {_NO_CODE.format(name)} AND {_NO_LOSS.format(name)}"
    return cast


def is_surely(texts: pa.StringArray, kind: ColumnType) -> bool:
    """Whether every text that is there is of a type, by a look that may miss some: it holds only where ``_fits`` holds of each."""
    if len(texts) == texts.null_count:
        return True
    if kind == "boolean":
        return bool(pc.all(pc.is_in(pc.utf8_lower(pc.unique(texts).drop_null()), pa.array(["true", "false"]))).as_py())
    if kind not in CANDIDATES or cast_by_arrow(texts, kind) is None:
        return False
    return kind in ("date", "timestamp") or not _may_be_codes(texts)


def _may_be_codes(texts: pa.StringArray) -> bool:
    """Whether a number begins with a zero before another digit, or has so many places that a float may not keep them."""
    _, offsets, content = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    bounds, text = bounds.astype(np.int64), np.append(np.frombuffer(content, np.uint8), np.zeros(2, np.uint8))
    starts, sizes = bounds[:-1], np.diff(bounds)
    starts = starts + ((text[starts] == ord("-")) | (text[starts] == ord("+")))
    is_digit = (text >= ord("0")) & (text <= ord("9"))
    if bool(((text[starts] == ord("0")) & is_digit[starts + 1] & (sizes > 1)).any()):
        return True
    is_long = sizes >= _LONG_NUMBER
    return bool(is_long.any()) and not bool(pc.all(pc.match_substring(texts.filter(pa.array(is_long)), ".")).as_py())


def guessed_columns(guesses: Mapping[str, Guess]) -> tuple[Column, ...]:
    """The columns with the types that were found."""
    return tuple(Column(name=name, type=str(ARROW_TYPES[guess.type])) for name, guess in guesses.items())


def text_schema(text: Text | Lines) -> pa.Schema:
    """How an input of text arrives: every column as a string."""
    return pa.schema([(name, pa.string()) for name in text.names])
