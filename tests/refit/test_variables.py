"""Environment variables in the paths of sources: replaced where files are looked for, and nowhere else."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.deep_check import check_deeply
from refit.config import find_faults, parse_job
from refit.errors import JobError, SourceError
from refit.ingestion import ingest, list_current
from refit.layout import Layout
from refit.sources.locations import expand_variables, list_files
from tests.refit.local_files import HERE


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
    monkeypatch.setenv("REFIT_A", "one")
    monkeypatch.setenv("REFIT_EMPTY", "")
    monkeypatch.delenv("REFIT_UNSET", raising=False)
    monkeypatch.delenv("REFIT_OTHER", raising=False)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("${REFIT_A}/x.csv", "one/x.csv"),
        ("${REFIT_A}${REFIT_A}", "oneone"),
        ("${REFIT_A:-two}", "one"),
        ("${REFIT_UNSET:-two/*}/x", "two/*/x"),
        ("${REFIT_UNSET:-}x", "x"),
        ("${REFIT_EMPTY:-two}", "two"),
        ("${REFIT_EMPTY}x", "x"),
        ("s3://${REFIT_A}/k", "s3://one/k"),
        ("$REFIT_A", "$REFIT_A"),
        ("a$.csv", "a$.csv"),
        ("$$/{a}", "$$/{a}"),
    ],
)
def test_variables_are_replaced_as_in_a_shell_and_a_lone_dollar_stays(path, expected):
    assert expand_variables(path) == expected


@given(st.text())
def test_a_path_without_a_brace_behind_a_dollar_stays_as_it_is(path):
    path = path.replace("${", "")
    assert "${" in path or expand_variables(path) == path


def test_a_value_is_not_expanded_again(monkeypatch):
    monkeypatch.setenv("REFIT_A", "${REFIT_UNSET}")
    assert expand_variables("${REFIT_A}/x") == "${REFIT_UNSET}/x"


def test_all_variables_that_are_not_set_are_told_at_once_with_what_to_do():
    with pytest.raises(SourceError) as caught:
        list_files("${REFIT_UNSET}/${REFIT_A}/${REFIT_OTHER}.csv", HERE)
    text = str(caught.value)
    assert "environment variables are not set: REFIT_OTHER, REFIT_UNSET." in text
    assert '"${REFIT_UNSET}/${REFIT_A}/${REFIT_OTHER}.csv"' in text
    assert "export REFIT_OTHER=…; or give a default in the job: ${REFIT_OTHER:-…}." in text


def tree(path, **more):
    return {"name": "small", "data": {"sources": [{"kind": "csv", "path": path, **more}]}, "target": {"column": "y", "kind": "regression"}}


@pytest.mark.parametrize("path", ["${", "${1}/x", "${A-b}", "${A:-${B}}", "${A", "${}", "${A:b}", "a/${A}/${b c}"])
def test_a_malformed_variable_is_a_fault_of_the_job(path):
    (fault,) = find_faults(tree(path))
    assert fault.path == ("data", "sources", 0, "path")
    assert "${NAME}, or ${NAME:-default}" in fault.message


def test_a_check_without_input_looks_at_no_variable_and_a_deep_one_tells_which_is_not_set():
    job = parse_job(tree("${REFIT_UNSET}/rows.csv"))
    with pytest.raises(SourceError, match="the environment variable REFIT_UNSET is not set") as caught:
        check_deeply(job)
    assert not isinstance(caught.value, JobError)


def write_rows(folder):
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text("x,y\n" + "".join(f"{n},{n * n}\n" for n in range(20)))


def test_records_keep_the_variable_and_data_that_moved_are_not_read_again(tmp_path, monkeypatch):
    write_rows(tmp_path / "before")
    layout, job = Layout(tmp_path / "home"), parse_job(tree("${REFIT_A}/*.csv"))
    monkeypatch.setenv("REFIT_A", str(tmp_path / "before"))
    first = ingest(job, layout)
    shutil.move(tmp_path / "before", tmp_path / "after")
    monkeypatch.setenv("REFIT_A", str(tmp_path / "after"))
    second = ingest(job, layout)
    assert [(s.name, s.listed_by) for s in first.sources] == [(str(tmp_path / "before/rows.csv"), "${REFIT_A}/*.csv")]
    assert [(s.name, s.listed_by, s.is_vanished) for s in second.sources] == [(str(tmp_path / "after/rows.csv"), "${REFIT_A}/*.csv", False)]
    assert second.num_rows == 20
    assert second.shards == first.shards
    assert "${REFIT_A}" in job.model_dump_json()


def test_a_variable_that_is_no_longer_set_is_an_error_and_not_a_source_that_vanished(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows")
    layout, job = Layout(tmp_path / "home"), parse_job(tree("${REFIT_A}/rows.csv"))
    monkeypatch.setenv("REFIT_A", str(tmp_path / "rows"))
    ingest(job, layout)
    monkeypatch.delenv("REFIT_A")
    with pytest.raises(SourceError, match="REFIT_A is not set"):
        ingest(job, layout)


def test_a_path_written_out_and_one_with_a_variable_name_the_same_inputs(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows")
    monkeypatch.setenv("REFIT_A", str(tmp_path))
    plain, variable = parse_job(tree(f"{tmp_path}/rows/rows.csv")), parse_job(tree("${REFIT_A}/rows/rows.csv"))
    layout = Layout(tmp_path / "home")
    before = ingest(plain, layout)
    assert list_current(plain, layout) == list_current(variable, layout)
    after = ingest(variable, layout)
    assert before.shards == after.shards


@pytest.mark.parametrize("has_manifest", [False, True])
def test_folders_of_images_and_manifests_may_be_named_by_a_variable(tmp_path, monkeypatch, has_manifest):
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / label / "0.png")
    (tmp_path / "table.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    monkeypatch.setenv("REFIT_A", str(tmp_path))
    source = {"kind": "images", "path": "${REFIT_A}/images", "shape": [4, 4, 1]}
    source |= {"manifest": "${REFIT_A}/table.csv"} if has_manifest else {}
    job = parse_job({"name": "small", "data": {"sources": [source]}, "target": {"column": "label"}})
    snapshot = ingest(job, Layout(tmp_path / "home"))
    assert (snapshot.num_rows, sum(s.num_rejected for s in snapshot.sources)) == (2, 0)
    assert {s.listed_by for s in snapshot.sources} == {"${REFIT_A}/images"}
    assert all(s.name.startswith(str(tmp_path)) for s in snapshot.sources)


def test_files_of_images_and_of_labels_may_be_named_by_variables(tmp_path, monkeypatch):
    Path(tmp_path / "images.gz").write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(8)))
    Path(tmp_path / "labels").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([3, 4]))
    monkeypatch.setenv("REFIT_A", f"{tmp_path}{os.sep}images")
    source = {"kind": "idx", "path": "${REFIT_A}.gz", "labels": f"${{REFIT_UNSET:-{tmp_path}}}/labels"}
    job = parse_job({"name": "small", "data": {"sources": [source]}, "target": {"column": "label", "kind": "classes"}})
    assert ingest(job, Layout(tmp_path / "home")).num_rows == 2
