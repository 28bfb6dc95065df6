"""Complete training states on disk: what a fit needs to go on as if it had never been interrupted.

A checkpoint is a folder ``<epoch>-<step>/`` with ``arrays.bin``, all arrays one after the other, and ``state.json``, which says where
each lies. It is written aside, checksummed, fsynced and renamed; the newest that is whole counts, and a damaged one is reported and
passed over. A fit copies its state and goes on; a thread writes the copy.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 -- makes NumPy know bfloat16
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from refit.errors import StorageError
from refit.parallel import ordered_map
from refit.records import Record, Restart, Resumption, sync_path

_ARRAYS, _STATE, _ASIDE = "arrays.bin", "state.json", ".checkpoint."
_ALIGNMENT = 64
_BLOCK_BYTES = 1 << 24
_log = logging.getLogger(__name__)

Arrays = Mapping[str, Sequence[npt.ArrayLike]]


class ArrayRecord(Record):
    """Where an array lies: ``group`` names what it belongs to; arrays of a group keep their order."""

    group: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that its values take."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class CheckpointRecord(Record):
    """Where training stood and what the callbacks knew; arrays lie beside it under their digest.

    Attributes:
        belongs_to: digest of what the fit is a function of.
        epoch: the epoch in which the fit goes on, from 0.
        step: the step of that epoch which comes next; where it is ``steps_per_epoch`` the epoch's validation does.
        steps_per_epoch: steps of an epoch.
        stop_training: whether the fit is over.
        history: what was logged, one number an epoch and value.
        validation_epochs: epochs that were validated.
        logs: of the newest step.
        callbacks: what each callback knows.
        resumed_at: earlier interruptions.
        restarts: how often the fit had diverged, and where it went on.
        best: name of the best epoch's checkpoint.
        chosen_steps: how many steps are run at once, where that was measured.
        events: bytes of each of TensorBoard's files by its path under their folder.
        arrays: what lies in the file, in order.
        arrays_sha256: SHA-256 over the SHA-256s of its blocks of 16 MiB.
    """

    # An infinite ``best`` must come back as a number, also where no type says so.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    belongs_to: str
    epoch: int
    step: int
    steps_per_epoch: int
    stop_training: bool = False
    history: dict[str, list[float]]
    validation_epochs: list[int]
    logs: dict[str, float] = Field(default_factory=dict)
    callbacks: dict[str, dict[str, Any]]
    resumed_at: tuple[Resumption, ...] = ()
    restarts: tuple[Restart, ...] = ()
    best: str | None = None
    chosen_steps: int | None = None
    events: dict[str, int] = Field(default_factory=dict)
    arrays: tuple[ArrayRecord, ...] = ()
    arrays_sha256: str = ""

    @property
    def name(self) -> str:
        """Of its folder; names sort as positions do."""
        return f"{self.epoch:06d}-{self.step:09d}"

    @property
    def total_steps(self) -> int:
        """Steps done since the fit began."""
        return self.epoch * self.steps_per_epoch + self.step


@dataclass(frozen=True)
class Checkpoint:
    """A state in memory. ``content`` is uint8 ``[bytes]``, in which the record's arrays lie."""

    record: CheckpointRecord
    content: npt.NDArray[np.uint8]

    def arrays(self, group: str) -> list[np.ndarray]:
        """The arrays of a group: views of the content."""
        return [_view(self.content, array) for array in self.record.arrays if array.group == group]


def _view(content: npt.NDArray[np.uint8], array: ArrayRecord) -> np.ndarray:
    return content[array.offset : array.offset + array.num_bytes].view(np.dtype(array.dtype)).reshape(array.shape)


@dataclass
class HostCopy:
    """Memory into which a state is copied; used again each time, for fresh memory takes as long to get as to fill."""

    _memory: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def take(self, record: CheckpointRecord, arrays: Arrays) -> Checkpoint:
        """Copy arrays; the checkpoint is good until the next is taken.

        Args:
            record: without ``arrays``.
            arrays: by group; whatever NumPy can look at, such as tensors.
        """
        named = [(group, np.asarray(array)) for group, members in arrays.items() for array in members]
        placed, offset = [], 0
        for group, array in named:
            placed.append(ArrayRecord(group=group, dtype=array.dtype.name, shape=array.shape, offset=offset))
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if len(self._memory) < offset:
            self._memory = np.zeros(offset, np.uint8)
        content = self._memory[:offset]
        for place, (_, array) in zip(placed, named, strict=True):
            np.copyto(_view(content, place), array)
        return Checkpoint(record.model_copy(update={"arrays": tuple(placed)}), content)


