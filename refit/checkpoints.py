"""Complete training states on disk: what a fit needs to go on as if it had never been interrupted.

A checkpoint is a folder ``<steps>/`` with ``arrays.npz`` and ``state.json``. It is written aside, checksummed, fsynced and
renamed; the newest that is whole counts, and a damaged one is reported and passed over.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict

from refit.records import Record, Resumption, sync_path

_ARRAYS, _STATE = "arrays.npz", "state.json"
_log = logging.getLogger(__name__)


class CheckpointRecord(Record):
    """Where training stood and what the callbacks knew; arrays lie beside it under their digest."""

    # An infinite ``best`` must come back as a number, also where no type says so.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    belongs_to: str
    epoch: int
    step: int
    stop_training: bool
    history: dict[str, list[float]]
    validation_epochs: list[int]
    callbacks: dict[str, dict[str, Any]]
    resumed_at: tuple[Resumption, ...] = ()
    num_arrays: dict[str, int]
    arrays_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A state in memory: ``arrays`` by group, in order (``model``, ``optimizer``, and one group a callback that keeps weights)."""

    record: CheckpointRecord
    arrays: dict[str, list[np.ndarray]]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the newest ``keep``.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".checkpoint."))
    try:
        named = {f"{group}/{n:06d}": values for group, arrays in checkpoint.arrays.items() for n, values in enumerate(arrays)}
        with (aside / _ARRAYS).open("wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        counts = {group: len(arrays) for group, arrays in checkpoint.arrays.items()}
        update = {"arrays_sha256": _digest(aside / _ARRAYS), "num_arrays": counts}
        checkpoint.record.model_copy(update=update).write(aside / _STATE)
        final = folder / f"{checkpoint.record.step:012d}"
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        sync_path(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _complete(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read_newest(folder: Path, *, belongs_to: str) -> Checkpoint | None:
    """The newest whole checkpoint that belongs to this fit, or None.

    Args:
        folder: of the run.
        belongs_to: digest of what the fit is a function of; a checkpoint of another fit is not used.
    """
    for path in _complete(folder):
        try:
            record = CheckpointRecord.read(path / _STATE)
            if _digest(path / _ARRAYS) != record.arrays_sha256:
                raise ValueError("its checksum does not match")
            if record.belongs_to == belongs_to:
                return Checkpoint(record, _load(path / _ARRAYS, record.num_arrays))
            _log.warning("the checkpoint %s belongs to another fit and is not used", path)
        except (OSError, ValueError) as error:
            _log.warning("the checkpoint %s is damaged (%s); trying the one before", path, error)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a fit that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def _load(path: Path, num_arrays: dict[str, int]) -> dict[str, list[np.ndarray]]:
    with np.load(path, allow_pickle=False) as stored:
        return {group: [stored[f"{group}/{n:06d}"] for n in range(count)] for group, count in num_arrays.items()}


def _complete(folder: Path) -> list[Path]:
    """Checkpoints by falling step."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
