"""JSON: one object a line, or one array of objects.

Columns are the keys of all objects together. A value comes as text: a string without its quotes, a nested value as JSON,
``null`` and a key that is not there as missing. A key that stands twice in an object breaks the row: nobody can say which
of its values counts.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from refit.config import JsonSource
from refit.errors import RefusedError
from refit.sources import locations
from refit.sources.inputs import Input, Text, identifier, listing
from refit.sources.plain import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    NO_ROWS,
    Cut,
    Fault,
    Plain,
    Rows,
    Start,
    checked_names,
    cut_lines,
    line_scan,
    line_starts,
    recognise,
    sound_rows,
    without_damage,
)

MAX_KEYS = 10_000
_REMEDY = "Give one object a line, or one array of objects."
_NAMES_REMEDY = "Rename the keys."


@contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Text]:
    """Give a JSON file's objects to DuckDB; what is none comes as a fault with its line.

    Args:
        found: one file of a ``JsonSource``.
        spool: folder for copies while the file is read.

    Raises:
        RefusedError: the file holds no objects, is damaged, or is an array that is not JSON.
    """
    source = found.source
    if not isinstance(source, JsonSource):
        raise TypeError(type(source))
    with locations.local_path(found.files[0], source, spool) as path, duckdb.connect() as connection:
        plain = recognise(path, found.name, "utf-8")
        reading = _array if _first_character(plain) == b"[" else _lines
        with reading(plain, _Objects(connection, plain.name), spool) as text:
            yield text


def _first_character(plain: Plain) -> bytes:
    with plain.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            if block.strip():
                return block.strip()[:1]
    return b""


def _text(rows: Rows, objects: "_Objects", plain: Plain) -> Text:
    names = checked_names(list(objects.keys), plain.name, _NAMES_REMEDY)
    pointers = listing([_pointer(key) for key in objects.keys])
    values = ", ".join(f"cells[{index}] AS {identifier(name)}" for index, name in enumerate(names, start=1))
    cells = f"SELECT json_extract_string(line, {pointers}) AS cells FROM {line_scan(rows, 'line')}"  # noqa: S608 -- all is quoted
    return Text(
        scan=f"(SELECT {values} FROM ({cells}))",  # noqa: S608 -- names are quoted
        names=tuple(names),
        paths=(rows.path,),
        faults=lambda _: rows.survey.rejects,
        locate=rows.locate,
        count_rows=lambda: rows.survey.num_rows,
        dialect="JSON",
    )


def _pointer(key: str) -> str:
    """Source: RFC 6901, JSON Pointer."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


# ---- objects


@dataclass
class _Objects:
    """Judges texts that should be objects, and gathers their keys in the order of their appearance."""

    connection: duckdb.DuckDBPyConnection
    name: str
    keys: dict[str, None] = field(default_factory=dict)

    def judged(self, text: bytes, cut: Cut) -> Cut:
        """Take the rows out that are no objects."""
        cut = without_damage(text, cut)
        rows = self.connection.from_arrow(pa.table({"line": _strings(text, cut)}))
        kinds = [keys for (keys,) in rows.query("rows", _KINDS).fetchall()]  # type: ignore[union-attr]
        self._add([keys for keys in kinds if keys and len(set(keys)) == len(keys)])
        if all(keys and len(set(keys)) == len(keys) for keys in kinds):
            return cut
        is_sound = np.ones(len(cut.starts), dtype=bool)
        is_sound[[index for (index,) in rows.query("rows", _NO_OBJECTS).fetchall()]] = False  # type: ignore[union-attr]
        spans = zip(cut.starts[~is_sound].tolist(), cut.ends[~is_sound].tolist(), strict=True)
        faults = [*cut.faults, *(Fault(start, end, _reason(text[start:end])) for start, end in spans)]
        faults.sort(key=lambda fault: fault.start)
        return Cut(cut.size, cut.starts[is_sound], cut.ends[is_sound], faults, is_smooth=cut.is_smooth and not faults)

    def _add(self, kinds: list[list[str]]) -> None:
        for keys in kinds:
            self.keys.update(dict.fromkeys(keys))
        if len(self.keys) > MAX_KEYS:
            remedy = "Give values, not names, to what varies."
            raise RefusedError(f"its objects have more than {MAX_KEYS:,} different keys.", where=self.name, remedy=remedy)


_KINDS = """
    WITH judged AS (SELECT row_number() OVER () AS number, TRY(json_keys(line)) AS keys FROM rows)
    SELECT keys FROM judged GROUP BY keys ORDER BY min(number)
"""
_NO_OBJECTS = """
    WITH judged AS (SELECT row_number() OVER () - 1 AS index, line, TRY(json_keys(line)) AS keys FROM rows)
    SELECT index FROM judged
    WHERE CASE WHEN keys = [] THEN json_type(line) <> 'OBJECT' ELSE keys IS NULL OR len(list_distinct(keys)) < len(keys) END
"""


def _strings(text: bytes, cut: Cut) -> pa.StringArray:
    """The rows as Arrow strings; a view of the text where they follow one another."""
    if len(cut.starts) and (cut.starts[1:] == cut.ends[:-1]).all():
        offsets = np.append(cut.starts, cut.ends[-1:]).astype(np.int32)
        return pa.StringArray.from_buffers(len(cut.starts), pa.py_buffer(offsets), pa.py_buffer(text))
    return pa.array([text[start:end] for start, end in zip(cut.starts.tolist(), cut.ends.tolist(), strict=True)], pa.string())


