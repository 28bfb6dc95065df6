"""Text files of any kind as rows that DuckDB can be trusted with.

What a file is, is decided by its content: packed or not, a byte-order mark, no text at all. One pass then reads all of it
as UTF-8, cuts it into rows by the caller's rule and sets aside what is no row. Where every row of a plain file is sound,
DuckDB reads that file; else it reads a copy of the sound rows, which lies in the spool folder while it is needed. So
DuckDB never meets a broken row: it keeps every fault in memory, takes some for values, and drops others without a word.
"""

import codecs
import errno
import gzip
import io
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refit.errors import RefusedError, SourceError
from refit.sources.inputs import MAX_RAW_TEXT, Place, Reject, first_line, literal

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 16 << 20
MAX_REJECTS = 100_000
MAX_UNPACKED_BYTES = 1 << 30
MAX_UNPACKED_RATIO = 500

COPY_NAME = "rows.txt"
NO_TEXT = "\x1f\x1e"

Packing = Literal["none", "gzip", "zstd", "zip"]
Offsets = NDArray[np.int64]

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PACKINGS: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip"}
_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"SQLite format 3\x00": "a SQLite database",
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF document",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x89HDF": "an HDF5 file",
    b"Obj\x01": "an Avro file",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "packed twice",
    b"\x28\xb5\x2f\xfd": "packed twice",
    b"PK\x03\x04": "packed twice",
}
_ENDS_LF, _ENDS_CRLF, _ENDS_CR = b"\n", b"\r\n", b"\r"


# ---- what a file is


@dataclass(frozen=True)
class Plain:
    """A file as a stream of UTF-8 text.

    Attributes:
        path: where it lies.
        name: how people know it, for errors.
        size: bytes of text, where that is known without reading it.
        packing: how it is packed.
        encoding: of the text within, by Python's names.
        skip: bytes of a byte-order mark that are passed over.
        member: the file in an archive that is meant; None: the only one.
    """

    path: Path
    name: str
    packing: Packing
    encoding: str
    skip: int = 0
    member: str | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the file's own bytes are the text, under a name that DuckDB does not take for a pattern."""
        return self.packing == "none" and self.encoding == "utf-8" and not set("*?[") & set(str(self.path))

    def open(self, *, start: int = 0) -> BinaryIO:
        """The text from byte ``start`` on; to be closed by the caller.

        Raises:
            RefusedError: on reading: it is truncated, damaged, not decodable, or unpacks into far more than it is.
        """
        raw = self.path.open("rb")
        if self.is_direct:
            raw.seek(self.skip + start)
            return raw
        unpacked: io.RawIOBase = _Unpacked(raw, self.packing, self.member, self.name)
        if self.encoding != "utf-8":
            unpacked = _Decoded(unpacked, self.encoding, self.name)
        text = io.BufferedReader(unpacked, BLOCK_BYTES)
        _pass_over(text, self.skip + start)
        return text


def _pass_over(text: BinaryIO, num_bytes: int) -> None:
    while num_bytes and (piece := text.read(min(num_bytes, BLOCK_BYTES))):
        num_bytes -= len(piece)


def recognise(path: Path, name: str, encoding: str, member: str | None = None) -> Plain:
    """Find out by the content how a file is to be read.

    Args:
        path: a file on this machine.
        name: how people know it.
        encoding: of text without a byte-order mark, by Python's names.
        member: the file in an archive that is meant; None: the only one.

    Raises:
        RefusedError: it is empty, no text, or an archive of none or several files.
    """
    with path.open("rb") as raw:
        mark = raw.peek(8)
    packing: Packing = next((kind for known, kind in _PACKINGS.items() if mark.startswith(known)), "none")
    packed = Plain(path, name, packing, "utf-8", member=member)
    with packed.open() as text:
        head = text.read(BLOCK_BYTES)
    bom, marked = next(((bom, marked) for bom, marked in _BOMS if head.startswith(bom)), (b"", None))
    encoding = marked or _checked_encoding(encoding, name)
    _check_kind(head, encoding, name, is_marked=marked is not None)
    plain = Plain(path, name, packing, encoding, skip=len(bom) if encoding == "utf-8" else 0, member=member)
    _check_is_filled(plain)
    return plain


