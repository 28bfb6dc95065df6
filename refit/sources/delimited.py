"""Delimited and fixed-width text.

What a row is stands here and nowhere else: values apart by the delimiter, each plain or in quotes (RFC 4180), as many as
there are columns. A quote that is opened and not closed before its row breaks that line and no other. Spaces and tabs
around a value do not belong to it, in quotes or not. Blank lines are no rows.

Whole pieces of text are judged at once with numpy; only where quotes stand oddly, or lines end with a bare CR, a regular
expression goes through them row by row.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from refit.config import CsvSource
from refit.errors import RefusedError
from refit.sources import locations
from refit.sources.inputs import Input, Raw, Text, identifier, listing, literal
from refit.sources.plain import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    NO_TEXT,
    Cut,
    Fault,
    Offsets,
    Plain,
    QuickLook,
    Rows,
    Start,
    checked_names,
    cut_lines,
    has_bare_returns,
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
def open_input(found: Input, spool: Path) -> Iterator[Text]:
    """Give a text file's sound rows to DuckDB; what is no row comes as a fault with its line.

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


# ---- rows


@dataclass(frozen=True)
class Grammar:
    """What a row of a delimited file is.

    Attributes:
        delimiter: between values.
        quote: around a value; empty: there is none.
        escape: before a quote within quotes.
        num_columns: values of a row.
        is_trailed: a delimiter follows the last value of every row.
    """

    delimiter: bytes
    quote: bytes
    escape: bytes
    num_columns: int = 1
    is_trailed: bool = False

    @cached_property
    def _value(self) -> bytes:
        if not self.quote:
            return self._plain
        quote = re.escape(self.quote)
        return rb"(?:%s%s%s|(?!%s%s)%s)" % (self._opened, quote, self._spaces, self._spaces, quote, self._plain)

    @property
    def _plain(self) -> bytes:
        delimiter = re.escape(self.delimiter)
        return (rb"[^%s\r\n]*+" if len(self.delimiter) == 1 else rb"(?:(?!%s)[^\r\n])*+") % delimiter

    @property
    def _spaces(self) -> bytes:
        """What may stand between a delimiter and a quote."""
        return b"" if b" " in self.delimiter else b" *+"

    @cached_property
    def _opened(self) -> bytes:
        """A value in quotes up to where its last quote stands or should stand."""
        quote, escape = re.escape(self.quote), re.escape(self.escape)
        escaped = quote * 2 if self.escape == self.quote else rb"%s." % escape
        return rb"%s%s(?:[^%s%s]++|%s)*+" % (self._spaces, quote, quote, escape, escaped)

    @cached_property
    def row(self) -> re.Pattern[bytes]:
        """A sound row up to its line end."""
        delimiter = re.escape(self.delimiter)
        more = rb"(?:%s%s){%d}" % (delimiter, self._value, self.num_columns - 1)
        return re.compile(self._value + more + (delimiter if self.is_trailed else b""), re.DOTALL)

    @cached_property
    def any_row(self) -> re.Pattern[bytes]:
        """A row of any number of values up to its line end."""
        return re.compile(rb"%s(?:%s%s)*+" % (self._value, re.escape(self.delimiter), self._value), re.DOTALL)

    @cached_property
    def open_row(self) -> re.Pattern[bytes]:
        """A row that the text ends within quotes."""
        if not self.quote:
            return re.compile(rb"(?!)")
        tail = rb"%s?" % re.escape(self.escape) if self.escape != self.quote else b""
        return re.compile(rb"(?:%s%s)*%s%s\Z" % (self._value, re.escape(self.delimiter), self._opened, tail), re.DOTALL)

    @cached_property
    def _values(self) -> re.Pattern[bytes]:
        return re.compile(rb"(%s)(%s|\Z)" % (self._value, re.escape(self.delimiter)), re.DOTALL)

    def split(self, row: bytes) -> list[bytes]:
        """The values of a sound row without its line end, as they stand."""
        values, end = [], 0
        while match := self._values.match(row, end):
            values.append(match[1])
            end = match.end()
            if not match[2]:
                break
        return values

    def read(self, value: bytes) -> str:
        """A value without its quotes and the blanks around it."""
        text = value.decode()
        quote, escape = self.quote.decode(), self.escape.decode()
        inner = text.strip(" ")
        if quote and inner.startswith(quote):
            text = re.sub(re.escape(escape) + "(.)", r"\1", inner[1:-1], flags=re.DOTALL)
        return text.strip(_blanks(self.delimiter.decode()))

    def count_reason(self, num_values: int, num_lines: int) -> str:
        """Why a row of so many values is none."""
        received = "1 column" if num_values == 1 else f"{num_values} columns"
        expected = f"{self.num_columns}, each with a delimiter after it" if self.is_trailed else f"{self.num_columns}"
        return f"the row has {received} instead of {expected}" + (f", over {num_lines} lines" if num_lines > 1 else "")

    def cut(self, text: bytes, *, is_last: bool) -> Cut:
        """Cut a text into rows (``plain.Cutter``)."""
        fast = None if len(self.delimiter) > 1 else self._cut_at_once(text)
        return fast if fast is not None and fast.size else self._cut_one_by_one(text, is_last=is_last)

    def _cut_at_once(self, text: bytes) -> Cut | None:
        """Cut all complete lines, or nothing where the text has oddities."""
        size = text.rfind(b"\n") + 1
        judged = text[:size] if size < len(text) else text
        array = np.frombuffer(judged, dtype=np.uint8)
        ends = np.flatnonzero(array == _LF) + 1
        if has_bare_returns(judged, ends):
            return None
        if self.quote and self.quote in judged:
            return self._cut_quoted(array)
        return self._judged(array, ends, array == self.delimiter[0])

    def _cut_quoted(self, array: NDArray[np.uint8]) -> Cut | None:
        if self.escape != self.quote and (array == self.escape[0]).any():
            return None
        is_quote = array == self.quote[0]
        quotes = np.flatnonzero(is_quote)
        marks = np.flatnonzero(is_quote | (array == _LF) | (array == self.delimiter[0]))
        codes = array[marks]
        is_outside = (np.cumsum(codes == self.quote[0], dtype=np.int64) & 1) == 0
        outside = marks[is_outside & (codes != self.quote[0])]
        ends = outside[array[outside] == _LF] + 1
        if not len(ends):
            return None
        size = int(ends[-1])
        if not self._quotes_stand_right(array[:size], quotes[: np.searchsorted(quotes, size)]):
            return None
        is_delimiter = np.zeros(size, dtype=bool)
        is_delimiter[outside[(outside < size) & (array[outside] == self.delimiter[0])]] = True
        return self._judged(array[:size], ends, is_delimiter)

    def _quotes_stand_right(self, array: NDArray[np.uint8], quotes: Offsets) -> bool:
        """Whether every value in quotes begins and ends with its quotes, and quotes within are doubled."""
        opening, closing = quotes[::2], quotes[1::2]
        before, after = array[np.maximum(opening - 1, 0)], array[closing + 1]
        begins = (before == self.delimiter[0]) | (before == _LF) | (opening == 0)
        ends = (after == self.delimiter[0]) | (after == _LF) | (after == _CR)
        if self.escape == self.quote:
            begins |= before == self.quote[0]
            ends |= after == self.quote[0]
        return bool(begins.all() and ends.all())

    def _judged(self, array: NDArray[np.uint8], ends: Offsets, is_delimiter: NDArray[np.bool_]) -> Cut:
        """Rows that end at ``ends``, the last of which is the array's length: those with too few or too many delimiters are no rows."""
        if not len(ends):
            return Cut(0, ends, ends)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
        counts = np.add.reduceat(is_delimiter.view(np.uint8), starts, dtype=np.uint32)
        is_wrong = counts != self.num_columns - 1 + self.is_trailed
        if self.is_trailed:
            is_wrong |= ~self._ends_with_delimiter(array, ends)
        is_suspect = is_wrong
        if self.num_columns == 1:
            first = array[starts]
            is_suspect = is_wrong | (first == _LF) | (first == _CR) | (first == _SPACE) | (first == _TAB)
        if not is_suspect.any():
            return Cut(int(ends[-1]), starts, ends)
        faults, is_smooth, is_row = [], True, ~is_wrong
        for index in np.flatnonzero(is_suspect).tolist():
            start, end = int(starts[index]), int(ends[index])
            row = array[start:end].tobytes()
            if self._is_blank(row):
                is_row[index] = False
                is_smooth &= self._is_passed_over(row)
            elif is_wrong[index]:
                faults.append(Fault(start, end, self.count_reason(int(counts[index]) + 1, len(line_starts(row)))))
        return Cut(int(ends[-1]), starts[is_row], ends[is_row], faults, is_smooth=is_smooth and not faults)

    def _ends_with_delimiter(self, array: NDArray[np.uint8], ends: Offsets) -> NDArray[np.bool_]:
        has_return = array[np.maximum(ends - 2, 0)] == _CR
        return np.asarray(array[np.maximum(ends - 2 - has_return, 0)] == self.delimiter[0])

    def _is_blank(self, line: bytes) -> bool:
        return is_blank(line) and self.delimiter not in line

    def _is_passed_over(self, blank: bytes) -> bool:
        """Whether DuckDB, too, takes a blank line for no row."""
        return self.num_columns > 1 and not blank.strip(b"\r\n")

    def _cut_one_by_one(self, text: bytes, *, is_last: bool) -> Cut:
        spans, faults, is_smooth, position = [], [], True, 0
        while position < len(text):
            kind, end = self._next(text, position, is_last=is_last)
            if kind == "open":
                break
            if kind == "row":
                spans.append((position, end))
            elif kind == "blank":
                is_smooth &= self._is_passed_over(text[position:end])
            else:
                faults.append(Fault(position, end, kind))
            position = end
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        return Cut(position, starts, ends, faults, is_smooth=is_smooth and not faults)

    def _next(self, text: bytes, start: int, *, is_last: bool) -> tuple[str, int]:
        """What stands at ``start``: "row", "blank", "open" (not complete yet), or why it is no row; and its end."""
        match = self.row.match(text, start)
        end = match and _line_end(text, match.end(), is_last=is_last)
        if end:
            return ("blank" if self._is_blank(text[start:end]) else "row"), end
        match = self.any_row.match(text, start)
        if match and (end := _line_end(text, match.end(), is_last=is_last)):
            row = text[start:end]
            return ("blank" if self._is_blank(row) else self.count_reason(len(self.split(row.rstrip(b"\r\n"))), len(line_starts(row)))), end
        is_open = bool(match and match.end() >= len(text) - 1) or self.open_row.match(text, start) is not None
        end = _first_line_end(text, start, is_last=is_last)
        if (is_open and not is_last) or not end:
            return "open", start
        return ("a quote is opened and not closed" if is_open else "a quote stands where none may stand, or is not closed"), end


