"""Image files: in class folders, or named row by row in a table. JPEG, PNG, GIF (first frame) and BMP, told by content.

A file that cannot be decoded, or does not have the shape that the job asks for, is a reject and stops no other. Files are
fetched and decoded in threads (Pillow releases the interpreter's lock) and come out in order, in bounded memory.
"""

import contextlib
import io
import logging
import math
import os
import posixpath
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image, UnidentifiedImageError

from refit import inference
from refit.casting import sealed_connection, text_cast
from refit.config import CsvSource, ImagesSource, digest
from refit.errors import NothingThereError, RefusedError, SourceError
from refit.records import SourceRecord
from refit.schema import ARROW_TYPES, column_of, column_type
from refit.sources import delimited, locations
from refit.sources.inputs import Batches, File, Input, Reject, first_line, identifier
from refit.sources.seen import Seen, digest_files
from refit.sources.stores import TransientError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")
MAX_FILE_BYTES = 256 << 20
BATCH_IMAGES = 256
BATCH_BYTES = 32 << 20
_PARQUET_MAGIC = b"PAR1"
_FORMATS = ("JPEG", "PNG", "GIF", "BMP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BYTES_A_PIXEL = 4
_LARGE_IMAGE_BYTES = 128 << 20
_FETCHING_THREADS = 16
_AHEAD = 4
_DRAFT_MARGIN = 2
_log = logging.getLogger(__name__)

_Image = np.ndarray | bytes
_Shape = tuple[int, int, int]
_Box = tuple[float, float, float, float]


# ---- inputs


def list_inputs(source: ImagesSource, _known: Mapping[str, SourceRecord], seen: Seen) -> list[Input]:
    """An input for each class folder that holds images, or for the manifest.

    Files without an image's suffix, and hidden files and folders, are passed over in class folders; a manifest may name any.

    Raises:
        SourceError: the folder is missing or has no class folders; the manifest is missing or lacks the column of files.
    """
    return _list_tables(source, seen) if source.manifest else _list_classes(source, seen)


def _list_classes(source: ImagesSource, seen: Seen) -> list[Input]:
    classes: dict[str, list[File]] = {}
    loose = []
    for file in locations.list_folder(source.path, source, SUFFIXES):
        folders = PurePosixPath(_relative(file, source)).parts[:-1]
        if not folders:
            loose.append(file)
        else:
            classes.setdefault(folders[0], []).append(file)
    _check_classes(source, classes, loose)
    return [_class_input(source, label, classes[label], seen) for label in sorted(classes)]


def _check_classes(source: ImagesSource, classes: dict[str, list[File]], loose: list[File]) -> None:
    folder = locations.expand_variables(source.path)
    if not classes:
        raise NothingThereError(
            "no image lies in a class folder.",
            where=folder,
            expected=f"{posixpath.join(folder, '<label>', '<name>.jpg')} (or {', '.join(SUFFIXES[1:])})",
            received=f"{len(loose)} images in the folder itself" if loose else "no image at all",
            remedy="Sort the images into a folder for each class, or name their labels in a table: manifest.",
        )
    if loose:
        _log.warning("%s: %d images lie in no class folder and are passed over, such as %s", folder, len(loose), loose[0].name)


def _class_input(source: ImagesSource, label: str, files: list[File], seen: Seen) -> Input:
    ordered = sorted(files, key=lambda file: _relative(file, source))
    name = posixpath.join(locations.expand_variables(source.path), label)
    return Input(name=name, digest=_digest(source, [], ordered, seen), source=source, files=tuple(ordered))


def _list_tables(source: ImagesSource, seen: Seen) -> list[Input]:
    return [_table_input(source, table, seen) for table in locations.list_files(str(source.manifest), source)]


def _table_input(source: ImagesSource, table: File, seen: Seen) -> Input:
    """A table that cannot be read is an input all the same: opening it says what is wrong."""
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="refit-") as spool, contextlib.suppress(RefusedError):
        given = _read_manifest(table, source, Path(spool)).rows["path"].to_pylist()
        names = [name for name in dict.fromkeys(map(_plain_name, given)) if name]
    suffixes = sorted({PurePosixPath(name).suffix for name in names})
    there = {_relative(file, source): file for file in locations.list_folder(source.path, source, suffixes)} if names else {}
    files = [there[name] for name in names if name in there]
    return Input(name=table.name, digest=_digest(source, [table], files, seen), source=source, files=(table, *files))