def _checked_encoding(encoding: str, name: str) -> str:
    try:
        "".encode(encoding)
    except LookupError:
        remedy = "Name one of characters, such as utf-8, latin-1 or cp1252."
        raise RefusedError(f'"{encoding}" is no encoding of characters.', where=name, remedy=remedy) from None
    known = codecs.lookup(encoding).name
    return "utf-8" if known in {"utf-8", "utf-8-sig", "ascii"} else known


def _check_kind(head: bytes, encoding: str, name: str, *, is_marked: bool) -> None:
    is_text = is_marked or (_decode_error(head[:-3]) is None and min(head, default=_SPACE) >= _TAB)
    kind = None if is_text else next((kind for mark, kind in _SIGNATURES.items() if head.startswith(mark)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive"
    if kind:
        raise RefusedError(f"the file is {kind}, not text.", where=name, remedy="Give it as plain, gzip, zstd or zip text.")
    sample = head[:4096]
    if encoding == "utf-8" and 4 * sample.count(0) > len(sample):
        wide = next(
            (wide for wide, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])) if zeros.count(0) > len(zeros) / 2), ""
        )
        remedy = f"It looks like UTF-16 without a mark: set encoding: {wide}." if wide else "Take the file out of the source."
        raise RefusedError("the file holds binary data, not UTF-8 text.", where=name, remedy=remedy)


def _check_is_filled(plain: Plain) -> None:
    with plain.open() as text:
        while block := text.read(BLOCK_BYTES):
            if block.strip():
                return
    raise RefusedError("the file is empty.", where=plain.name, remedy="Deliver it again, or take it out of the source.")


class _Unpacked(io.RawIOBase):
    """Bytes of a packed file, with its faults as errors that people understand."""

    def __init__(self, raw: BinaryIO, packing: Packing, member: str | None, name: str) -> None:
        self._raw, self._packing, self._member, self._name, self._num_bytes = raw, packing, member, name, 0
        self._stream: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        try:
            self._stream = self._stream or _unpacking(self._raw, self._packing, self._member, self._name)
            piece = self._stream.read(len(buffer))
        except RefusedError:
            raise
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, pa.ArrowException) as error:
            if self._packing == "none":
                raise
            what = f"the {self._packing} file is truncated or damaged: {first_line(error)}"
            raise RefusedError(what, where=self._name, remedy="Deliver it again.") from error
        self._num_bytes += len(piece)
        self._check_ratio()
        buffer[: len(piece)] = piece
        return len(piece)

    def _check_ratio(self) -> None:
        if self._packing == "none" or self._num_bytes <= MAX_UNPACKED_BYTES:
            return
        if self._num_bytes > MAX_UNPACKED_RATIO * self._raw.tell():
            raise RefusedError(
                f"the file unpacks into more than {MAX_UNPACKED_RATIO} times its size.",
                where=self._name,
                received=f"{self._num_bytes:,} bytes from {self._raw.tell():,}",
                remedy="If this is meant, deliver it unpacked.",
            )

    def close(self) -> None:
        self._raw.close()
        super().close()


def _unpacking(raw: BinaryIO, packing: Packing, member: str | None, name: str) -> BinaryIO:
    if packing == "gzip":
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if packing == "zstd":
        return cast("BinaryIO", pa.CompressedInputStream(raw, "zstd"))
    if packing == "zip":
        return _open_member(zipfile.ZipFile(raw), member, name)
    return raw