_LINE_END = re.compile(rb"\r\n|\n|\r")


def _line_end(text: bytes, position: int, *, is_last: bool) -> int | None:
    """Where the line end at ``position`` ends, if there is one and it is complete."""
    if position == len(text):
        return position if is_last else None
    match = _LINE_END.match(text, position)
    if match is None or (match[0] == b"\r" and match.end() == len(text) and not is_last):
        return None
    return match.end()


def _first_line_end(text: bytes, position: int, *, is_last: bool) -> int | None:
    match = _LINE_END.search(text, position)
    return _line_end(text, match.start() if match else len(text), is_last=is_last)


# ---- delimited


@contextmanager
def _delimited(plain: Plain, source: CsvSource, spool: Path, *, is_doubtful: bool) -> Iterator[Text]:
    grammar = Grammar(source.delimiter.encode(), source.quote.encode(), (source.escape or source.quote).encode())
    start, header, sample = _preamble(plain, source, grammar)
    names, grammar = _columns(plain, source, grammar, header, sample)
    watch = _BlankWatch(grammar)
    look = QuickLook(plain, watch.cut, start, watch.look, partial(_has_no_excess, grammar, _null_texts(source)))
    quick = None if is_doubtful or len(names) == 1 or grammar.is_trailed else look.rows()
    with nullcontext(quick) if quick else sound_rows(plain, watch.cut, spool, start=start) as rows:
        scan = _scan(rows, grammar, source, names, watch.found)
        yield Text(
            scan=scan.clean,
            names=tuple(names),
            paths=(rows.path,),
            faults=lambda _: rows.survey.rejects,
            locate=rows.locate,
            count_rows=look.count if quick else lambda: rows.survey.num_rows,
            is_proved=quick is None,
            raw=scan.raw,
            dialect=f"separated by {source.delimiter!r}",
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
        end = _first_line_end(head, position, is_last=True) or len(head)
        if not is_blank(head[position:end]):
            match = grammar.any_row.match(head, position)
            found = match and _line_end(head, match.end(), is_last=True)
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
        end = match and _line_end(text, match.end(), is_last=True)
        if end and not is_blank(text[position:end]):
            rows.append(grammar.split(text[position:end].rstrip(b"\r\n")))
        position = end or _first_line_end(text, position, is_last=True) or len(text)
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
        self.look(text, cut.size)
        return cut

    def look(self, text: bytes | bytearray, size: int) -> str:
        """Note the blanks of some whole rows, the first bytes of a text; return all that were found so far."""
        self.found += "".join(blank for blank in _blanks(self.grammar.delimiter.decode()) if self._is_new(text, size, blank))
        return self.found

    def _is_new(self, text: bytes | bytearray, size: int, blank: str) -> bool:
        if blank in self.found or text.find(blank.encode(), 0, size) < 0:
            return False
        array = np.frombuffer(text, dtype=np.uint8, count=size)
        blanks = np.flatnonzero(array == ord(blank))
        is_end = np.zeros(256, dtype=bool)
        is_end[list(self.grammar.delimiter + self.grammar.quote + b"\r\n \t")] = True
        is_end[ord(blank)] = False
        before, after = array[np.maximum(blanks - 1, 0)], array[np.minimum(blanks + 1, len(array) - 1)]
        return bool(blanks[0] == 0 or blanks[-1] == len(array) - 1 or is_end[before].any() or is_end[after].any())


def _blanks(delimiter: str) -> str:
    return " \t".replace(delimiter, "")


def _null_texts(source: CsvSource) -> list[str]:
    return [value.strip(" \t") for value in source.null_values]


def _has_no_excess(grammar: Grammar, nulls: list[str], text: bytes | bytearray, size: int) -> bool:
    """Whether no row of a text's whole lines has more values than there are columns, where DuckDB found at least as many.

    Of a row that has too many DuckDB 2.0 drops the last ones without a word where all of them are missing.
    """
    array = np.frombuffer(text, dtype=np.uint8, count=size)
    ends = np.flatnonzero(array == _LF)
    num_expected = len(ends) * (grammar.num_columns - 1)
    delimiter = grammar.delimiter
    found = np.count_nonzero(array == delimiter[0]) if len(delimiter) == 1 else text.count(delimiter, 0, size)
    if found == num_expected:
        return True
    is_last = np.zeros(256, dtype=bool)
    is_last[[*delimiter[-1:], *grammar.quote, *(value.encode()[-1] for value in nulls if value)]] = True
    if not is_last[array[ends - 1]].any():  # some values hold delimiters, and no row ends with a missing one
        return True
    cut = grammar.cut(bytes(text[:size]), is_last=True)
    return cut.size == size and len(cut.starts) == len(ends)


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
