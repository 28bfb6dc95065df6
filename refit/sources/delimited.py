"""Delimited and fixed-width text: which file it is, where its rows begin, what its columns are called, and how it is read.

What a row is stands in ``refit.sources.grammar``. Where each line is a row, Arrow parses the text piece by piece
(``refit.sources.lines``); else DuckDB reads a copy of its sound rows (docs/decisions/0009-text-files.md).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from refit.config import CsvSource
from refit.errors import RefusedError
from refit.sources import locations
from refit.sources.grammar import Grammar, first_line_end, line_end, stray_blanks
from refit.sources.inputs import Input, Lines, Raw, Text, identifier, listing, literal
from refit.sources.lines import LineReader, may_be_lines
from refit.sources.plain import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    NO_TEXT,
    Cut,
    Fault,
    Offsets,
    Plain,
    Rows,
    Start,
    checked_names,
    cut_lines,
    is_blank,
    line_ends,
    line_scan,
    line_starts,
    recognise,
    sound_rows,
)

_PEEKED_ROWS = 1_000
_NAMES_REMEDY = "Mend the header; or set header: false, skip_lines and names."
_LF, _CR, _TAB, _SPACE = b"\n\r\t "


@contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Text | Lines]:
    """Make a text file ready to be read; what is no row comes as a fault with its line.

    Args:
        found: one file of a ``CsvSource``.
        spool: folder for copies while the file is read.

    Raises:
        RefusedError: the file is no text, is damaged, or does not have the columns that the source says.
    """
    source = found.source
    if not isinstance(source, CsvSource):
        raise TypeError(type(source))
    with locations.local_path(found.files[0], source, spool) as path:
        plain = recognise(path, found.name, source.encoding, source.member)
        delimited = partial(_delimited, is_doubtful=found.is_doubtful)
        reading = _fixed_width if source.widths else delimited
        with reading(plain, source, spool) as text:
            yield text


# ---- delimited


@contextmanager
def open_sound(found: Input, spool: Path) -> Iterator[Text]:
    """As ``open_input``, with all care whatever the text looks like."""
    with open_input(replace(found, is_doubtful=True), spool) as text:
        if isinstance(text, Lines):
            raise TypeError(type(text))
        yield text


@contextmanager
def _delimited(plain: Plain, source: CsvSource, spool: Path, *, is_doubtful: bool) -> Iterator[Text | Lines]:
    grammar = Grammar(source.delimiter.encode(), source.quote.encode(), (source.escape or source.quote).encode())
    start, header, sample = _preamble(plain, source, grammar)
    names, grammar = _columns(plain, source, grammar, header, sample)
    dialect = f"separated by {source.delimiter!r}"
    if not is_doubtful and may_be_lines(grammar):
        reader = LineReader(plain, grammar, start, tuple(names), tuple(_null_texts(source)))
        yield Lines(reader.names, reader.read, reader.parse, reader.clean, reader.find, reader.locate, start.num_lines, dialect)
        return
    watch = _BlankWatch(grammar)
    with sound_rows(plain, watch.cut, spool, start=start) as rows:
        scan = _scan(rows, grammar, source, names, watch.found)
        yield Text(
            scan=scan.clean,
            names=tuple(names),
            paths=(rows.path,),
            faults=lambda _: rows.survey.rejects,
            locate=rows.locate,
            count_rows=lambda: rows.survey.num_rows,
            raw=scan.raw,
            dialect=dialect,
        )


def _preamble(plain: Plain, source: CsvSource, grammar: Grammar) -> tuple[Start, list[str], list[list[bytes]]]:
    """Where the rows begin, the header's names (none without a header), and the first rows."""
    head = _head(plain, source.skip_lines + _PEEKED_ROWS)
    lines = line_starts(head)
    position = _position(plain, lines, source.skip_lines)
    begin, header = position, b""
    if source.header:
        begin, position = _header(plain, grammar, head, position)
        header = head[begin:position]
    num_lines = int(np.searchsorted(lines, position))
    skipped = head[:begin].splitlines()
    is_simple = len(skipped) == source.skip_lines and len(line_starts(header)) <= 1 and not any(is_blank(line) for line in skipped)
    is_simple &= not (grammar.quote and grammar.quote in head[:begin])
    num_skipped = source.skip_lines + source.header if is_simple else None
    start = Start(
        position, num_lines, num_skipped, line_ends(head, np.append(lines[1:], position)[:num_lines]) if num_lines else frozenset()
    )
    return start, _read_row(plain, grammar, header) if source.header else [], _peek(grammar, head[position:])