def _open_member(archive: zipfile.ZipFile, member: str | None, name: str) -> BinaryIO:
    members = [found for found in archive.infolist() if not found.is_dir()]
    if any(found.filename.startswith("xl/") for found in members):
        raise RefusedError("the file is an Excel workbook, not text.", where=name, remedy="Save its sheet as CSV.")
    wanted = [found for found in members if member in (None, found.filename)]
    if len(wanted) != 1:
        names = ", ".join(found.filename for found in members[:5]) or "none"
        what = f'the zip archive holds no "{member}".' if member else "the zip archive does not hold exactly one file."
        raise RefusedError(what, where=name, received=f"{len(members)} files: {names}", remedy="Name one of them as the source's member.")
    if wanted[0].flag_bits & 1:
        raise RefusedError("the zip archive is encrypted.", where=name, remedy="Deliver it without a password.")
    return cast("BinaryIO", archive.open(wanted[0]))


class _Decoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, source: io.RawIOBase, encoding: str, name: str) -> None:
        self._source, self._encoding, self._name = source, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._offset = 0
        self._ready = memoryview(b"")
        self._is_last = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        while not self._ready and not self._is_last:
            self._ready = memoryview(self._next())
        piece = self._ready[: len(buffer)]
        self._ready = self._ready[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def _next(self) -> bytes:
        block = self._source.read(BLOCK_BYTES) or b""
        pending = self._decoder.getstate()[0]
        self._is_last = not block
        try:
            encoded = self._decoder.decode(block, final=self._is_last).encode()
        except UnicodeError as error:
            offset = self._offset - len(pending) + getattr(error, "start", 0)
            raise RefusedError(
                f"byte {offset:,} of the text is not {self._encoding}.", where=self._name, remedy="Set the source's encoding."
            ) from error
        self._offset += len(block)
        return encoded

    def close(self) -> None:
        self._source.close()
        super().close()


# ---- rows


@dataclass(frozen=True)
class Fault:
    """Bytes of a text that are no row, and why."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Cut:
    """Where the rows of a text lie, in bytes.

    Attributes:
        size: how much of the text was judged; the rest waits for more text. 0: not one row is complete.
        starts: of the sound rows.
        ends: of the sound rows, with their line ends.
        faults: what is no row.
        is_smooth: DuckDB reads this text as these rows and nothing else.
    """

    size: int
    starts: Offsets
    ends: Offsets
    faults: Sequence[Fault] = ()
    is_smooth: bool = True


class Cutter(Protocol):
    """The rule that says what a row is."""

    def __call__(self, text: bytes, *, is_last: bool) -> Cut:
        """Cut a text that begins where a row begins. ``is_last``: it ends where the file ends, and all of it must be judged."""


@dataclass(frozen=True)
class Start:
    """Where the rows of a text begin.

    Attributes:
        num_bytes: before them.
        num_lines: before them.
        num_skipped: rows that DuckDB skips to get there; None: it cannot be trusted with that.
        ends: kinds of line ends before them.
    """

    num_bytes: int = 0
    num_lines: int = 0
    num_skipped: int | None = 0
    ends: frozenset[bytes] = frozenset()


FROM_THE_START = Start()


@dataclass(frozen=True)
class Piece:
    """Some rows of a text; ``text`` is cut short where ``size`` says that there was more (a line without end)."""

    text: bytes
    size: int
    cut: Cut


@dataclass(frozen=True, slots=True)
class Mark:
    """A piece: its bytes, sound rows and line ends, and whether every line is one row."""

    size: int
    num_rows: int
    num_lines: int
    is_even: bool


@dataclass
class Survey:
    """What a pass over a text found.

    Attributes:
        marks: of the pieces, in order.
        rejects: what is no row, with lines.
        num_rows: sound rows.
        longest: bytes of the longest sound row.
        ends: kinds of line ends of rows, and of lines that are none.
        is_smooth: DuckDB can be given the text as it is.
        has_long_rows: a row spans lines.
    """

    marks: list[Mark] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_rows: int = 0
    num_lines: int = 0
    longest: int = 0
    ends: set[bytes] = field(default_factory=set)
    is_smooth: bool = True
    has_long_rows: bool = False


@dataclass(frozen=True)
class Rows:
    """Sound rows that lie in a file for DuckDB.

    Attributes:
        path: the file itself, or a copy of its sound rows.
        num_skipped: rows at its beginning that DuckDB must skip.
        line_end: of every row.
        survey: what else is known of them.
        locate: as in ``Text``.
    """

    path: Path
    num_skipped: int
    line_end: bytes
    survey: Survey
    locate: Callable[[Sequence[int]], Iterator[Place]]

    def options(self) -> str:
        """What DuckDB's read_csv must be told of the file."""
        return (
            "auto_detect=false, hive_partitioning=false, "
            f"header=false, compression='none', skip={self.num_skipped}, new_line={_END_NAMES[self.line_end]}, "
            f"max_line_size={max(2 << 20, 2 * self.survey.longest)}, parallel={str(not self.survey.has_long_rows).lower()}"
        )


# With strict_mode DuckDB 2.0.0 reads two lines that end in CR LF as one where new_line says so.
_END_NAMES = {_ENDS_LF: r"'\n', strict_mode=true", _ENDS_CRLF: r"'\r\n', strict_mode=false"}


@contextmanager
def sound_rows(plain: Plain, cutter: Cutter, spool: Path, *, start: Start = FROM_THE_START, one_line: bool = False) -> Iterator[Rows]:
    """Read a whole text, and give its sound rows to DuckDB: the file itself, or a copy that is gone afterwards.

    Args:
        plain: the text.
        cutter: says what a row is.
        spool: folder for the copy.
        start: where rows begin.
        one_line: line ends within rows mean nothing, and become spaces in a copy.

    Raises:
        RefusedError: it cannot be read to its end, or more than ``MAX_REJECTS`` of its lines are no rows.
        SourceError: there is no room for the copy.
    """
    survey = Survey(num_lines=start.num_lines, ends=set(start.ends))
    is_copied = one_line or not plain.is_direct or start.num_skipped is None
    as_text = _one_line_text if one_line else _sound_text
    with tempfile.TemporaryDirectory(dir=spool, prefix="rows-") as folder:
        copy = Path(folder) / COPY_NAME
        pieces = _surveyed(plain, cutter, start, survey)
        _write(map(as_text, pieces), copy, plain.name) if is_copied else _exhaust(pieces)
        if not is_copied and not (survey.is_smooth and len(survey.ends) <= 1 and _ENDS_CR not in survey.ends):
            is_copied = True
            _write(map(as_text, read_pieces(plain, cutter, start)), copy, plain.name)
        yield Rows(
            path=copy.absolute() if is_copied else plain.path.absolute(),
            num_skipped=0 if is_copied else start.num_skipped or 0,
            line_end=_ENDS_LF if is_copied or not survey.ends else next(iter(survey.ends)),
            survey=survey,
            locate=lambda rows: _locate(plain, cutter, start, survey, rows),
        )


def _exhaust(pieces: Iterable[Piece]) -> None:
    for _ in pieces:
        pass


def read_pieces(plain: Plain, cutter: Cutter, start: Start) -> Iterator[Piece]:
    """The text in pieces that end where a row ends; 1 MiB each unless a row is longer.

    Raises:
        RefusedError: it cannot be read to its end.
    """
    with plain.open(start=start.num_bytes) as stream:
        rest = b""
        is_last = False
        while rest or not is_last:
            block = b"" if is_last else stream.read(max(BLOCK_BYTES, len(rest)))
            is_last = is_last or not block
            text = rest + block
            if not text:
                return
            cut = without_damage(text, cutter(text, is_last=is_last))
            if cut.size:
                rest = text[cut.size :]
                yield Piece(text[: cut.size] if rest else text, cut.size, cut)
            elif len(text) > MAX_ROW_BYTES:
                piece, rest = _overlong(text, stream)
                yield piece
            else:
                rest = text


NO_ROWS: Offsets = np.empty(0, dtype=np.int64)


def _overlong(text: bytes, stream: BinaryIO) -> tuple[Piece, bytes]:
    """A first line that cannot be part of a row, and what follows it."""
    lines = line_starts(text)
    if len(lines) > 1:
        size = int(lines[1])
        reason = f"the row does not end within {MAX_ROW_BYTES >> 20} MiB; a quote may not be closed"
        return Piece(text[:size], size, Cut(size, NO_ROWS, NO_ROWS, [Fault(0, size, reason)], is_smooth=False)), text[size:]
    size, rest = len(text), b""
    while block := stream.read(BLOCK_BYTES):
        end = block.find(b"\n") + 1
        size += end or len(block)
        rest = block[end:] if end else b""
        if end:
            break
    head = text[: 4 * MAX_RAW_TEXT] + b"\n"
    reason = f"the line is longer than {MAX_ROW_BYTES >> 20} MiB"
    return Piece(head, size, Cut(size, NO_ROWS, NO_ROWS, [Fault(0, len(head), reason)], is_smooth=False)), rest


def without_damage(text: bytes, cut: Cut) -> Cut:
    """Take the rows out that are not UTF-8 or hold a NUL character."""
    judged = text[: cut.size] if cut.size < len(text) else text
    if not cut.size or (b"\0" not in judged and _decode_error(judged) is None):
        return cut
    found = [(start, end, _damage(text[start:end])) for start, end in zip(cut.starts.tolist(), cut.ends.tolist(), strict=True)]
    sound = np.array([reason is None for _, _, reason in found], dtype=bool)
    faults = [*cut.faults, *(Fault(start, end, reason) for start, end, reason in found if reason)]
    faults.sort(key=lambda fault: fault.start)
    return Cut(cut.size, cut.starts[sound], cut.ends[sound], faults, is_smooth=False)


def _damage(row: bytes) -> str | None:
    error = _decode_error(row)
    if error is not None:
        return (
            f"byte {error.start + 1} of the row (0x{row[error.start]:02x}) is not UTF-8; if all rows are alike, set the source's encoding"
        )
    return "the row holds a NUL character" if b"\0" in row else None


def _decode_error(text: bytes) -> UnicodeDecodeError | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error
    return None


def _surveyed(plain: Plain, cutter: Cutter, start: Start, survey: Survey) -> Iterator[Piece]:
    for piece in read_pieces(plain, cutter, start):
        text, cut = piece.text, piece.cut
        num_rows, num_lines = len(cut.starts), _count_line_ends(text)
        is_even = num_rows == num_lines and _is_seamless(text, cut)
        if not is_even:
            lines = line_starts(text)
            _add_rejects(survey, text, cut, lines, plain.name)
            survey.has_long_rows |= _spans_lines(lines, cut)
            survey.ends |= line_ends(text, np.append(lines[1:], len(text)))
        survey.marks.append(Mark(piece.size, num_rows, num_lines, is_even))
        survey.num_lines += num_lines
        survey.num_rows += num_rows
        survey.is_smooth &= cut.is_smooth
        if num_rows:
            survey.longest = max(survey.longest, int((cut.ends - cut.starts).max()))
            survey.ends |= line_ends(text, cut.ends)
        yield piece


def has_bare_returns(text: bytes, ends: Offsets) -> bool:
    """Whether a CR stands before anything but a LF; ``ends``: the byte after each LF."""
    if b"\r" not in text:
        return False
    array = np.frombuffer(text, dtype=np.uint8)
    return bool(np.count_nonzero(array == _CR) != np.count_nonzero(array[np.maximum(ends - 2, 0)] == _CR))


def _is_seamless(text: bytes, cut: Cut) -> bool:
    """Whether the text is its rows, each with its line end."""
    if not len(cut.starts) or cut.starts[0] != 0 or cut.ends[-1] != len(text) or not text.endswith(b"\n"):
        return False
    return bool((cut.starts[1:] == cut.ends[:-1]).all())


def _count_line_ends(text: bytes) -> int:
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return len(line_starts(text)) - (not text.endswith((b"\n", b"\r")))
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == _LF))


