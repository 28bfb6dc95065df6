"""IDX files, the MNIST family's format: tensors of one type, gzipped or not, with a file of labels beside them.

A file is read as a stream, a batch at a time, and is refused unless it ends exactly where its header says.
Source: the section "The IDX file format" of http://yann.lecun.com/exdb/mnist/.
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from refit.config import IdxSource, digest
from refit.errors import RefusedError, SourceError
from refit.records import SourceRecord
from refit.schema import ARROW_TYPES, column_of, column_type
from refit.sources import locations
from refit.sources.inputs import BATCH_ROWS, Batches, File, Input, first_line
from refit.sources.seen import Seen, digest_files

_TYPES = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}
_MAX_DIMENSIONS = 4
_MAX_ROW_BYTES = 256 << 20
_BATCH_BYTES = 32 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_REMEDY = "Fetch the file anew."


def list_inputs(source: IdxSource, _known: Mapping[str, SourceRecord], seen: Seen) -> list[Input]:
    """An input for each file of images, with the file of labels that stands at its place in the order of names.

    Raises:
        SourceError: no file is there, or the numbers of files of images and of labels differ.
    """
    images = locations.list_files(source.path, source)
    labels = locations.list_files(source.labels, source) if source.labels else []
    if labels and len(labels) != len(images):
        raise SourceError(
            "each file of images needs one file of labels.",
            where=f"{source.path} and {source.labels}",
            expected=f"{len(images)} files of labels",
            received=f"{len(labels)}: {', '.join(file.name for file in labels[:3])}",
            remedy="Mend the two patterns; the files are matched in the order of their names.",
        )
    pairs = [(file, *labels[place : place + 1]) for place, file in enumerate(images)]
    digests = iter(digest_files([file for pair in pairs for file in pair], source, seen))
    return [
        Input(name=pair[0].name, digest=digest([source.kind, *(next(digests) for _ in pair)]), source=source, files=pair) for pair in pairs
    ]


@contextlib.contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Batches]:
    """The rows of a file of images: ``image`` as a tensor in the file's type, and ``label`` as int64 where there are labels.

    A file of three dimensions gives tensors ``[height, width, 1]``, one of four ``[height, width, channels]``, one of two ``[n]``;
    one of one dimension gives the column ``value``. Batches hold 32 MiB at most.

    Raises:
        RefusedError: a file is no IDX file, is damaged, or ends elsewhere than its header says (while reading, for gzipped
            files); images and labels differ in number.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_open_part(file, found, spool)) for file in found.files]
        _check_labels(parts)
        columns = [_field(part, is_label=place > 0) for place, part in enumerate(parts)]
        schema = pa.schema(columns)
        yield Batches(columns=tuple(column_of(field) for field in schema), read=lambda: _read(parts, schema))


@dataclass(frozen=True)
class _Part:
    """An open file behind its header: rows of ``shape`` in ``dtype`` (big-endian, as stored)."""

    name: str
    stream: IO[bytes] | gzip.GzipFile
    dtype: np.dtype
    num_rows: int
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, num_rows: int) -> np.ndarray:
        """The next rows, ``[num_rows, *shape]`` in the machine's byte order."""
        content = _read_exactly(self.stream, num_rows * self.row_bytes, self.name)
        values = np.frombuffer(content, self.dtype).reshape(num_rows, *self.shape)
        return values.astype(self.dtype.newbyteorder("="), copy=False)


@contextlib.contextmanager
def _open_part(file: File, found: Input, spool: Path) -> Iterator[_Part]:
    if not isinstance(found.source, IdxSource):
        raise TypeError(type(found.source))
    with locations.local_path(file, found.source, spool) as path, path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        with gzip.open(raw) if is_gzip else contextlib.nullcontext(raw) as stream:
            part = _read_header(stream, file.name)
            if not is_gzip:
                _check_length(part, path.stat().st_size - raw.tell())
            yield part