def _digest(source: ImagesSource, tables: list[File], files: list[File], seen: Seen) -> str:
    """Digest of how to read, of the tables' content, and of the names and contents of the images."""
    reading = source.model_dump(mode="json", exclude={"path", "manifest", "endpoint", "region"})
    contents = digest_files([*tables, *files], source, seen)
    names = [_relative(file, source) for file in files]
    return digest([reading, contents[: len(tables)], list(zip(names, contents[len(tables) :], strict=True))])


def _relative(file: File, source: ImagesSource) -> str:
    return str(PurePosixPath(file.name).relative_to(PurePosixPath(locations.expand_variables(source.path))))


def _plain_name(name: str | None) -> str | None:
    """The name as the folder's listing has it; None where there is none, or where it leaves the folder."""
    plain = posixpath.normpath(name) if name else "."
    return None if plain == "." or plain.startswith("/") or plain.split("/")[0] == ".." else plain


# ---- manifests


@dataclass(frozen=True)
class _Manifest:
    """A table's rows, ``path`` (as the table names it) first; and the lines that are no rows."""

    rows: pa.Table
    rejects: list[Reject]


def _read_manifest(file: File, source: ImagesSource, spool: Path) -> _Manifest:
    try:
        return _read_parquet(file, source, spool) or _read_csv(file, source, spool)
    except (duckdb.Error, pa.ArrowException) as error:
        raise RefusedError(f"the manifest cannot be read: {first_line(error)}", where=file.name, remedy="Write it anew.") from error


def _read_parquet(file: File, source: ImagesSource, spool: Path) -> _Manifest | None:
    """None where it is no Parquet file."""
    with locations.local_path(file, source, spool) as path:
        with path.open("rb") as opened:
            if opened.read(4) != _PARQUET_MAGIC:
                return None
        with pq.ParquetFile(path) as table:
            _check_names(table.schema_arrow.names, file, source)
            return _Manifest(_typed(table.read(), file, source), [])


def _read_csv(file: File, source: ImagesSource, spool: Path) -> _Manifest:
    """As a CSV source's rows; a column gets a type if all its values fit it, and else is text."""
    csv = CsvSource(kind="csv", path=str(source.manifest), endpoint=source.endpoint, region=source.region)
    with (
        delimited.open_sound(Input(name=file.name, digest="", source=csv, files=(file,)), spool) as text,
        sealed_connection(map(str, text.paths)) as connection,
    ):
        _check_names(list(text.names), file, source)
        guesses = {name: inference.Guess() for name in text.names}
        inference.guess_types(connection, text, [name for name in guesses if name != source.file_column], guesses, file.name)
        casts = ", ".join(f"{text_cast(identifier(name), guess.type)} AS {identifier(name)}" for name, guess in guesses.items())
        rows = connection.sql(f"SELECT {casts} FROM {text.scan}").to_arrow_table()  # noqa: S608 -- quoted names and a source's scan
        return _Manifest(_typed(rows, file, source), text.faults(connection))