# ---- writing


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, also_keep: str | None = None) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the newest ``keep``. One that is at its position already stays.

    Args:
        folder: of the run's checkpoints.
        checkpoint: what is written.
        keep: how many stay.
        also_keep: the name of one that stays however old it is.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / checkpoint.record.name
    if final.exists():
        return final
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=_ASIDE))
    try:
        with (aside / _ARRAYS).open("wb") as file:
            file.write(checkpoint.content.data)
            file.flush()
            os.fsync(file.fileno())
        checkpoint.record.model_copy(update={"arrays_sha256": _digest(checkpoint.content)}).write(aside / _STATE)
        aside.rename(final)
        sync_path(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _complete(folder)[keep:]:
        if old.name != also_keep:
            shutil.rmtree(old, ignore_errors=True)
    return final


class CheckpointWriter:
    """Writes checkpoints of one fit in a thread of its own."""

    def __init__(self, folder: Path, *, keep: int, found: CheckpointRecord | None = None) -> None:
        """Clear away what an interrupted write has left, and what lies after the place where the fit goes on: it is damaged or foreign.

        Args:
            folder: of the run's checkpoints.
            keep: how many stay, besides the best.
            found: the checkpoint that the fit goes on from.

        Raises:
            StorageError: the folder cannot be written.
        """
        self._folder, self._keep = folder, keep
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refit-checkpoint")
        self._writing: Future[Path] | None = None
        self.best = found.best if found else None
        with telling_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            later = [path for path in _complete(folder) if found is None or path.name > found.name]
            for left in (*folder.glob(f"{_ASIDE}*"), *later):
                shutil.rmtree(left)
            tempfile.TemporaryFile(dir=folder).close()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is on its way to the disk."""
        return self._writing is not None and not self._writing.done()

    def save(self, record: CheckpointRecord, arrays: Arrays, *, is_best: bool = False) -> None:
        """Copy a state and have it written; waits for the one before.

        Raises:
            StorageError: the one before could not be written.
        """
        self.wait()
        if is_best:
            self.best = record.name
        taken = self._copy.take(record.model_copy(update={"best": self.best}), arrays)
        self._writing = self._thread.submit(write_checkpoint, self._folder, taken, keep=self._keep, also_keep=self.best)

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            StorageError: it could not be written; earlier checkpoints are untouched.
        """
        if self._writing is not None:
            with telling_disk(self._folder):
                self._writing.result()
            self._writing = None

    def check(self) -> None:
        """See that what was written could be.

        Raises:
            StorageError: it could not.
        """
        if not self.is_writing:
            self.wait()

    def close(self) -> None:
        """End the thread, after what it writes."""
        self._thread.shutdown()


@contextlib.contextmanager
def telling_disk(folder: Path, what: str = "a checkpoint") -> Iterator[None]:
    """Turn what a disk refuses into an error that says what to do.

    Raises:
        StorageError: it refused something.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written: {error.strerror or error}.",
            where=str(folder),
            remedy="Make room, or mend the folder's rights; the next start goes on from the last checkpoint that was written.",
        ) from error


# ---- reading


def read_newest(folder: Path, *, belongs_to: str, accept: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest whole checkpoint that belongs to this fit, or None.

    Args:
        folder: of the run's checkpoints.
        belongs_to: digest of what the fit is a function of; a checkpoint of another fit is not used.
        accept: says whether a checkpoint will do; else the one before is looked at.
    """
    for path in _complete(folder):
        try:
            record = CheckpointRecord.read(path / _STATE)
            if record.belongs_to != belongs_to:
                _log.warning("the checkpoint %s belongs to another fit and is not used", path)
                continue
            found = Checkpoint(record, _read_arrays(path / _ARRAYS, record))
            if accept(found):
                return found
        except (OSError, ValueError) as error:
            _log.warning("the checkpoint %s is damaged (%s); trying the one before", path, error)
    return None


def remove_checkpoints(folder: Path, *, but: str | None = None) -> None:
    """Remove the checkpoints of a fit that is complete, but for one."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.name != but:
            shutil.rmtree(path, ignore_errors=True)
    if but is None:
        shutil.rmtree(folder, ignore_errors=True)


def _read_arrays(path: Path, record: CheckpointRecord) -> npt.NDArray[np.uint8]:
    """The file's bytes, mapped into memory.

    Raises:
        ValueError: they are not what was written.
        OSError: they cannot be read.
    """
    content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    if _digest(content) != record.arrays_sha256:
        raise ValueError("its checksum does not match")
    return content


def _complete(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.replace("-", "").isdecimal()), reverse=True)


def _digest(content: npt.NDArray[np.uint8]) -> str:
    blocks = (content[first : first + _BLOCK_BYTES] for first in range(0, len(content), _BLOCK_BYTES))
    joined = hashlib.sha256()
    for block in ordered_map(lambda block: hashlib.sha256(block.data).digest(), blocks):
        joined.update(block)
    return joined.hexdigest()
