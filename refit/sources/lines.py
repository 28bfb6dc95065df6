"""Delimited text of which every line is a row or empty, parsed by Arrow piece by piece.

A piece is proved before its values are believed: it is UTF-8 without NUL, CR stands before LF only, each quote opens a value that
it begins or closes one that it ends, in pairs on one line, and every line has as many values as there are columns. Where that
fails the text is doubtful, and is to be read with more care. Nothing is known of the text but what the pieces say, so that they
can be parsed in any order, side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from refit.sources.grammar import Grammar, blanks_of
from refit.sources.inputs import DoubtfulError, Parsed, Place
from refit.sources.plain import Plain, Start, raw_text

PIECE_BYTES = 16 << 20
_LF, _CR = b"\n\r"
_PARSED_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18  # so that what is computed on stays in the processor's cache


def may_be_lines(grammar: Grammar) -> bool:
    """Whether the lines of such a text can be proved to be rows; a blank line could be the missing value of a single column."""
    return len(grammar.delimiter) == 1 and grammar.num_columns + grammar.is_trailed > 1


@dataclass(frozen=True)
class LineReader:
    """Reads one text.

    Attributes:
        plain: the text.
        grammar: what a row is.
        start: where rows begin.
        names: of the columns.
        nulls: texts that stand for a missing value.
    """

    plain: Plain
    grammar: Grammar
    start: Start
    names: tuple[str, ...]
    nulls: tuple[str, ...]

    def read(self) -> Iterator[bytearray]:
        """The text in pieces of whole lines; the last line may lack its end.

        Raises:
            RefusedError: it cannot be read to its end.
            DoubtfulError: a line is longer than a piece.
        """
        with cast("BufferedReader", self.plain.open(start=self.start.num_bytes)) as stream:
            rest = b""
            while True:
                piece = bytearray(len(rest) + PIECE_BYTES)
                piece[: len(rest)] = rest
                end = len(rest) + stream.readinto(memoryview(piece)[len(rest) :])
                size = piece.rfind(b"\n", 0, end) + 1
                if end == len(rest):
                    break
                if not size and end > PIECE_BYTES:
                    raise DoubtfulError
                rest = bytes(memoryview(piece)[size:end])
                del piece[size:]  # the only copy of a piece is the one that was read
                if piece:
                    yield piece
            if rest:
                yield bytearray(rest)

    def parse(self, piece: bytearray) -> Parsed:
        """The values of a piece as they stand in it.

        Raises:
            DoubtfulError: some line is not shown to be a row.
        """
        text = piece if piece.endswith(b"\n") else piece + b"\n"
        ends = self._find_proved(text)
        try:
            table = csv.read_csv(
                pa.BufferReader(text),
                read_options=csv.ReadOptions(use_threads=False, block_size=_PARSED_BYTES, column_names=self._columns),
                parse_options=self._parse_options,
                convert_options=self._convert_options,
            )
        except pa.ArrowInvalid as error:
            raise DoubtfulError from error
        if len(table) != len(ends) - np.count_nonzero(_find_empty(text, ends)):
            raise DoubtfulError
        columns = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in table.columns]
        return Parsed(self._named(columns), text, ends)

    def clean(self, values: pa.StringArray) -> pa.StringArray:
        """Values without the blanks around them, missing ones null (``Lines.clean``)."""
        blanks = blanks_of(self.grammar.delimiter.decode())
        if not _has_blank_ends(values, blanks):
            return values
        trimmed = pc.ascii_trim(values, characters=blanks)
        return pc.if_else(pc.is_in(trimmed, pa.array(self.nulls, pa.string())), None, trimmed) if self.nulls else trimmed

    def find(self, parsed: Parsed, rows: npt.NDArray[np.int64]) -> list[Place]:
        """Where rows of a piece stand (``Lines.find``)."""
        lines = np.flatnonzero(~_find_empty(parsed.text, parsed.ends))[rows]
        starts = np.where(lines > 0, parsed.ends[lines - 1] + 1, 0)
        found = zip(lines.tolist(), starts.tolist(), parsed.ends[lines].tolist(), strict=True)
        return [Place(line=line + 1, text=raw_text(bytes(parsed.text[start:end]))) for line, start, end in found]

    def locate(self, rows: Sequence[int]) -> Iterator[Place]:
        """Where rows stand (``Lines.locate``)."""
        wanted = np.asarray(rows, dtype=np.int64)
        row, line, taken = 0, self.start.num_lines, 0
        for parsed in map(self.parse, self.read()):
            if taken == len(wanted):
                return
            until = int(np.searchsorted(wanted, row + len(parsed.rows)))
            yield from (Place(place.line + line, place.text) for place in self.find(parsed, wanted[taken:until] - row))
            row, line, taken = row + len(parsed.rows), line + len(parsed.ends), until

    # ---- the proof

    def _find_proved(self, text: bytearray) -> npt.NDArray[np.int64]:
        """Where the lines end, each of which is empty, or a row if it has the right number of values."""
        quote, escape = self.grammar.quote, self.grammar.escape
        if b"\0" in text or (b"\r" in text and text.count(b"\r") != text.count(b"\r\n")):
            raise DoubtfulError
        array = np.frombuffer(text, dtype=np.uint8)
        if not quote or quote not in text:
            return _find(array, _LF)[0]
        marks, is_quote = _find(array, _LF, quote[0])
        is_open = np.cumsum(is_quote, dtype=np.int32) & 1
        has_open_line = bool((is_open > is_quote).any())
        if has_open_line or (escape != quote and escape in text) or not self.grammar.quotes_stand_right(array, marks[is_quote]):
            raise DoubtfulError
        return marks[~is_quote]

    # ---- the values

    @property
    def _columns(self) -> list[str]:
        return [f"c{index}" for index in range(len(self.names) + self.grammar.is_trailed)]

    @property
    def _parse_options(self) -> csv.ParseOptions:
        quote = self.grammar.quote.decode()
        return csv.ParseOptions(
            delimiter=self.grammar.delimiter.decode(),
            quote_char=quote or False,
            double_quote=bool(quote) and self.grammar.escape == self.grammar.quote,
            escape_char=False,
            newlines_in_values=False,
            ignore_empty_lines=True,
        )

    @property
    def _convert_options(self) -> csv.ConvertOptions:
        return csv.ConvertOptions(
            column_types=dict.fromkeys(self._columns, pa.string()),
            null_values=list(self.nulls),
            strings_can_be_null=bool(self.nulls),
            quoted_strings_can_be_null=True,
        )

    def _named(self, columns: list[pa.StringArray]) -> pa.RecordBatch:
        if self.grammar.is_trailed and pc.any(pc.greater(pc.binary_length(self.clean(columns.pop())), 0)).as_py():
            raise DoubtfulError
        return pa.RecordBatch.from_arrays(columns, names=list(self.names))


def _find(array: npt.NDArray[np.uint8], code: int, other: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where two codes stand, and where it is the other."""
    found, is_other = [], []
    for start in range(0, len(array), _BLOCK_BYTES):
        block = array[start : start + _BLOCK_BYTES]
        at = np.flatnonzero(block == code if other is None else (block == code) | (block == other))
        found.append(at + start)
        is_other.append(block[at] == other)
    return np.concatenate(found), np.concatenate(is_other)


def _find_empty(text: bytearray, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which lines hold nothing but their end."""
    array, sizes = np.frombuffer(text, dtype=np.uint8), np.diff(ends, prepend=-1)
    return np.asarray((sizes == 1) | ((sizes == 2) & (array[np.maximum(ends - 1, 0)] == _CR)))


def _has_blank_ends(values: pa.StringArray, blanks: str) -> bool:
    _, offsets, content = values.buffers()
    if content is None or not content.size:
        return False
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    text = np.frombuffer(content, np.uint8)
    starts, ends = bounds[:-1], bounds[1:]
    if values.null_count or not (starts < ends).all():
        is_filled = starts < ends
        starts, ends = starts[is_filled], ends[is_filled]
    first, last = text[starts], text[ends - 1]
    return any(bool((first == code).any() or (last == code).any()) for code in blanks.encode())