def _check_names(names: list[str], file: File, source: ImagesSource) -> None:
    if source.file_column not in names:
        raise SourceError(
            f'the manifest has no column "{source.file_column}" that names the files.',
            where=file.name,
            received=", ".join(names),
            remedy="Name its column of files: file_column. A CSV manifest has commas and a header.",
        )
    folded = [name.casefold() for name in ("path", "image", *(name for name in names if name != source.file_column))]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    if twice or names.count(source.file_column) > 1:
        listing = ", ".join(map(repr, twice or [source.file_column]))
        remedy = "Rename them; path and image are the columns of the images themselves, and capitals do not tell columns apart."
        raise SourceError(f"the columns {listing} of the manifest have a name that is taken.", where=file.name, remedy=remedy)


def _typed(rows: pa.Table, file: File, source: ImagesSource) -> pa.Table:
    """Every column in the type that it is stored as, that of files first and called ``path``."""
    names = [source.file_column, *(name for name in rows.column_names if name != source.file_column)]
    arrays = [_cast(rows, name, pa.string() if name == source.file_column else None, file) for name in names]
    return pa.table(arrays, names=["path", *names[1:]])


def _cast(rows: pa.Table, name: str, wanted: pa.DataType | None, file: File) -> pa.ChunkedArray:
    values = rows[name]
    try:
        return values.cast(wanted or ARROW_TYPES[column_type(values.type)])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f'the column "{name}" of the manifest cannot be stored: {first_line(error)}',
            where=file.name,
            expected="numbers, strings, booleans, dates or timestamps",
            received=str(values.type),
        ) from error


# ---- rows


@contextlib.contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Batches]:
    """The images of a class folder or a manifest, in order: ``path``, ``image``, and ``label`` or the manifest's columns.

    ``image`` is a uint8 tensor of the source's shape, or the file's bytes (``store: encoded``), which were decoded once all the
    same. Batches hold 256 images or 32 MiB at most. With ``resize``, JPEGs are reduced while they are decoded (to twice the
    shape at least), transparent pixels are laid over black unless the shape has four channels, 16-bit grey keeps its upper
    eight bits, and what EXIF says of the orientation is done; encoded images are left as they are.

    Raises:
        RefusedError: the manifest cannot be read.
        SourceError: a file that was listed cannot be read any more.
    """
    source = found.source
    if not isinstance(source, ImagesSource):
        raise TypeError(type(source))
    rows = _table_rows(found, source, spool) if source.manifest else _class_rows(found, source)
    num_threads = _FETCHING_THREADS if "://" in locations.expand_variables(source.path) else len(os.sched_getaffinity(0))
    with _pillow_quiet(), ThreadPoolExecutor(num_threads, thread_name_prefix="refit-images") as pool:
        try:
            reader = _Reader(source, rows, spool, pool, num_threads * _AHEAD)
            yield Batches(columns=tuple(column_of(column) for column in reader.schema), read=reader.read, rejects=rows.rejects)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Pillow warns of what is checked here, and of broken metadata, which is not read; ``-W error`` must not change what is kept."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@dataclass(frozen=True)
class _Rows:
    """What is to be read: a table whose first column is ``path``, and for each of its rows the file, or None where it is not there."""

    table: pa.Table
    files: list[File | None]
    rejects: list[Reject]


def _class_rows(found: Input, source: ImagesSource) -> _Rows:
    paths = [_relative(file, source) for file in found.files]
    labels = [path.split("/")[0] for path in paths]
    table = pa.table({"path": pa.array(paths, pa.string()), "label": pa.array(labels, pa.string())})
    return _Rows(table, list(found.files), [])


def _table_rows(found: Input, source: ImagesSource, spool: Path) -> _Rows:
    manifest = _read_manifest(found.files[0], source, spool)
    there = {_relative(file, source): file for file in found.files[1:]}
    given = manifest.rows["path"].to_pylist()
    plain = [_plain_name(name) for name in given]
    paths = [name if name in there else raw for name, raw in zip(plain, given, strict=True)]
    table = manifest.rows.set_column(0, "path", pa.array(paths, pa.string()))
    return _Rows(table, [there.get(name) if name else None for name in plain], manifest.rejects)