def _spans_lines(lines: Offsets, cut: Cut) -> bool:
    last = np.searchsorted(lines, cut.ends - 1, side="right")
    return bool((np.searchsorted(lines, cut.starts, side="right") != last).any())


def _add_rejects(survey: Survey, text: bytes, cut: Cut, lines: Offsets, name: str) -> None:
    for fault in cut.faults:
        if len(survey.rejects) == MAX_REJECTS:
            first = survey.rejects[0]
            raise RefusedError(
                f"more than {MAX_REJECTS:,} of its lines are broken; the first is line {first.line}: {first.reason}.",
                where=name,
                remedy="Mend the file or the source's options.",
            )
        line = survey.num_lines + _line_of(lines, fault.start)
        survey.rejects.append(Reject(reason=fault.reason, text=raw_text(text[fault.start : fault.end]), line=line))


def _line_of(lines: Offsets, offset: int) -> int:
    return int(np.searchsorted(lines, offset, side="right"))


def line_starts(text: bytes) -> Offsets:
    """Where the lines of a text begin; a line ends with LF, CR LF or CR."""
    array = np.frombuffer(text, dtype=np.uint8)
    is_end = array == _LF
    if b"\r" in text:
        is_return = array == _CR
        is_return[:-1] &= ~is_end[1:]
        is_end |= is_return
    ends = np.flatnonzero(is_end) + 1
    if len(ends) and ends[-1] == len(text):
        ends = ends[:-1]
    return np.concatenate([np.zeros(1, dtype=np.int64), ends]) if text else NO_ROWS