def _read_header(stream: IO[bytes] | gzip.GzipFile, name: str) -> _Part:
    magic = _read_exactly(stream, 4, name)
    dtype, num_dimensions = _TYPES.get(magic[2]), magic[3]
    if magic[:2] != b"\0\0" or dtype is None or not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        expected = f"two zero bytes, a type ({', '.join(f'{code:02x}' for code in _TYPES)}), 1 to {_MAX_DIMENSIONS} dimensions"
        raise RefusedError("this is no IDX file: its first four bytes are wrong.", where=name, expected=expected, received=magic.hex(" "))
    sizes = np.frombuffer(_read_exactly(stream, 4 * num_dimensions, name), ">u4").tolist()
    part = _Part(name, stream, np.dtype(dtype).newbyteorder(">"), sizes[0], (*sizes[1:], 1) if num_dimensions == 3 else tuple(sizes[1:]))
    if not 0 < part.row_bytes <= _MAX_ROW_BYTES:
        expected = f"1 to {_MAX_ROW_BYTES:,} bytes a row"
        raise RefusedError("the header's dimensions make no sense.", where=name, expected=expected, received=" x ".join(map(str, sizes)))
    return part


def _read_exactly(stream: IO[bytes] | gzip.GzipFile, num_bytes: int, name: str) -> bytes:
    content = _read_at_most(stream, num_bytes, name)
    if len(content) < num_bytes:
        raise RefusedError("the file ends too early.", where=name, remedy=_REMEDY)
    return content


def _read_at_most(stream: IO[bytes] | gzip.GzipFile, num_bytes: int, name: str) -> bytes:
    try:
        return stream.read(num_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RefusedError(f"the gzipped file is damaged: {first_line(error)}", where=name, remedy=_REMEDY) from error


def _check_length(part: _Part, num_bytes: int) -> None:
    expected = part.num_rows * part.row_bytes
    if num_bytes != expected:
        raise RefusedError(
            "the file's length differs from what its header says.",
            where=part.name,
            expected=f"{expected:,} bytes behind the header",
            received=f"{num_bytes:,}",
            remedy=_REMEDY,
        )


def _check_labels(parts: list[_Part]) -> None:
    images = parts[0]
    for labels in parts[1:]:
        if labels.shape or labels.dtype.kind == "f":
            received = f"{len(labels.shape) + 1} dimensions of {labels.dtype.newbyteorder('=')}"
            raise RefusedError("this is no file of labels.", where=labels.name, expected="1 dimension of whole numbers", received=received)
        if labels.num_rows != images.num_rows:
            raise RefusedError(
                f"the labels in {labels.name} are not as many as the images.",
                where=images.name,
                expected=f"{images.num_rows:,} labels",
                received=f"{labels.num_rows:,}",
                remedy="Mend the source's patterns; files are matched in the order of their names.",
            )


def _field(part: _Part, *, is_label: bool) -> pa.Field:
    element = pa.from_numpy_dtype(part.dtype.newbyteorder("="))
    if part.shape:
        return pa.field("image", pa.fixed_shape_tensor(element, part.shape))
    return pa.field("label" if is_label else "value", ARROW_TYPES[column_type(element)])


def _read(parts: list[_Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    num_rows = parts[0].num_rows
    batch_rows = max(1, min(BATCH_ROWS, _BATCH_BYTES // sum(part.row_bytes for part in parts)))
    for start in range(0, num_rows, batch_rows):
        wanted = min(batch_rows, num_rows - start)
        arrays = [_array(part.rows(wanted), field.type) for part, field in zip(parts, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
    for part in parts:
        _check_end(part)


def _array(values: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    if values.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    return pa.array(values).cast(arrow_type)


def _check_end(part: _Part) -> None:
    """Also reads a gzipped file's checksum, which stands behind its last row."""
    if _read_at_most(part.stream, 1, part.name):
        raise RefusedError("the file goes on behind its last row.", where=part.name, remedy=_REMEDY)
