"""``refit data`` as people and programs use it: statuses, one paragraph an error, one JSON document on stdout."""

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments import command
from deployments.environment import CHECKOUT
from refit.config import parse_job
from refit.ingestion import ingest, read_head
from refit.layout import Layout

PROGRAM = "from deployments.command import main; main()"


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str

    @property
    def document(self):
        return json.loads(self.stdout)


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    return Layout(tmp_path / "home")


@pytest.fixture
def refit(layout, monkeypatch, capsys):
    """The command in this process, with a status as a shell sees it."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["refit", "data", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            command.main()
        except SystemExit as exit_:
            status = exit_.code or 0
        return Done(status, *capsys.readouterr())

    return call


@pytest.fixture
def people(layout, tmp_path):
    """A data set of two snapshots, with a rejected row."""

    def write(name, ids):
        (tmp_path / "in").mkdir(exist_ok=True)
        table = pa.table({"id": ids, "name": [f"name {i}" for i in ids], "y": [0] * len(ids)})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
        data = {"sources": [{"kind": "parquet", "path": str(tmp_path / "in" / "*.parquet")}], "key": ["id"], "max_rejected_fraction": 1.0}
        return ingest(parse_job({"name": "people", "data": data, "target": {"column": "y"}}, {}), layout)

    return [write("a", [*range(10), None]), write("b", [3, *range(10, 20)])]


def check_failed(done, status, *told):
    assert done.status == status
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_home_is_told_of_and_is_no_fault(refit) -> None:
    for arguments in (["list"], ["verify"]):
        done = refit(*arguments)
        assert (done.status, "There is no data set" in done.stdout) == (0, True)
        assert refit(*arguments, "--json").document == []


@pytest.mark.parametrize("arguments", [["show", "poeple"], ["verify", "poeple"], ["gc", "poeple", "--keep", "1"]])
def test_a_typo_gets_the_nearest_name(refit, people, arguments) -> None:
    check_failed(refit(*arguments), 2, 'there is no data set "poeple"', 'Did you mean "people"?')
    assert refit(*arguments, "--json").document["error"] == "UnknownNameError"


def test_a_list_tells_rows_snapshots_and_bytes(refit, people) -> None:
    done = refit("list")
    for text in ("people", "20", people[1].id):
        assert text in done.stdout
    (one,) = refit("list", "--json").document
    assert (one["num_rows"], one["num_snapshots"], one["snapshot"]) == (20, 2, people[1].id)


def test_a_snapshot_is_shown_as_text_and_as_json(refit, people) -> None:
    done = refit("show", "people")
    for text in (people[1].id, "a.parquet", "b.parquet", "superseded", "a part of the key is missing", "rejects"):
        assert text in done.stdout
    assert refit("show", "people", "--snapshot", people[0].id[:8], "--json").document["id"] == people[0].id
    check_failed(refit("show", "people", "--snapshot", "0000"), 2, "there is no snapshot")


def test_a_damaged_data_set_is_status_1_with_all_faults(refit, people, layout) -> None:
    assert refit("verify").status == 0
    home = layout.dataset("people")
    for shard in people[1].shards:
        home.shard(shard.digest).unlink()
    done = refit("verify", "people")
    assert done.status == 1
    assert done.stdout.count("a shard is missing or damaged") == 2
    assert "received  no file" in done.stdout
    found = refit("verify", "--json")
    assert (found.status, len(found.document[0]["findings"])) == (1, 2)


def test_what_would_go_is_shown_and_then_goes(refit, people) -> None:
    done = refit("gc", "people", "--keep", "1", "--dry-run")
    assert "would go" in done.stdout
    assert f"snapshots/{people[0].id}.json" in done.stdout
    assert refit("gc", "people", "--keep", "1", "--json").document["removed"] == [people[0].id]
    assert "0 snapshots, 0 files" in refit("gc", "people", "--keep", "1").stdout
    assert refit("gc", "people").status == 2
    check_failed(refit("gc", "people", "--keep", "0"), 2, "--keep")


def test_rows_are_forgotten_only_on_a_clear_yes(refit, people, layout) -> None:
    check_failed(refit("forget", "people", "--key", "3"), 2, "--yes")
    check_failed(refit("forget", "people", "--yes"), 2, "--where SQL, or --key VALUE")
    check_failed(refit("forget", "people", "--key", "three", "--yes"), 2, 'column "id"')
    check_failed(refit("forget", "people", "--where", "nme = 1", "--yes"), 2, "nme", "id, name, y")
    done = refit("forget", "people", "--key", "3", "--yes")
    assert done.status == 0
    for text in ("2 rows with 1 key erased", f"snapshot {people[1].id} is now", "--rejects"):
        assert text in done.stdout
    assert "no such row is there" in refit("forget", "people", "--key", "3", "--yes").stdout
    assert "rows of snapshot" in refit("show", "people", "--snapshot", people[1].id).stdout
    assert refit("verify").status == 0
    document = refit("forget", "people", "--where", "id > 15", "--rejects", "--yes", "--json").document
    assert (document["num_rows"], document["rejects_left"]) == (4, [])
    assert read_head(layout.dataset("people")).num_rows == 15


@pytest.fixture
def forgetting(people):
    """The command as it waits in a terminal for its answer, and where the answer is typed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "data", "forget", "people", "--key", "3", "--json"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=CHECKOUT,
        env=os.environ | {"COLUMNS": "200"},
    )
    yield process, master
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(("answer", "num_rows", "status"), [(b"y\n", 19, 0), (b"n\n", 20, 1), (b"\x04", 20, 1)])
def test_in_a_terminal_the_extent_is_told_and_the_answer_counts(forgetting, layout, answer, num_rows, status) -> None:
    process, terminal = forgetting
    os.write(terminal, answer)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"2 rows with 1 key will be erased for good from 2 snapshots of people" in stderr
    assert read_head(layout.dataset("people")).num_rows == num_rows
    document = json.loads(stdout)
    assert document["num_rows"] == 2 if not status else "was not confirmed" in document["message"]


def test_an_interrupted_command_does_not_say_that_a_run_goes_on(forgetting, layout) -> None:
    process, _ = forgetting
    told = b""
    while not told.endswith(b"[y/N] "):
        told += os.read(process.stderr.fileno(), 4096) or pytest.fail(told.decode())
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (130, b"interrupted")
    assert read_head(layout.dataset("people")).num_rows == 20
