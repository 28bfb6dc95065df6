"""What a row of delimited text is.

Values apart by the delimiter, each plain or in quotes (RFC 4180), as many as there are columns. A quote that is opened and not
closed before its row breaks that line and no other. Spaces and tabs around a value do not belong to it, in quotes or not. Blank
lines are no rows.

Whole pieces of text are judged at once with numpy; only where quotes stand oddly, or lines end with a bare CR, a regular
expression goes through them row by row.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from refit.sources.plain import Cut, Fault, Offsets, has_bare_returns, is_blank, line_starts

_LF, _CR, _TAB, _SPACE = b"\n\r\t "


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
        return text.strip(blanks_of(self.delimiter.decode()))

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
        if not self.quotes_stand_right(array[:size], quotes[: np.searchsorted(quotes, size)]):
            return None
        is_delimiter = np.zeros(size, dtype=bool)
        is_delimiter[outside[(outside < size) & (array[outside] == self.delimiter[0])]] = True
        return self._judged(array[:size], ends, is_delimiter)

    def quotes_stand_right(self, array: NDArray[np.uint8], quotes: Offsets) -> bool:
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
        end = match and line_end(text, match.end(), is_last=is_last)
        if end:
            return ("blank" if self._is_blank(text[start:end]) else "row"), end
        match = self.any_row.match(text, start)
        if match and (end := line_end(text, match.end(), is_last=is_last)):
            row = text[start:end]
            return ("blank" if self._is_blank(row) else self.count_reason(len(self.split(row.rstrip(b"\r\n"))), len(line_starts(row)))), end
        is_open = bool(match and match.end() >= len(text) - 1) or self.open_row.match(text, start) is not None
        end = first_line_end(text, start, is_last=is_last)
        if (is_open and not is_last) or not end:
            return "open", start
        return ("a quote is opened and not closed" if is_open else "a quote stands where none may stand, or is not closed"), end


_LINE_END = re.compile(rb"\r\n|\n|\r")


def line_end(text: bytes, position: int, *, is_last: bool) -> int | None:
    """Where the line end at ``position`` ends, if there is one and it is complete."""
    if position == len(text):
        return position if is_last else None
    match = _LINE_END.match(text, position)
    if match is None or (match[0] == b"\r" and match.end() == len(text) and not is_last):
        return None
    return match.end()


def first_line_end(text: bytes, position: int, *, is_last: bool) -> int | None:
    """Where the first line end from ``position`` on ends, if there is one and it is complete."""
    match = _LINE_END.search(text, position)
    return line_end(text, match.start() if match else len(text), is_last=is_last)


# ---- blanks


def blanks_of(delimiter: str) -> str:
    """The characters that mean nothing around a value."""
    return " \t".replace(delimiter, "")


def stray_blanks(grammar: Grammar, text: bytes, size: int, known: str = "") -> str:
    """Which blanks stand at an end of some value in whole rows, the first ``size`` bytes of a text, but for the known ones."""
    return "".join(blank for blank in blanks_of(grammar.delimiter.decode()) if blank not in known and _is_stray(grammar, text, size, blank))


def _is_stray(grammar: Grammar, text: bytes, size: int, blank: str) -> bool:
    if text.find(blank.encode(), 0, size) < 0:
        return False
    array = np.frombuffer(text, dtype=np.uint8, count=size)
    blanks = np.flatnonzero(array == ord(blank))
    is_end = np.zeros(256, dtype=bool)
    is_end[list(grammar.delimiter + grammar.quote + b"\r\n \t")] = True
    is_end[ord(blank)] = False
    before, after = array[np.maximum(blanks - 1, 0)], array[np.minimum(blanks + 1, len(array) - 1)]
    return bool(blanks[0] == 0 or blanks[-1] == len(array) - 1 or is_end[before].any() or is_end[after].any())