_LF, _CR, _TAB, _SPACE = b"\n\r\t "


def line_ends(text: bytes, ends: Offsets) -> frozenset[bytes]:
    """Kinds of line ends of the rows that end at ``ends``."""
    array = np.frombuffer(text, dtype=np.uint8)
    last = array[ends - 1]
    is_feed = last == _LF
    has_return = array[np.maximum(ends - 2, 0)] == _CR
    kinds = {
        _ENDS_LF: (is_feed & ~has_return).any(),
        _ENDS_CRLF: (is_feed & has_return).any(),
        _ENDS_CR: (last == _CR).any(),
    }
    return frozenset(kind for kind, is_there in kinds.items() if is_there)


def raw_text(row: bytes) -> str:
    """A row for people: without its line end, cut at ``MAX_RAW_TEXT`` characters."""
    return row[: 4 * MAX_RAW_TEXT].decode(errors="backslashreplace")[:MAX_RAW_TEXT].rstrip("\r\n")


def _write(texts: Iterable[bytes], path: Path, name: str) -> None:
    try:
        with path.open("wb") as copy:
            copy.writelines(texts)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceError("there is no room for a copy of its rows.", where=name, remedy=f"Make room in {path.parent.parent}.") from error


def _sound_text(piece: Piece) -> bytes:
    """The sound rows of a piece, each with LF at its end."""
    text, starts, ends = piece.text, piece.cut.starts, piece.cut.ends
    if not len(starts):
        return b""
    if b"\r" in text or ends[-1] == len(text) != text.rfind(b"\n") + 1:
        return b"".join(text[start:end].rstrip(b"\r\n") + b"\n" for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    breaks = np.flatnonzero(ends[:-1] != starts[1:])
    firsts, lasts = [int(starts[0]), *starts[breaks + 1].tolist()], [*ends[breaks].tolist(), int(ends[-1])]
    return b"".join(text[first:last] for first, last in zip(firsts, lasts, strict=True))


def checked_names(names: Sequence[str], where: str, remedy: str) -> list[str]:
    """The names, with ``column_3`` for the third column where it has none.

    Raises:
        RefusedError: two are one to SQL, which knows no case.
    """
    filled = [name or f"column_{index}" for index, name in enumerate(names, start=1)]
    counts = Counter(name.casefold() for name in filled)
    twice = sorted({name for name in filled if counts[name.casefold()] > 1})
    if twice:
        what = "names of columns stand twice, or differ in upper and lower case only."
        raise RefusedError(what, where=where, received=", ".join(map(repr, twice)), remedy=remedy)
    return filled


def cut_lines(text: bytes, *, is_last: bool) -> Cut:
    """Every line is a row; blank lines are none."""
    lines = line_starts(text)
    size = len(text) if is_last or text.endswith(b"\n") else int(lines[-1])
    bounds = np.append(lines[lines < size], size)
    starts, ends = bounds[:-1], bounds[1:]
    first = np.frombuffer(text, dtype=np.uint8)[starts]
    is_row = np.ones(len(starts), dtype=bool)
    for suspect in np.flatnonzero((first == _LF) | (first == _CR) | (first == _TAB) | (first == _SPACE)).tolist():
        is_row[suspect] = not is_blank(text[starts[suspect] : ends[suspect]])
    return Cut(size, starts[is_row], ends[is_row], is_smooth=bool(is_row.all()))


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but spaces, tabs and its end."""
    return not line.strip(b" \t\r\n")


def line_scan(rows: Rows, column: str) -> str:
    """A table expression of one column: every row whole. The delimiter is a character that no sound row holds."""
    columns = f"{{{literal(column)}: 'VARCHAR'}}"
    dialect = f"delim='\0', quote='', escape='', nullstr={literal(NO_TEXT)}"
    return f"read_csv({literal(str(rows.path))}, columns={columns}, {dialect}, {rows.options()})"


def _one_line_text(piece: Piece) -> bytes:
    """The sound rows of a piece, each on one line."""
    flat = piece.text.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"".join(flat[start:end] + b"\n" for start, end in zip(piece.cut.starts.tolist(), piece.cut.ends.tolist(), strict=True))


# ---- places


def _locate(plain: Plain, cutter: Cutter, start: Start, survey: Survey, rows: Sequence[int]) -> Iterator[Place]:
    wanted = np.asarray(rows, dtype=np.int64)
    row, line, taken = 0, start.num_lines + 1, 0
    with plain.open(start=start.num_bytes) as stream:
        for mark in survey.marks:
            if taken == len(wanted):
                return
            until = int(np.searchsorted(wanted, row + mark.num_rows))
            if until > taken:
                cut = None if mark.is_even else cutter
                yield from places(stream.read(mark.size), cut, wanted[taken:until] - row, line)
            else:
                _pass_over(stream, mark.size)
            row, line, taken = row + mark.num_rows, line + mark.num_lines, until


def places(text: bytes, cutter: Cutter | None, rows: Offsets, first_line_number: int) -> Iterator[Place]:
    """Where rows of a piece stand; without a cutter every line is a row."""
    lines = line_starts(text)
    if cutter is None:
        starts, ends = lines[rows], np.append(lines, len(text))[rows + 1]
    else:
        starts, ends = (bounds[rows] for bounds in _bounds(text, cutter))
    numbers = np.searchsorted(lines, starts, side="right") - 1 + first_line_number
    for number, begin, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
        yield Place(line=number, text=raw_text(text[begin:end]))


def _bounds(text: bytes, cutter: Cutter) -> tuple[Offsets, Offsets]:
    """Starts and ends of all sound rows of a piece."""
    starts, ends, done = [NO_ROWS], [NO_ROWS], 0
    while done < len(text):
        rest = text[done:]
        cut = without_damage(rest, cutter(rest, is_last=True))
        starts.append(cut.starts + done)
        ends.append(cut.ends + done)
        done += cut.size
    return np.concatenate(starts), np.concatenate(ends)