@dataclass(frozen=True)
class _Reader:
    """Decodes the rows' files in a pool, so many ahead, and packs them into batches in order."""

    source: ImagesSource
    rows: _Rows
    spool: Path
    pool: ThreadPoolExecutor
    max_ahead: int
    large: threading.Lock = field(default_factory=threading.Lock)

    @property
    def schema(self) -> pa.Schema:
        """Of the batches: the rows' columns with ``image`` in the second place."""
        stored = pa.binary() if self.source.store == "encoded" else pa.fixed_shape_tensor(pa.uint8(), self.source.shape)
        return self.rows.table.schema.insert(1, pa.field("image", stored))

    def read(self) -> Iterator[pa.RecordBatch]:
        """Yield batches; images that cannot be used are added to the rows' rejects."""
        places: list[int] = []
        images: list[_Image] = []
        num_bytes = 0
        for place, image in self._usable():
            size = len(image) if isinstance(image, bytes) else image.nbytes
            if images and (len(images) == BATCH_IMAGES or num_bytes + size > BATCH_BYTES):
                yield self._batch(places, images)
                places, images, num_bytes = [], [], 0
            places.append(place)
            images.append(image)
            num_bytes += size
        if images:
            yield self._batch(places, images)

    def _usable(self) -> Iterator[tuple[int, _Image]]:
        for place, future in self._submitted():
            try:
                yield place, future.result()
            except _Unusable as fault:
                name = self.rows.table["path"][place].as_py()
                self.rows.rejects.append(Reject(reason=str(fault), text="", row=place, file=name))

    def _submitted(self) -> Iterator[tuple[int, Future[_Image]]]:
        """Places of rows in order, with a future that is done or about to be; bounded in number and in bytes."""
        waiting: deque[tuple[int, int, Future[_Image]]] = deque()
        num_bytes = 0
        for place, file in enumerate(self.rows.files):
            cost = max(file.size if file else 0, math.prod(self.source.shape or ()))
            while waiting and (len(waiting) >= self.max_ahead or num_bytes + cost > BATCH_BYTES):
                done, freed, future = waiting.popleft()
                num_bytes -= freed
                yield done, future
            waiting.append((place, cost, self.pool.submit(self._load, place)))
            num_bytes += cost
        yield from ((place, future) for place, _, future in waiting)

    def _load(self, place: int) -> _Image:
        file = self.rows.files[place]
        if file is None:
            raise _Unusable(_absence(self.rows.table["path"][place].as_py()))
        content = _fetch(file, self.source, self.spool)
        if self.source.store == "encoded":
            _check_encoded(content, self.source.shape, self.large)
            return content
        return _decode(content, self.source, self.large)

    def _batch(self, places: list[int], images: list[_Image]) -> pa.RecordBatch:
        is_encoded = self.source.store == "encoded"
        stored = pa.array(images, pa.binary()) if is_encoded else pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(images))
        paths, *others = (column.combine_chunks() for column in self.rows.table.take(places).columns)
        return pa.RecordBatch.from_arrays([paths, stored, *others], schema=self.schema)


def _absence(name: str | None) -> str:
    if not name:
        return "the row names no file"
    return "the file does not exist" if _plain_name(name) else "the name leads out of the folder"


def _fetch(file: File, source: ImagesSource, spool: Path) -> bytes:
    if not 0 < file.size <= MAX_FILE_BYTES:
        raise _Unusable(f"the file holds {file.size:,} bytes, more than {MAX_FILE_BYTES:,}" if file.size else "the file is empty")
    try:
        with locations.local_path(file, source, spool) as path:
            content: bytes = path.read_bytes()
            return content
    except TransientError:
        raise
    except OSError as error:
        remedy = "It was there when the run began; run again."
        raise SourceError(f"the file cannot be read: {first_line(error)}", where=file.name, remedy=remedy) from error


# ---- images


