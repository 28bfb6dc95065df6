"""JSON lines and arrays: every object a row of text, every other line a fault with its number."""

import gzip
import json
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.errors import RefusedError
from refit.sources import jsons, plain
from tests.refit.scanned import Scanned, input_of, json_source, scan


def read(tmp_path: Path, content: bytes | str) -> Scanned:
    path = tmp_path / "table.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return scan(jsons, input_of(path, json_source(path)), tmp_path / "spool")


def refusal(tmp_path: Path, content: bytes | str) -> str:
    with pytest.raises(RefusedError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "table.json"))
    return str(caught.value)


# ---- agreement with Python's json module

KEYS = st.sampled_from(["a", "b c", "é", "a.b", "", "*", "x/y", "x~y", 'q"', "'"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\\n\té,[]{}'), max_size=5)
OBJECTS = st.dictionaries(
    KEYS, SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(KEYS, SCALARS, max_size=2), min_size=1, max_size=4
)
BROKEN = st.sampled_from(["{", "}", "3", "[1]", "null", '"x"', "{'a': 1}", '{"a" 1}', '{"a": 1} {"b": 2}', '{"a": 1, "a": 2}'])


def text_of(value: object) -> str | None:
    """A value as a column holds it."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def expected(objects: list[dict[str, object]]) -> tuple[list[str], list[tuple[str | None, ...]]]:
    keys = list(dict.fromkeys(key for row in objects for key in row))
    return keys, [tuple(text_of(row.get(key)) for key in keys) for row in objects]


def named(keys: list[str]) -> tuple[str, ...]:
    return tuple(key or f"column_{index}" for index, key in enumerate(keys, start=1))


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(OBJECTS | BROKEN | st.just(""), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    block=st.sampled_from([9, 64, 1 << 20]),
)
def test_json_lines_are_read_as_the_json_module_reads_them(tmp_path_factory, lines, end, block) -> None:
    lines = [{"first": 1}, *lines]
    text = end.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    with patch.object(plain, "BLOCK_BYTES", block):
        scanned = read(tmp_path_factory.mktemp("a"), text)
    keys, rows = expected([line for line in lines if isinstance(line, dict)])
    assert (scanned.names, scanned.rows) == (named(keys), rows)
    assert scanned.lines == [number for number, line in enumerate(lines, start=1) if isinstance(line, dict)]
    assert scanned.fault_lines == [number for number, line in enumerate(lines, start=1) if line and isinstance(line, str)]


@settings(max_examples=40, deadline=None)
@given(
    elements=st.lists(OBJECTS | SCALARS.filter(lambda value: value is not None), max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    block=st.sampled_from([9, 64, 1 << 20]),
)
def test_arrays_are_read_as_the_json_module_reads_them(tmp_path_factory, elements, indent, block) -> None:
    elements = [{"first": 1}, *elements]
    text = "\n " + json.dumps(elements, indent=indent, ensure_ascii=False) + "\n\n"
    with patch.object(plain, "BLOCK_BYTES", block):
        scanned = read(tmp_path_factory.mktemp("b"), text)
    objects = [element for element in elements if isinstance(element, dict)]
    keys, rows = expected(objects)
    assert (scanned.names, scanned.rows) == (named(keys), rows)
    assert [json.loads(place.text) for place in scanned.places] == objects
    lines = text.split("\n")
    assert all(lines[place.line - 1].lstrip(" [").find(place.text.split("\n")[0]) >= 0 for place in scanned.places)
    assert len(scanned.faults) == len(elements) - len(objects)


# ---- values


def test_values_keep_their_text(tmp_path) -> None:
    values = ["12345678901234567890123456789", "0.1", "-0.0", "NaN", "Infinity", "true", '{"x":[1,{"y":null}]}', "[]"]
    assert read(tmp_path, "".join(f'{{"a":{value}}}\n' for value in values)).rows == [(value,) for value in values]


def test_null_and_a_key_that_is_not_there_are_missing(tmp_path) -> None:
    scanned = read(tmp_path, '{"a":null,"b":""}\n{"b":"null"}\n{}\n')
    assert (scanned.names, scanned.rows) == (("a", "b"), [(None, ""), (None, "null"), (None, None)])


# ---- lines that are no rows


def test_a_bad_line_is_rejected_with_its_number_its_text_and_a_reason(tmp_path) -> None:
    scanned = read(tmp_path, b'{"a":1}\n\nbad\n[1]\n{"a":1,"a":2}\n3\n{"a":"\\ud800"}\n{"a":"\xff"}\n{"a":"\x00"}\n{"a":2}')
    assert (scanned.rows, scanned.lines) == ([("1",), ("2",)], [1, 10])
    assert [(fault.line, fault.text) for fault in scanned.faults][:2] == [(3, "bad"), (4, "[1]")]
    says = ["not JSON: Expecting value at character 1", "an array", "'a' twice", "a number", "half a character", "0xff", "NUL"]
    assert all(said in fault.reason for said, fault in zip(says, scanned.faults, strict=True))


def test_an_object_that_is_nested_too_deeply_breaks_its_line_only(tmp_path) -> None:
    deep = '{"a":' + "[" * 100_000 + "}\n"
    scanned = read(tmp_path, '{"a":1}\n' + deep + '{"a":2}\n')
    assert (scanned.rows, scanned.fault_lines) == ([("1",), ("2",)], [2])


# ---- files that are refused


@pytest.mark.parametrize("content", ["3", '"x"', "null", '{\n  "a": 1\n}\n', "not json\n", "{}", "[]", "[1, 2]"])
def test_what_holds_no_objects_is_refused_with_the_remedy(tmp_path, content) -> None:
    assert "Give one object a line, or one array of objects." in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"a":1}', "truncated"),
        ('[{"a":1},', "truncated"),
        ('[{"a":1},\n{"a":', "broken at line 2"),
        ('[{"a":1}\n{"a":2}]', "broken at line 2"),
        ('[{"a":1}]\n\nx', "broken at line 3: Text follows the array"),
        ('[{"a":1},\n\n{"a":x}, {"a":2}]', "broken at line 3"),
        ('[{"a":' + "[" * 100_000 + "]", "nested too deeply"),
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 20])
def test_a_broken_array_is_refused_with_its_line(tmp_path, content, says, block) -> None:
    with patch.object(plain, "BLOCK_BYTES", block):
        assert says in refusal(tmp_path, content)


def test_keys_without_end_are_refused(tmp_path) -> None:
    with patch.object(jsons, "MAX_KEYS", 10):
        assert len(read(tmp_path, "".join(f'{{"k{i}":1}}\n' for i in range(10))).names) == 10
        assert "more than 10 different keys" in refusal(tmp_path, "".join(f'{{"k{i}":1}}\n' for i in range(11)))


def test_keys_that_sql_cannot_tell_apart_are_refused_by_name(tmp_path) -> None:
    assert "'ID', 'id'" in refusal(tmp_path, '{"id":1}\n{"ID":2}\n')


# ---- files of other kinds


def test_packed_and_encoded_files_are_read_like_plain_ones(tmp_path) -> None:
    for text in ('{"a":"é"}\n{"a":1}\nbad\n', '[{"a":"é"},\n{"a":1},\n0]\n'):
        plainly = read(tmp_path, text)
        for content in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), gzip.compress(text.encode())):
            scanned = read(tmp_path, content)
            assert (scanned.rows, scanned.places, scanned.faults) == (plainly.rows, plainly.places, plainly.faults)
        assert (plainly.rows, plainly.lines, plainly.fault_lines) == ([("é",), ("1",)], [1, 2], [3])
