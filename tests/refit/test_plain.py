"""What a file is, found by its content; and that what DuckDB is given holds sound rows only, in bounded memory."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refit.errors import RefusedError, SourceError
from refit.sources import plain
from refit.sources.plain import Plain, cut_lines, line_starts, recognise, sound_rows

TEXT = "name,ü\r\n1,€\n"


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def zipped(*contents: bytes, name: str = "table.csv") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}/{name}", content)
    return sink.getvalue()


PACKED = {"gzip": gzip.compress, "zstd": zstd, "zip": zipped}


def file_of(tmp_path: Path, content: bytes, name: str = "table") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def text_of(found: Plain) -> bytes:
    with found.open() as stream:
        return b"".join(iter(lambda: stream.read(1000), b""))


def refusal(tmp_path: Path, content: bytes, encoding: str = "utf-8") -> str:
    with pytest.raises(RefusedError) as caught:
        text_of(recognise(file_of(tmp_path, content), "s3://bucket/table", encoding))
    assert str(caught.value).startswith("s3://bucket/table: ")
    return str(caught.value)


# ---- what is read


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd", "zip"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252"])
def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(tmp_path, packing, encoding) -> None:
    content = PACKED.get(packing, bytes)(TEXT.encode(encoding))
    declared = encoding if encoding in {"utf-16-le", "cp1252"} else "utf-8"
    found = recognise(file_of(tmp_path, content, "table.csv.gz"), "table", declared)
    assert (text_of(found), found.packing) == (TEXT.encode(), packing)
    assert found.is_direct == (packing == "none" and encoding.startswith("utf-8"))
    for start in (0, 1, 7, len(TEXT.encode())):
        with found.open(start=start) as stream:
            assert stream.read() == TEXT.encode()[start:]


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_packed_files_may_be_strung_together(tmp_path, packing) -> None:
    content = PACKED[packing](b"a,b\n") + PACKED[packing](b"1,2\n")
    assert text_of(recognise(file_of(tmp_path, content), "table", "utf-8")) == b"a,b\n1,2\n"


def test_text_that_begins_like_another_kind_of_file_is_text(tmp_path) -> None:
    for content in (b"PAR1,GIF8\n1,2\n", b"BZh\n1\n", b"%PDF-\n1\n", b"x"):
        assert text_of(recognise(file_of(tmp_path, content), "table", "utf-8")) == content


# ---- what is refused


def test_what_is_no_text_is_refused_by_its_kind(tmp_path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    kinds = {"a Parquet file": (tmp_path / "x.parquet").read_bytes()}
    for name in ("PNG", "JPEG", "GIF"):
        image = io.BytesIO()
        Image.new("RGB", (9, 9)).save(image, name)
        kinds[f"a {name} image"] = image.getvalue()
    kinds["a program"] = b"\x7fELF\x02\x01\x01\x00"
    kinds["a PDF document"] = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
    kinds["a SQLite database"] = b"SQLite format 3\x00\x10\x00"
    kinds["an Arrow file"] = b"ARROW1\x00\x00"
    kinds["an Excel workbook"] = zipped(b"<xml/>").replace(b"0/table.csv", b"xl/book.xml")
    kinds["a tar archive"] = gzip.compress(b"a.csv".ljust(257, b"\0") + b"ustar\0")
    kinds["packed twice"] = gzip.compress(gzip.compress(b"a,b\n"))
    for kind, content in kinds.items():
        assert kind in refusal(tmp_path, content), kind


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b""), zipped(b"\n")])
def test_a_file_without_text_is_refused_as_empty(tmp_path, content) -> None:
    assert "the file is empty" in refusal(tmp_path, content)


@pytest.mark.parametrize("packing", ["gzip", "zstd", "zip"])
def test_a_truncated_or_damaged_archive_is_refused(tmp_path, packing) -> None:
    content = PACKED[packing]("".join(f"{i * i},{i}\n" for i in range(50_000)).encode())
    broken = bytearray(content)
    broken[len(broken) // 2] ^= 0xFF
    for damaged in (content[:-7], content[: len(content) // 2], bytes(broken), content[:5]):
        said = refusal(tmp_path, damaged)
        assert f"the {packing} file is truncated or damaged" in said


def test_an_archive_of_several_files_or_none_is_refused(tmp_path) -> None:
    assert "2 files" in refusal(tmp_path, zipped(b"a", b"b"))
    assert "0 files" in refusal(tmp_path, zipped())


def test_an_encrypted_archive_is_refused(tmp_path) -> None:
    content = bytearray(zipped(b"a,b\n1,2\n"))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    assert "encrypted" in refusal(tmp_path, bytes(content))


@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")])
def test_utf16_without_a_mark_is_refused_with_the_encoding_to_set(tmp_path, encoding, mark) -> None:
    assert f"set encoding: {mark}" in refusal(tmp_path, TEXT.encode(encoding))


def test_binary_data_are_refused(tmp_path) -> None:
    assert "binary data" in refusal(tmp_path, struct.pack("<100q", *range(100)))


def test_text_of_another_encoding_than_said_is_refused_with_the_byte(tmp_path) -> None:
    content = b"a,b\n" * 300_000 + b"\x81,1\n"
    said = refusal(tmp_path, content, "cp1252")
    assert "byte 1,200,000 of the text is not cp1252" in said
    assert "no encoding of characters" in refusal(tmp_path, b"a", "base64")
    assert "not utf-16" in refusal(tmp_path, "a,b\n".encode("utf-16") + b"\x00")


@pytest.mark.parametrize("packing", ["gzip", "zstd", "zip"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, packing) -> None:
    content = PACKED[packing](b"1,2\n" * 10_000_000)
    found = recognise(file_of(tmp_path, content), "table", "utf-8")
    with (
        patch.object(plain, "MAX_UNPACKED_BYTES", 1 << 20),
        patch.object(plain, "MAX_UNPACKED_RATIO", 100),
        pytest.raises(RefusedError, match="unpacks into more than 100 times its size"),
        sound_rows(found, cut_lines, tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_a_line_without_end_takes_no_more_memory_than_a_row_may(tmp_path) -> None:
    found = recognise(file_of(tmp_path, gzip.compress(b"x" * 300_000_000, 1)), "table", "utf-8")
    tracemalloc.start()
    with patch.object(plain, "MAX_ROW_BYTES", 1 << 20), sound_rows(found, cut_lines, tmp_path) as rows:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [reject.line for reject in rows.survey.rejects] == [1]
        assert rows.path.read_bytes() == b""
    assert peak < 30 << 20


# ---- what DuckDB is given


def test_a_sound_plain_file_is_read_where_it_lies(tmp_path) -> None:
    for content in (b"a\nb\n", b"a\r\nb", b"\xef\xbb\xbfa\nb\n"):
        path = file_of(tmp_path, content)
        with sound_rows(recognise(path, "table", "utf-8"), cut_lines, tmp_path) as rows:
            assert rows.path == path


@pytest.mark.parametrize("content", [b"a\n\nb\n", b"a\rb\r", b"a\r\nb\n", b"a\n\xff\nb\n", b"a\n\0\nb"])
def test_what_duckdb_would_misread_is_copied_without_the_trouble(tmp_path, content) -> None:
    path = file_of(tmp_path, content)
    with sound_rows(recognise(path, "table", "utf-8"), cut_lines, tmp_path) as rows:
        assert rows.path != path
        assert rows.path.read_bytes() == b"a\nb\n"
        copy = rows.path
    assert not copy.exists()


def test_a_name_that_duckdb_takes_for_a_pattern_is_read_from_a_copy(tmp_path) -> None:
    path = file_of(tmp_path, b"a\n", "part[1]*.csv")
    with sound_rows(recognise(path, "table", "utf-8"), cut_lines, tmp_path) as rows:
        assert (rows.path != path, rows.path.read_bytes()) == (True, b"a\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_no_fault_of_the_file(tmp_path) -> None:
    found = recognise(file_of(tmp_path, gzip.compress(b"a\n" * 100_000)), "table", "utf-8")
    (tmp_path / "full").mkdir()
    with (
        patch.object(plain, "COPY_NAME", "/dev/full"),
        pytest.raises(SourceError, match="no room for a copy") as caught,
        sound_rows(found, cut_lines, tmp_path / "full"),
    ):
        pass
    assert not isinstance(caught.value, RefusedError)


# ---- lines


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b" "]), max_size=30).map(b"".join))
def test_lines_begin_where_python_says(text) -> None:
    lines = list(io.TextIOWrapper(io.BytesIO(text), newline="")) if text else []
    assert [text[start:].decode() for start in line_starts(text).tolist()] == ["".join(lines[i:]) for i in range(len(lines))]