class _Unusable(Exception):  # noqa: N818 -- a verdict on one image, which ends as a reject
    """Why an image cannot be used."""


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """An image behind its header, small enough to be decoded; whatever Pillow raises within is a verdict on the image."""
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise _Unusable(_TOO_LARGE)  # Pillow itself gives up at twice as many
        if image.format == "PNG":
            image.verify()  # checksums, which decoding does not look at; the image must be opened again
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        yield image
    except (_Unusable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise _Unusable("this is no JPEG, PNG, GIF or BMP, or its header is broken") from None
    except Image.DecompressionBombError:
        raise _Unusable(_TOO_LARGE) from None
    except Exception as error:
        raise _Unusable(f"the image cannot be decoded: {first_line(error)}") from error


_TOO_LARGE = "the image has more pixels than Pillow's limit for decompression bombs"


def _check_encoded(content: bytes, shape: _Shape | None, large: threading.Lock) -> None:
    """Decode once. The size is that of the stored pixels: readers of encoded images do not turn them by their EXIF orientation."""
    with _opened(content) as image:
        if shape:
            _check_shape(image.size, image.mode, shape)
        with _room(image, large):
            image.load()


def _decode(content: bytes, source: ImagesSource, large: threading.Lock) -> np.ndarray:
    """Pixels as uint8 ``[height, width, channels]``."""
    height, width, channels = shape = source.shape or (0, 0, 0)
    with _opened(content) as image:
        turn = _turn(image, large)
        size = (height, width) if turn in _SIDEWAYS else (width, height)
        if not source.resize:
            _check_shape(image.size[::-1] if turn in _SIDEWAYS else image.size, image.mode, shape)
        box = _reduce(image, size, _MODES[channels]) if source.resize else None
        with _room(image, large):
            pixels = _resized(image, size, box, _MODES[channels]) if source.resize else image
            return np.asarray(pixels.transpose(turn) if turn is not None else pixels).reshape(shape)


def _check_shape(size: tuple[int, int], mode: str, shape: _Shape) -> None:
    height, width, channels = shape
    if (*size, mode) != (width, height, _MODES[channels]):
        raise _Unusable(f"{height} x {width} {_MODES[channels]} expected, received {size[1]} x {size[0]} {mode}")


@contextlib.contextmanager
def _room(image: Image.Image, large: threading.Lock) -> Iterator[None]:
    """Large images are decoded one at a time."""
    is_large = image.width * image.height * _BYTES_A_PIXEL > _LARGE_IMAGE_BYTES
    with large if is_large else contextlib.nullcontext():
        yield


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image, large: threading.Lock) -> Image.Transpose | None:
    """What sets the image upright by its EXIF orientation; None where there is nothing to do, or EXIF is broken.

    Source: EXIF 2.32 (CIPA DC-008), tag 0x0112; the mapping is that of ``PIL.ImageOps.exif_transpose``.
    """
    if image.format == "PNG":
        with _room(image, large):
            image.load()  # its EXIF may stand behind its pixels
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow names no kinds; the pixels are sound without
        return None


def _reduce(image: Image.Image, size: tuple[int, int], mode: str) -> _Box | None:
    """Tell the JPEG decoder to halve, quarter or eighth the image, as long as it stays twice as large as wanted.

    Returns:
        What of the decoded image is to be resized; None: all of it.
    """
    drafted = image.draft("L" if mode == "L" else None, (size[0] * _DRAFT_MARGIN, size[1] * _DRAFT_MARGIN))
    return drafted[1] if drafted else None


def _resized(image: Image.Image, size: tuple[int, int], box: _Box | None, mode: str) -> Image.Image:
    return _converted(image, mode).resize(size, Image.Resampling.BILINEAR, box)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow's own conversion cuts off at 255
    if image.has_transparency_data and mode != "RGBA":
        clear = image.convert("RGBA")
        image = Image.new("RGB", image.size)
        image.paste(clear, mask=clear.getchannel("A"))
    return image.convert(mode)