def _head(plain: Plain, num_lines: int) -> bytes:
    """The beginning of a text: so many lines if they are not too long, 1 MiB at least."""
    with plain.open() as stream:
        head = stream.read(BLOCK_BYTES)
        return head if head.count(b"\n") > num_lines else head + stream.read(MAX_ROW_BYTES)


def _position(plain: Plain, lines: Offsets, num_lines: int) -> int:
    if num_lines >= len(lines):
        what = f"skip_lines passes over all of the file's {len(lines)} lines."
        raise RefusedError(what, where=plain.name, received=f"skip_lines: {num_lines}", remedy="Lower it.")
    return int(lines[num_lines])


def _header(plain: Plain, grammar: Grammar, head: bytes, position: int) -> tuple[int, int]:
    """Where the header begins and ends: the first line that is not blank."""
    while position < len(head):
        end = first_line_end(head, position, is_last=True) or len(head)
        if not is_blank(head[position:end]):
            match = grammar.any_row.match(head, position)
            found = match and line_end(head, match.end(), is_last=True)
            if not found:
                raise RefusedError(
                    "the header's quotes do not match.", where=plain.name, remedy="Mend it, or check delimiter, quote and escape."
                )
            return position, found
        position = end
    raise RefusedError("the file has no header.", where=plain.name, remedy="Mend it, or set header and skip_lines.")


def _read_row(plain: Plain, grammar: Grammar, row: bytes) -> list[str]:
    try:
        return [grammar.read(value) for value in grammar.split(row.rstrip(b"\r\n"))]
    except UnicodeDecodeError as error:
        what = f"the header is not UTF-8: byte 0x{row[error.start]:02x}."
        raise RefusedError(what, where=plain.name, remedy="Set the source's encoding, such as latin-1 or cp1252.") from error


def _peek(grammar: Grammar, text: bytes) -> list[list[bytes]]:
    rows: list[list[bytes]] = []
    position = 0
    while position < len(text) and len(rows) < _PEEKED_ROWS:
        match = grammar.any_row.match(text, position)
        end = match and line_end(text, match.end(), is_last=True)
        if end and not is_blank(text[position:end]):
            rows.append(grammar.split(text[position:end].rstrip(b"\r\n")))
        position = end or first_line_end(text, position, is_last=True) or len(text)
    return rows


def _columns(plain: Plain, source: CsvSource, grammar: Grammar, header: list[str], sample: list[list[bytes]]) -> tuple[list[str], Grammar]:
    """Names of the columns, and the grammar that knows how many there are."""
    first = [""] * len(sample[0]) if sample else []
    names = header if source.header else source.names or first
    if not names:
        raise RefusedError("the file has no rows.", where=plain.name, remedy="Deliver it again, or set skip_lines.")
    num_trailed = sum(len(row) == len(names) + 1 and not row[-1] for row in sample)
    is_trailed = 2 * num_trailed > len(sample)
    if len(header) > 1 and not header[-1] and not any(len(row) == len(header) and row[-1] for row in sample):
        names, is_trailed = names[:-1], True
    if source.names and sample and not any(len(row) == len(names) + is_trailed for row in sample):
        _refuse_names(plain, len(names), sample)
    return checked_names(names, plain.name, _NAMES_REMEDY), replace(grammar, num_columns=len(names), is_trailed=is_trailed)


def _refuse_names(plain: Plain, num_names: int, sample: list[list[bytes]]) -> NoReturn:
    usual, _ = Counter(len(row) for row in sample).most_common(1)[0]
    raise RefusedError(
        "the source's names do not fit the file.",
        where=plain.name,
        expected=f"rows of {num_names} columns",
        received=f"rows of {usual}",
        remedy="Name every column of the file in order, and check the delimiter.",
    )


@dataclass
class _BlankWatch:
    """A cutter that notes which blanks, spaces or tabs, stand at an end of some value: to trim is dear (0.06 µs a value)."""

    grammar: Grammar
    found: str = ""

    def cut(self, text: bytes, *, is_last: bool) -> Cut:
        cut = self.grammar.cut(text, is_last=is_last)
        self.found += stray_blanks(self.grammar, text, cut.size, self.found)
        return cut


def _null_texts(source: CsvSource) -> list[str]:
    return [value.strip(" \t") for value in source.null_values]


@dataclass(frozen=True)
class _Scan:
    clean: str
    raw: Raw | None


