"""One owner a job: seen by other processes at once, gone with its process at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from refit import ownership
from refit.errors import AlreadyRunningError, RequestError
from refit.layout import Layout
from refit.ownership import STALE_SECONDS, OwnerRecord, is_owned, own_job

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import sys, pathlib
from refit.layout import Layout
from refit.ownership import own_job
with own_job(Layout(pathlib.Path(sys.argv[1])), "job"):
    print("owned", flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner_process(home):
    command = [sys.executable, "-c", OWNER, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def write_owner(layout, *, host, age):
    now = time.time()
    OwnerRecord(host=host, boot="b", pid=7, run=None, since=now - age, beat=now - age).write(layout.job_dir("job") / "owner.json")


def ensure_free(layout, job):
    with own_job(layout, job):
        pass


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


def test_a_second_process_cannot_own_the_job_of_a_first(layout) -> None:
    with owner_process(layout.home) as process:
        assert process.stdout.readline() == "owned\n"
        with (
            pytest.raises(AlreadyRunningError, match=f"already running: process {process.pid} on {socket.gethostname()}"),
            own_job(layout, "job"),
        ):
            raise AssertionError
        with pytest.raises(AlreadyRunningError):
            ensure_free(layout, "job")
        ensure_free(layout, "another-job")
        assert process.communicate("")[0] == ""
        assert process.returncode == 0
    ensure_free(layout, "job")
    assert not (layout.job_dir("job") / "owner.json").exists()


def test_a_process_cannot_own_the_job_of_this_one(layout) -> None:
    with own_job(layout, "job"), owner_process(layout.home) as process:
        assert process.stdout.readline() == ""
        assert process.wait(30) == 1


def test_a_job_is_free_the_moment_its_owner_is_killed(layout) -> None:
    with owner_process(layout.home) as process:
        assert process.stdout.readline() == "owned\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert (layout.job_dir("job") / "owner.json").exists()
        ensure_free(layout, "job")


def test_one_process_cannot_own_a_job_twice(layout) -> None:
    with own_job(layout, "job"), pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"):
        ensure_free(layout, "job")


def test_a_job_can_be_owned_again_and_again(layout) -> None:
    for _ in range(3):
        with own_job(layout, "job"):
            assert (layout.job_dir("job") / "owner.json").exists()
    assert not any(thread.name == "refit-heartbeat" for thread in threading.enumerate())


def test_a_block_that_raises_frees_the_job(layout) -> None:
    with pytest.raises(ZeroDivisionError), own_job(layout, "job"):
        raise ZeroDivisionError
    ensure_free(layout, "job")


def test_a_fresh_heartbeat_of_another_host_counts(layout) -> None:
    write_owner(layout, host="elsewhere", age=STALE_SECONDS / 2)
    with pytest.raises(AlreadyRunningError, match="process 7 on elsewhere, since"):
        ensure_free(layout, "job")
    assert OwnerRecord.read(layout.job_dir("job") / "owner.json").host == "elsewhere"


def test_the_refusal_of_another_hosts_job_leaves_the_lock_free(layout) -> None:
    write_owner(layout, host="elsewhere", age=0)
    with pytest.raises(AlreadyRunningError):
        ensure_free(layout, "job")
    write_owner(layout, host="elsewhere", age=STALE_SECONDS + 1)
    ensure_free(layout, "job")


def test_a_stale_heartbeat_of_another_host_does_not_count(layout) -> None:
    write_owner(layout, host="elsewhere", age=STALE_SECONDS + 1)
    with own_job(layout, "job"):
        assert OwnerRecord.read(layout.job_dir("job") / "owner.json").host == socket.gethostname()


def test_a_fresh_heartbeat_of_this_host_without_the_lock_does_not_count(layout) -> None:
    write_owner(layout, host=socket.gethostname(), age=0)
    ensure_free(layout, "job")


def test_whether_somebody_works_on_a_job_is_seen_without_touching_the_lock(layout) -> None:
    assert not is_owned(layout, "job")
    with owner_process(layout.home) as process:
        assert process.stdout.readline() == "owned\n"
        assert is_owned(layout, "job")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert (layout.job_dir("job") / "owner.json").exists()
    assert not is_owned(layout, "job")
    write_owner(layout, host="elsewhere", age=STALE_SECONDS / 2)
    assert is_owned(layout, "job")
    write_owner(layout, host="elsewhere", age=STALE_SECONDS + 1)
    assert not is_owned(layout, "job")


@pytest.mark.parametrize("content", ["", "{", '{"host": 3}'])
def test_a_damaged_heartbeat_does_not_count(layout, content) -> None:
    layout.job_dir("job").mkdir(parents=True)
    (layout.job_dir("job") / "owner.json").write_text(content)
    ensure_free(layout, "job")


def test_the_heart_beats_while_the_job_is_owned(layout, monkeypatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.02)
    path = layout.job_dir("job") / "owner.json"
    with own_job(layout, "job"):
        first = json.loads(path.read_text())
        deadline = time.monotonic() + 10
        while (last := json.loads(path.read_text()))["beat"] <= first["beat"] + 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (last["pid"], last["since"]) == (os.getpid(), first["since"])
    assert sorted(p.name for p in layout.job_dir("job").iterdir() if p.name != "owner.lock") == []


def test_a_job_of_a_bad_name_cannot_be_owned(layout) -> None:
    with pytest.raises(RequestError), own_job(layout, "../job"):
        raise AssertionError
