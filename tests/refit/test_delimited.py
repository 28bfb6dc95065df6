"""Delimited and fixed-width text: the rows that Python's csv module finds, the lines they stand on, and what is no row."""

import csv
import gzip
import io
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refit.errors import RefitError, RefusedError
from refit.sources import delimited, lines, plain
from refit.sources.grammar import Grammar
from tests.refit.scanned import Scanned, csv_source, input_of, scan

COMMA = Grammar(b",", b'"', b'"')


def read(tmp_path: Path, content: bytes | str, **options: object) -> Scanned:
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return scan(delimited, input_of(path, csv_source(path, **options)), tmp_path / "spool")


def refusal(tmp_path: Path, content: bytes | str, **options: object) -> str:
    with pytest.raises(RefusedError) as caught:
        read(tmp_path, content, **options)
    assert str(caught.value).startswith(str(tmp_path / "table.csv"))
    return str(caught.value)


# ---- agreement with Python's csv module

LETTERS = st.sampled_from(["a", "b", "é", "7", " ", ",", '"', "\n", "\r\n", "'", ";", "\t", "#", "\\"])
VALUES = st.lists(LETTERS, max_size=6).map("".join)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A header of three, rows of three, ragged rows and blank lines, with one kind of line end or several."""
    ends = st.sampled_from(draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n"], ["\n", "\r\n", "\r"]])))
    always = draw(st.booleans())
    text = "x,y,z" + draw(ends)
    for _ in range(draw(st.integers(0, 8))):
        width = draw(st.sampled_from([0, 3, 3, 3, 3, 3, 2, 4]))
        values = [draw(VALUES) for _ in range(width)]
        if width > 3:
            values[-1] = "z"  # a row of three with a delimiter at its end would be no ragged row
        text += ",".join(rendered(value, always=always) for value in values) + draw(ends)
    return text.rstrip("\r\n") if draw(st.booleans()) else text


def rendered(value: str, *, always: bool) -> str:
    if always or set(value) & set('",\r\n') or not value.strip():
        return '"' + value.replace('"', '""') + '"'
    return value


def by_python(text: str) -> tuple[list[tuple[str | None, ...]], list[int], list[int]]:
    """Rows, their lines, and lines of rows with too few or too many columns."""
    rows, lines, ragged, last = [], [], [], 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        line, last = last + 1, reader.line_num
        if line == 1 or not row:
            continue
        if len(row) == 3:
            rows.append(tuple(value.strip(" \t") or None for value in row))
            lines.append(line)
        else:
            ragged.append(line)
    return rows, lines, ragged


@settings(max_examples=60, deadline=None)
@example(text="x,y,z\n\n\r\n", block=1 << 20)
@example(text='x,y,z\n\n\n\n"","",""\r\r"","","\n"', block=64)
@given(text=files(), block=st.sampled_from([5, 17, 64, 1 << 20]))
def test_rows_lines_and_rejects_are_those_of_the_csv_module(tmp_path_factory, text, block) -> None:
    with patch.object(plain, "BLOCK_BYTES", block), patch.object(lines, "PIECE_BYTES", block):
        scanned = read(tmp_path_factory.mktemp("a"), text)
    assert (scanned.rows, scanned.lines, scanned.fault_lines) == by_python(text)


@settings(max_examples=60, deadline=None)
@example(text="\n\r,", block=5, is_dos=False)
@example(text=",,,", block=5, is_dos=False)
@example(text="a,,\n", block=1 << 20, is_dos=False)
@example(text='"a,b",,""', block=1 << 20, is_dos=False)
@given(text=st.lists(LETTERS | st.just("\r"), max_size=40).map("".join), block=st.sampled_from([5, 17, 1 << 20]), is_dos=st.booleans())
def test_what_is_read_is_what_the_grammar_reads_whatever_the_text_is(tmp_path_factory, text, block, is_dos) -> None:
    text = "x,y\n" + text
    if is_dos:
        text = text.replace("\r", "").replace("\n", "\r\n")
    with patch.object(plain, "BLOCK_BYTES", block), patch.object(lines, "PIECE_BYTES", block):
        scanned = read(tmp_path_factory.mktemp("b"), text)
    values = [COMMA.split(place.text.encode()) for place in scanned.places]
    assert scanned.rows == [tuple(COMMA.read(value) or None for value in row[:2]) for row in values]
    begins = scanned.lines + [line for line in scanned.fault_lines if line]
    assert len(set(begins)) == len(begins)
    written = list(io.StringIO(text, newline=""))
    assert all(written[place.line - 1].startswith(place.text[: len(written[place.line - 1].rstrip("\r\n"))]) for place in scanned.places)


# ---- rows


def test_a_row_with_too_few_or_too_many_columns_is_rejected_with_its_line_and_text(tmp_path) -> None:
    scanned = read(tmp_path, "a,b\n1,2\n\n3\n4,5,6\n7,8\n")
    assert (scanned.rows, scanned.lines) == ([("1", "2"), ("7", "8")], [2, 6])
    assert [(fault.line, fault.text, fault.reason) for fault in scanned.faults] == [
        (4, "3", "the row has 1 column instead of 2"),
        (5, "4,5,6", "the row has 3 columns instead of 2"),
    ]


@pytest.mark.parametrize(
    ("content", "rows", "faults"),
    [
        ('a,b\n"open,1\n2,3\n4,5\n', [("2", "3"), ("4", "5")], [2]),
        ('a,b\n1,2\n3,"open\n4,5\n', [("1", "2"), ("4", "5")], [3]),
        ('a,b\n1,2\n3,"open', [("1", "2")], [3]),
        ('a,b\n"open,1\n"x",2\n"y",3\n', [("x", "2"), ("y", "3")], [2]),
        ('a,b\n"x"y,1\n2,3\n', [("2", "3")], [2]),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_other_line(tmp_path, content, rows, faults) -> None:
    scanned = read(tmp_path, content)
    assert (scanned.rows, scanned.fault_lines) == (rows, faults)
    assert all("quote" in fault.reason for fault in scanned.faults)


def test_a_quote_within_a_plain_value_is_a_character(tmp_path) -> None:
    assert read(tmp_path, 'a,b\n5" pipe,x"y"\n').rows == [('5" pipe', 'x"y"')]


def test_values_may_span_lines(tmp_path) -> None:
    scanned = read(tmp_path, 'a,b\n"x\n\ny",1\nz,2\n3\n"\r\n",4\n')
    assert (scanned.rows, scanned.lines) == ([("x\n\ny", "1"), ("z", "2"), ("\r\n", "4")], [2, 5, 7])
    assert scanned.fault_lines == [6]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_kind_of_line_end_is_one(tmp_path, end, last) -> None:
    scanned = read(tmp_path, end.join(["a,b", "1,2", '"3","4"']) + end * last)
    assert (scanned.rows, scanned.lines) == ([("1", "2"), ("3", "4")], [2, 3])


def test_line_ends_may_be_mixed(tmp_path) -> None:
    assert read(tmp_path, "a,b\r\n1,2\n3,4\r5,6\r\n").rows == [("1", "2"), ("3", "4"), ("5", "6")]


def test_blank_lines_are_no_rows_of_one_column_either(tmp_path) -> None:
    scanned = read(tmp_path, 'a\n\nx\n  \n""\n y\n\n')
    assert (scanned.rows, scanned.lines, scanned.faults) == ([("x",), (None,), ("y",)], [3, 5, 6], [])


def test_a_row_with_a_nul_character_or_other_bytes_than_utf8_is_rejected(tmp_path) -> None:
    scanned = read(tmp_path, b"a,b\n1,\x002\n3,4\n5,\xe9\n")
    assert (scanned.rows, scanned.lines, scanned.fault_lines) == ([("3", "4")], [3], [2, 4])
    assert "NUL" in scanned.faults[0].reason
    assert "0xe9" in scanned.faults[1].reason
    assert scanned.faults[1].text == "5,\\xe9"


def test_text_passes_as_it_is(tmp_path) -> None:
    values = ["inf", "NaN", "-1e999", "123456789012345678901234567890", "0x1F", "# no comment", "01", "1.10"]
    assert read(tmp_path, "a,b\n" + "".join(f"{value},1\n" for value in values)).rows == [(value, "1") for value in values]


def test_a_value_of_ten_megabytes_is_a_value(tmp_path) -> None:
    value = "y,\n" * 3_400_000
    scanned = read(tmp_path, f'a,b\n1,2\n"{value}",3\n4,5\n')
    assert [len(row[0] or "") for row in scanned.rows] == [1, len(value), 1]
    assert scanned.lines == [2, 3, 3_400_004]


def test_what_is_longer_than_a_row_may_be_is_rejected_and_nothing_else(tmp_path) -> None:
    with patch.object(plain, "MAX_ROW_BYTES", 100), patch.object(plain, "BLOCK_BYTES", 16):
        scanned = read(tmp_path, "a,b\n1,2\n" + "x" * 1000 + ',3\n"' + "y\n" * 200 + "4,5\n")
    assert scanned.fault_lines[:2] == [3, 4]
    assert "longer than" in scanned.faults[0].reason
    assert "may not be closed" in scanned.faults[1].reason
    assert (scanned.rows, scanned.lines) == ([("1", "2"), ("4", "5")], [2, 204])


def test_a_file_of_broken_lines_is_refused_when_they_are_too_many(tmp_path) -> None:
    with patch.object(plain, "MAX_REJECTS", 10):
        assert len(read(tmp_path, "a,b\n" + "1\n" * 10).faults) == 10
        said = refusal(tmp_path, "a,b\n" + "1\n" * 11)
    assert "more than 10 of its lines are broken; the first is line 2: the row has 1 column instead of 2." in said


# ---- missing values and blanks


def test_spaces_around_a_value_do_not_count(tmp_path) -> None:
    scanned = read(tmp_path, 'a, b\n1, ?\n\t? , "y "\n  ,"\t?"\n', null_values=["?", ""])
    assert scanned.names == ("a", "b")
    assert scanned.rows == [("1", None), (None, "y"), (None, None)]


@pytest.mark.parametrize("blank", ["", " "])
def test_missing_values_are_those_that_the_source_names(tmp_path, blank) -> None:
    content = f"a,b\n{blank}NA,\n-,x\n"
    assert read(tmp_path, content).rows == [("NA", None), ("-", "x")]
    assert read(tmp_path, content, null_values=["NA", " -"]).rows == [(None, ""), (None, "x")]
    assert read(tmp_path, content, null_values=[]).rows == [("NA", ""), ("-", "x")]
    assert read(tmp_path, content, null_values=["a,b", "NA"]).rows == [(None, ""), ("-", "x")]


# ---- header and names


def test_names_are_kept_exactly(tmp_path) -> None:
    names = ("first name", "größe, cm", 'a "b"', "c\nd", "SELECT", "'")
    text = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    scanned = read(tmp_path, f"\n{text}\n1,2,3,4,5,6\n")
    assert (scanned.names, scanned.rows, scanned.lines) == (names, [("1", "2", "3", "4", "5", "6")], [4])


def test_a_column_without_a_name_is_named_by_its_position(tmp_path) -> None:
    assert read(tmp_path, "a,,c\n1,2,3\n").names == ("a", "column_2", "c")
    assert read(tmp_path, "1,2\n3,4\n", header=False).names == ("column_1", "column_2")


def test_names_that_stand_twice_are_refused_by_name(tmp_path) -> None:
    assert "'A', 'a'" in refusal(tmp_path, "a,A,b\n1,2,3\n")


def test_names_that_do_not_fit_the_file_are_refused(tmp_path) -> None:
    assert read(tmp_path, "1,2\n", header=False, names=["p", "q"]).names == ("p", "q")
    for names in (["p"], ["p", "q", "r"]):
        assert f"rows of {len(names)} columns. Received: rows of 2." in refusal(tmp_path, "1,2\n3,4\n", header=False, names=names)


def test_a_delimiter_at_the_end_of_every_row_begins_no_column(tmp_path) -> None:
    for header in ("a,b", "a,b,"):
        scanned = read(tmp_path, f"{header}\n1,2,\n3,,\n4,5\n6,7,\n")
        assert (scanned.names, scanned.rows, scanned.fault_lines) == (("a", "b"), [("1", "2"), ("3", None), ("6", "7")], [4])
    assert read(tmp_path, "a,b,\n1,2,\n3,4,5\n").names == ("a", "b", "column_3")


def test_a_file_of_a_header_has_no_rows(tmp_path) -> None:
    for content in ("a,b", "a,b\n", "a,b\r\n\r\n"):
        scanned = read(tmp_path, content)
        assert (scanned.names, scanned.rows, scanned.faults) == (("a", "b"), [], [])


def test_lines_before_the_header_are_passed_over(tmp_path) -> None:
    for junk in ("report\n", '"report\n', "\n"):
        scanned = read(tmp_path, junk + "x, y, z\na,b\n1,2\n", skip_lines=2)
        assert (scanned.names, scanned.rows, scanned.lines) == (("a", "b"), [("1", "2")], [4])
    assert "all of the file's 2 lines" in refusal(tmp_path, "a\nb\n", skip_lines=2)
    assert "no header" in refusal(tmp_path, "a\n\n \n", skip_lines=1)


def test_a_header_that_cannot_be_read_is_refused(tmp_path) -> None:
    assert "quotes do not match" in refusal(tmp_path, '"a,b\n1,2\n')
    assert "0xe9" in refusal(tmp_path, b"\xe9,b\n1,2\n")


# ---- dialects


def test_other_dialects(tmp_path) -> None:
    assert read(tmp_path, "a\tb\n1 \t 2\n", delimiter="\t").rows == [("1", "2")]
    assert read(tmp_path, 'a,b\n"x,5" y\n', quote="").rows == [('"x', '5" y')]
    assert read(tmp_path, "a;b\n'x;''y';2\n", delimiter=";", quote="'").rows == [("x;'y", "2")]
    escaped = read(tmp_path, 'a,b\n"x\\"y",2\n"z\\\\",3\n"u""v",4\n', escape="\\")
    assert (escaped.rows, escaped.fault_lines) == ([('x"y', "2"), ("z\\", "3")], [4])
    wide = read(tmp_path, "a||b\n1||2\n3|4||5\n6||7||8\n", delimiter="||")
    assert (wide.rows, wide.fault_lines) == ([("1", "2"), ("3|4", "5")], [4])
    assert read(tmp_path, 'a b\n1 "2 3"\n', delimiter=" ").rows == [("1", "2 3")]


def test_fixed_width_text_is_cut_by_characters(tmp_path) -> None:
    content = "über 12x\nab\n\n  ?  3\nabcd 123  \nabcd 1234\n"
    scanned = read(tmp_path, content, header=False, names=["p", "q"], widths=[5, 3], null_values=["?"])
    assert (scanned.rows, scanned.lines) == ([("über", "12x"), (None, "3"), ("abcd", "123")], [1, 4, 5])
    assert [fault.reason for fault in scanned.faults] == [
        "the line has 2 characters, the last column begins after 5",
        "the line has 9 characters, the columns end after 8",
    ]


def test_fixed_width_text_of_ascii_is_cut_likewise(tmp_path) -> None:
    scanned = read(tmp_path, "ab 12\ncd 3\nx\nefg456\nghi\njk  789", header=False, names=["p", "q"], widths=[3, 2])
    assert (scanned.rows, scanned.fault_lines) == ([("ab", "12"), ("cd", "3"), ("ghi", None)], [3, 4, 6])


def test_lines_of_fixed_width_may_be_passed_over(tmp_path) -> None:
    scanned = read(tmp_path, "title\r\n-----\r\n1 2\r\n", header=False, names=["p", "q"], widths=[2, 1], skip_lines=2)
    assert (scanned.rows, scanned.lines) == ([("1", "2")], [3])


# ---- places


def test_places_are_exact_in_packed_and_converted_files(tmp_path) -> None:
    text = "a,b\r\n" + "".join(f'{i},"x\r\n{i}"\r\n\r\nbad\r\n' for i in range(300))
    expected = read(tmp_path, text)
    with patch.object(plain, "BLOCK_BYTES", 100):
        for content, options in (
            (gzip.compress(text.encode()), {}),
            (text.encode("utf-16"), {}),
            (text.encode("cp037"), {"encoding": "cp037"}),
        ):
            scanned = read(tmp_path, content, **options)
            assert (scanned.rows, scanned.places, scanned.faults) == (expected.rows, expected.places, expected.faults)
    assert expected.lines == [2 + 4 * i for i in range(300)]
    assert expected.fault_lines == [5 + 4 * i for i in range(300)]


def test_places_are_found_for_some_rows_only(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "".join(f"{i},x\n" * (i % 7 != 0) + "bad\n" * (i % 7 == 0) for i in range(2000)))
    found = replace(input_of(path, csv_source(path)), is_doubtful=True)
    with patch.object(plain, "BLOCK_BYTES", 200), delimited.open_input(found, tmp_path) as text:
        places = list(text.locate([0, 5, 6, 1700]))
    good = [i for i in range(2000) if i % 7]
    assert [(place.line, place.text) for place in places] == [(good[i] + 2, f"{good[i]},x") for i in (0, 5, 6, 1700)]


# ---- what others test their parsers with

DIRTY = Path(os.environ.get("REFIT_DATA", "absent")) / "csv_dirty"
REFUSED = {
    "univocity/csv/test.csv": "the only line is a header with text after a closing quote",
    "csvkit/examples/empty.csv": "a single line end",
    "commons-csv/CSV-213/999751170.patch.csv": "quoted values apart by semicolons, read with commas",
}
DIFFERENT = {
    "csvkit/examples/null_byte.csv": (0, 1, "a NUL character is damage"),
    "csvkit/examples/test_latin1.csv": (1, 1, "it is not UTF-8, and only one row shows it"),
    "csvkit/examples/test_empty_columns_long_row.csv": (1, 0, "a delimiter after the last value of every row begins no column"),
    "commons-csv/CSVFileParser/test.csv": (5, 7, "spaces before a quoted value do not belong to it"),
    "commons-csv/CSV-141/csv-141.csv": (1, 2, "csv takes two lines with quotes that are not closed for one row"),
}


def listed() -> list[str]:
    index = DIRTY / "INDEX.tsv"
    return [line.split("\t")[0] for line in index.read_text().splitlines()[1:]] if index.is_file() else []


def csv_module_on(content: bytes, delimiter: str) -> tuple[list[tuple[str | None, ...]], int]:
    encoding = "utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    reader = csv.reader(io.StringIO(content.decode(encoding), newline=""), delimiter=delimiter)
    first, *rows = [row for row in reader if any(value.strip() for value in row) or len(row) > 1]
    width = len(first)
    if not first[-1].strip() and not any(len(row) == width and row[-1].strip() for row in rows):
        width -= 1
    fitting = [row for row in rows if len(row) == len(first)]
    return [tuple(value.strip(" \t") or None for value in row[:width]) for row in fitting], len(rows) - len(fitting)


@pytest.mark.skipif(not listed(), reason="REFIT_DATA names no folder with csv_dirty")
@pytest.mark.parametrize("name", listed())
def test_dirty_files_of_other_projects_are_read_as_the_csv_module_reads_them(tmp_path, name) -> None:
    path = DIRTY / name
    delimiter = "\t" if name.endswith(".tsv") else ","
    try:
        scanned = scan(delimited, input_of(path, csv_source(path, delimiter=delimiter)), tmp_path / "spool")
    except RefitError:
        assert name in REFUSED
        return
    assert name not in REFUSED
    if name in DIFFERENT:
        assert (len(scanned.rows), len(scanned.faults)) == DIFFERENT[name][:2]
    else:
        assert (scanned.rows, len(scanned.faults)) == csv_module_on(path.read_bytes(), delimiter)