def _reason(row: bytes) -> str:
    """Why a row is no object."""
    try:
        value = json.loads(row, object_pairs_hook=_Pairs)
    except RecursionError:
        return "the value is nested too deeply"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if not isinstance(value, _Pairs):
        return f"not an object but {_kind(value)}"
    names = [name for name, _ in value]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"the object has {', '.join(map(repr, twice))} twice" if twice else "not JSON: its text has half a character"


class _Pairs(list[tuple[str, Any]]):
    """An object with all its keys."""


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


# ---- lines


@contextmanager
def _lines(plain: Plain, objects: _Objects, spool: Path) -> Iterator[Text]:
    def cut(text: bytes, *, is_last: bool) -> Cut:
        return objects.judged(text, cut_lines(text, is_last=is_last))

    with sound_rows(plain, cut, spool) as rows:
        if not objects.keys:
            first = rows.survey.rejects[0] if rows.survey.rejects else None
            received = f"line {first.line}: {first.reason}" if first else "objects without keys"
            raise RefusedError("no line holds a JSON object with keys.", where=plain.name, received=received, remedy=_REMEDY)
        yield _text(rows, objects, plain)


# ---- arrays


@contextmanager
def _array(plain: Plain, objects: _Objects, spool: Path) -> Iterator[Text]:
    cutter = _ArrayCutter(objects)
    with sound_rows(plain, cutter, spool, start=_after_bracket(plain), one_line=True) as rows:
        if not cutter.is_closed:
            last = rows.survey.rejects[-1] if cutter.is_broken else None
            what = f"the array is broken at line {last.line}: {last.reason}." if last else "the array does not end: the file is truncated."
            raise RefusedError(what, where=plain.name, remedy="Deliver it again.")
        if not objects.keys:
            raise RefusedError("the array holds no object with keys.", where=plain.name, remedy=_REMEDY)
        yield _text(rows, objects, plain)


def _after_bracket(plain: Plain) -> Start:
    num_bytes = num_lines = 0
    with plain.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            head, bracket, _ = block.partition(b"[")
            num_bytes += len(head) + len(bracket)
            num_lines += len(line_starts(head + bracket)) - 1
            if bracket:
                break
    return Start(num_bytes, num_lines, num_skipped=None)


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass
class _ArrayCutter:
    """The elements of an array as rows. A piece of its text begins where an element, or the array's end, is due."""

    objects: _Objects
    is_closed: bool = False
    is_broken: bool = False

    def __call__(self, text: bytes, *, is_last: bool) -> Cut:
        """As ``plain.Cutter``. After a fault of the array itself nothing more is read."""
        if self.is_broken:
            return Cut(len(text), NO_ROWS, NO_ROWS)
        letters = text.decode(errors="surrogateescape")
        spans, size, fault = self._elements(letters, is_last=is_last or len(text) > MAX_ROW_BYTES)
        offsets = _byte_offsets(letters, text, [*(edge for span in spans for edge in span), size])
        starts, ends = np.array(offsets[:-1], dtype=np.int64).reshape(-1, 2).T
        cut = Cut(offsets[-1], starts, ends, is_smooth=False)
        if fault:
            self.is_broken = True
            (start,) = _byte_offsets(letters, text, [fault[0]])
            cut = replace(cut, size=len(text), faults=[Fault(start, len(text), fault[1])])
        return self.objects.judged(text, cut) if len(cut.starts) else cut

    def _elements(self, letters: str, *, is_last: bool) -> tuple[list[tuple[int, int]], int, tuple[int, str] | None]:
        """Complete elements, how much was judged, and where and why the array is broken; all in characters."""
        spans: list[tuple[int, int]] = []
        size = start = _skip(letters, 0)
        while start < len(letters) and letters[start] != "]":
            try:
                _, end = _DECODER.raw_decode(letters, start)
            except RecursionError:
                return spans, size, (start, "the value is nested too deeply")
            except json.JSONDecodeError as error:
                return spans, size, (error.pos, error.msg) if is_last else None
            after = _skip(letters, end)
            if after == len(letters) and not is_last:
                return spans, size, None
            if letters[after : after + 1] not in {",", "]", ""}:
                return spans, size, (after, "Expecting a comma or the array's end")
            spans.append((start, end))
            size = after + (letters[after : after + 1] == ",")
            start = _skip(letters, size)
        return spans, *self._end(letters, size, start, is_last=is_last)

    def _end(self, letters: str, size: int, start: int, *, is_last: bool) -> tuple[int, tuple[int, str] | None]:
        after = _skip(letters, start + 1) if start < len(letters) else start
        if after < len(letters):
            return size, (after, "Text follows the array")
        self.is_closed |= is_last and start < len(letters)
        return (len(letters) if is_last else size), None


def _skip(letters: str, start: int) -> int:
    match = _SPACE.match(letters, start)
    return match.end() if match else start


def _byte_offsets(letters: str, text: bytes, positions: list[int]) -> list[int]:
    """Ascending positions in characters as positions in bytes."""
    if len(letters) == len(text):
        return positions
    offsets = [0]
    for before, after in pairwise([0, *positions]):
        offsets.append(offsets[-1] + len(letters[before:after].encode(errors="surrogateescape")))
    return offsets[1:]
