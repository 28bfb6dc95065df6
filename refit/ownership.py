"""One owner a job: an operating system's file lock, and a heartbeat for those who cannot see the lock.

The lock is gone the moment its process is dead, so nothing has to be cleaned up. On file systems where locks do not cross
hosts, a heartbeat of another host that is younger than ``STALE_SECONDS`` counts as an owner too.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from refit.errors import AlreadyRunningError, CorruptRecordError
from refit.layout import Layout
from refit.records import Record

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class OwnerRecord(Record):
    """Who owns a job; ``beat`` is seconds since the epoch."""

    host: str
    boot: str
    pid: int
    since: float
    beat: float


@contextlib.contextmanager
def own_job(layout: Layout, job: str) -> Iterator[None]:
    """Own a job while the block runs.

    Raises:
        AlreadyRunningError: another process owns it.
    """
    folder = layout.job_dir(job)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "owner.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise _already_running(job, _read_owner(folder)) from error
    try:
        other = _read_owner(folder)
        if other and other.host != socket.gethostname() and time.time() - other.beat < STALE_SECONDS:
            raise _already_running(job, other)
        with _beating(folder):
            yield
    finally:
        lock.release()


def is_owned(layout: Layout, job: str) -> bool:
    """Whether a process seems to work on the job; looks only, so that whoever starts in this moment is not kept from it."""
    owner = _read_owner(layout.job_dir(job))
    if owner is None:
        return False
    if owner.host != socket.gethostname():
        return time.time() - owner.beat < STALE_SECONDS
    return owner.boot == _boot_id() and _is_alive(owner.pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _already_running(job: str, owner: OwnerRecord | None) -> AlreadyRunningError:
    who = (
        f"process {owner.pid} on {owner.host}, since {time.strftime('%H:%M:%S UTC', time.gmtime(owner.since))}"
        if owner
        else "another process"
    )
    return AlreadyRunningError(
        f"already running: {who}.", where=f"job {job}", remedy="Wait for it, or end it; an interrupted run is taken up by the next start."
    )


@contextlib.contextmanager
def _beating(folder: Path) -> Iterator[None]:
    done = threading.Event()
    since = time.time()

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):
                _write_owner(folder, since)
            if done.wait(BEAT_SECONDS):
                return

    _write_owner(folder, since)
    thread = threading.Thread(target=beat, name="refit-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        (folder / "owner.json").unlink(missing_ok=True)


def _write_owner(folder: Path, since: float) -> None:
    """Without fsync: a heartbeat need not survive a power cut."""
    record = OwnerRecord(host=socket.gethostname(), boot=_boot_id(), pid=os.getpid(), since=since, beat=time.time())
    aside = folder / f".owner.{os.getpid()}"
    aside.write_text(record.model_dump_json())
    aside.replace(folder / "owner.json")


def _read_owner(folder: Path) -> OwnerRecord | None:
    try:
        return OwnerRecord.read(folder / "owner.json")
    except (OSError, CorruptRecordError):
        return None


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
