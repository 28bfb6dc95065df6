"""Killed at any instant, an ingest leaves the snapshot before as it was, and the next one comes to the same end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from refit.config import parse_job
from refit.errors import DataError
from refit.ingestion import ingest, read_head
from refit.layout import Layout
from refit.verification import verify_dataset

NUM_FILES, NUM_ROWS = 6, 4_000


def write_files(folder, first, last):
    for k in range(first, last):
        rows = [f"{(k * NUM_ROWS + i) // 3 if k % 2 else k * NUM_ROWS + i},{i % 97 if i % 500 else 'bad'},{i % 2}" for i in range(NUM_ROWS)]
        (folder / f"{k}.csv").write_text("id,x,y\n" + "\n".join(rows) + "\n")


@pytest.fixture
def job(tmp_path):
    (tmp_path / "in").mkdir()
    write_files(tmp_path / "in", 0, 2)
    data = {"sources": [{"kind": "csv", "path": str(tmp_path / "in" / "*.csv")}], "key": ["id"], "columns": {"x": "int64"}}
    return {"name": "job", "data": data, "target": {"column": "y"}}


def kill(home, job, folder, seed, rounds, seconds):
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(home), str(folder / "job.json"), str(seed), str(rounds)]
    done = subprocess.run([*command, str(seconds)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return int(done.stdout)


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_an_ingest_killed_at_random_moments_loses_nothing(tmp_path, job, rounds) -> None:
    undisturbed, disturbed = Layout(tmp_path / "undisturbed"), Layout(tmp_path / "disturbed")
    first = ingest(parse_job(job), undisturbed)
    assert ingest(parse_job(job), disturbed) == first
    write_files(tmp_path / "in", 2, NUM_FILES)
    started = time.perf_counter()
    expected = ingest(parse_job(job), undisturbed)
    seconds = time.perf_counter() - started
    num_killed = 0
    for seed in range(3, 3 + rounds):
        was_killed = kill(disturbed.home, job, tmp_path, seed, 1, 1.2 * seconds)
        num_killed += was_killed
        seconds *= 1 if was_killed else 0.5  # it was quicker than that
        assert not verify_dataset(disturbed, "job").findings
        assert read_head(disturbed.dataset("job")).id in (first.id, expected.id)
    assert num_killed
    assert ingest(parse_job(job), disturbed).id == expected.id
    assert not verify_dataset(disturbed, "job").findings


def test_what_a_killed_ingest_leaves_is_gone_after_the_next(tmp_path, job) -> None:
    layout = Layout(tmp_path / "home")
    ingest(parse_job(job), layout)
    home = layout.dataset("job")
    for path in (home.shards_dir / ".shard.abc", home.rejects_dir / ".misfits", home.snapshots_dir / ".x.json.y", home.root / ".HEAD.z"):
        path.write_bytes(b"half")
    home.spool_dir.mkdir(exist_ok=True)
    (home.spool_dir / "copy.csv").write_bytes(b"half")
    ingest(parse_job(job), layout)
    assert not [path for path in home.root.rglob("*") if path.is_file() and path.read_bytes() == b"half"]


def test_two_ingests_at_once_come_to_one_snapshot(tmp_path, job) -> None:
    home, script = tmp_path / "home", "import sys, json; from pathlib import Path; from refit.config import parse_job; "
    script += "from refit.ingestion import ingest; from refit.layout import Layout; "
    script += "print(ingest(parse_job(json.loads(sys.argv[2])), Layout(Path(sys.argv[1]))).id)"
    command = [sys.executable, "-c", script, str(home), json.dumps(job)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(outputs)) == 1


def test_an_ingest_waits_for_another_one(tmp_path, job) -> None:
    layout = Layout(tmp_path / "home")
    home = layout.dataset("job")
    home.root.mkdir(parents=True)
    with filelock.FileLock(home.lock):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killing.py")), str(layout.home), str(tmp_path / "job.json"), "0", "1", "0.3"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        (tmp_path / "job.json").write_text(json.dumps(job))
        process.communicate()
        assert read_head(home) is None


def test_a_full_disk_is_told_and_leaves_the_snapshot_before(tmp_path, job) -> None:
    layout = Layout(tmp_path / "home")
    before = ingest(parse_job(job), layout)
    write_files(tmp_path / "in", 2, NUM_FILES)
    script = "import resource, sys, json; from pathlib import Path; from refit.config import parse_job; "
    script += "from refit.ingestion import ingest; from refit.layout import Layout; import signal; "
    script += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); ingest(parse_job(json.loads(sys.argv[2])), Layout(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(layout.home), json.dumps(job)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode
    assert "File too large" in done.stderr
    assert read_head(layout.dataset("job")) == before
    assert not verify_dataset(layout, "job").findings


def test_a_failed_ingest_leaves_the_snapshot_before(tmp_path, job) -> None:
    layout = Layout(tmp_path / "home")
    before = ingest(parse_job(job), layout)
    (tmp_path / "in" / "9.csv").write_text("id,x,y\n" + "1,bad,0\n2,3,0\n" * 20 + "5,5,5\n" * 20)
    with pytest.raises(DataError):
        ingest(parse_job(job), layout)
    assert read_head(layout.dataset("job")) == before
    assert not verify_dataset(layout, "job").findings