def _scan(rows: Rows, grammar: Grammar, source: CsvSource, names: list[str], blanks: str) -> _Scan:
    columns = [f"c{index}" for index in range(len(names) + grammar.is_trailed)]
    nulls = _null_texts(source)
    can_be_marked = not any(set(value) & set(source.delimiter + source.quote + (source.escape or "")) for value in nulls)
    marked = nulls if can_be_marked and nulls else [NO_TEXT]
    types = ", ".join(f"{column}: 'VARCHAR'" for column in columns)
    scan = (
        f"read_csv({literal(str(rows.path))}, columns={{{types}}}, delim={literal(source.delimiter)}, quote={literal(source.quote)}, "
        f"escape={literal(source.escape or source.quote)}, nullstr={listing(marked)}, {rows.options()})"
    )

    def clean(sql: str) -> str:
        return _value(sql, nulls, blanks)

    raw = f"(SELECT {_named(columns[: len(names)], names)} FROM {scan})"  # noqa: S608 -- names and options are quoted
    if can_be_marked and not blanks:
        return _Scan(raw, None)
    values = [clean(column) for column in columns[: len(names)]]
    return _Scan(f"(SELECT {_named(values, names)} FROM {scan})", Raw(raw, clean, blanks, any(nulls)) if can_be_marked else None)  # noqa: S608


def _value(sql: str, nulls: list[str], blanks: str) -> str:
    """A value without the blanks around it, or NULL."""
    trimmed = f"trim({sql}, {literal(blanks)})" if "\t" in blanks else f"trim({sql})" if blanks else sql
    if len(nulls) == 1:
        return f"nullif({trimmed}, {literal(nulls[0])})"
    return f"CASE WHEN {trimmed} NOT IN ({', '.join(map(literal, nulls))}) THEN {trimmed} END" if nulls else trimmed


def _named(values: list[str], names: Sequence[str]) -> str:
    return ", ".join(f"{value} AS {identifier(name)}" for value, name in zip(values, names, strict=True))


# ---- fixed width


@contextmanager
def _fixed_width(plain: Plain, source: CsvSource, spool: Path) -> Iterator[Text]:
    names, widths = checked_names(source.names or [], plain.name, _NAMES_REMEDY), source.widths or []
    start = _after_lines(plain, source.skip_lines)
    with sound_rows(plain, partial(_cut_widths, widths=widths), spool, start=start) as rows:
        begins = accumulate(widths, initial=1)
        nulls = _null_texts(source)
        cells = [_value(f"substr(line, {begin}, {width})", nulls, " \t") for begin, width in zip(begins, widths, strict=False)]
        yield Text(
            scan=f"(SELECT {_named(cells, names)} FROM {line_scan(rows, 'line')})",  # noqa: S608 -- names and options are quoted
            names=tuple(names),
            paths=(rows.path,),
            faults=lambda _: rows.survey.rejects,
            locate=rows.locate,
            count_rows=lambda: rows.survey.num_rows,
            dialect=f"of columns that are {', '.join(map(str, widths))} characters wide",
        )


def _after_lines(plain: Plain, num_lines: int) -> Start:
    position = _position(plain, line_starts(_head(plain, num_lines)), num_lines)
    return Start(position, num_lines, None if num_lines else 0)


def _cut_widths(text: bytes, *, is_last: bool, widths: list[int]) -> Cut:
    """Lines that reach into the last column and not beyond it."""
    cut = cut_lines(text, is_last=is_last)
    faults, is_row = [], np.ones(len(cut.starts), dtype=bool)
    for index in np.flatnonzero(_may_misfit(text, cut, widths)).tolist():
        start, end = int(cut.starts[index]), int(cut.ends[index])
        if reason := _width_reason(text[start:end], widths):
            faults.append(Fault(start, end, reason))
            is_row[index] = False
    if not faults:
        return cut
    return Cut(cut.size, cut.starts[is_row], cut.ends[is_row], faults, is_smooth=False)


def _may_misfit(text: bytes, cut: Cut, widths: list[int]) -> NDArray[np.bool_]:
    """Lines whose length must be looked at: where a byte is a character, those that are too short or too long."""
    if not text.isascii() or not len(cut.starts):
        return np.ones(len(cut.starts), dtype=bool)
    array = np.frombuffer(text, dtype=np.uint8)
    last, before = array[cut.ends - 1], array[np.maximum(cut.ends - 2, 0)]
    ended = cut.ends - ((last == _LF) | (last == _CR)) - ((last == _LF) & (before == _CR))
    lengths = ended - cut.starts
    return np.asarray((lengths < sum(widths[:-1])) | (lengths > sum(widths)))


def _width_reason(line: bytes, widths: list[int]) -> str | None:
    text = line.decode(errors="replace").rstrip("\r\n")
    if len(text) < sum(widths[:-1]):
        return f"the line has {len(text)} characters, the last column begins after {sum(widths[:-1])}"
    if len(text.rstrip()) > sum(widths):
        return f"the line has {len(text.rstrip())} characters, the columns end after {sum(widths)}"
    return None
