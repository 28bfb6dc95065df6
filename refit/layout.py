"""Every path on disk. Nothing else in refit joins folder names.

::

    REFIT_HOME (default ./artifacts)
    ├── data/<dataset>/   shards/  drops/  rejects/  snapshots/  splits/  HEAD
    ├── runs/<job>/       owner.lock  owner.json  <run>/
    └── models/<name>/    <version>/  history.jsonl

Names come from people and reach the file system here, so that here is where they are checked.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refit.errors import HomeError, RequestError

HOME_VARIABLE = "REFIT_HOME"
DEFAULT_HOME = "artifacts"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def safe_name(name: str, *, what: str) -> str:
    """Return ``name`` unchanged.

    Raises:
        RequestError: it could lead out of its folder.
    """
    if not _SAFE.fullmatch(name):
        raise RequestError(f"{what} cannot be used as a name.", expected="letters, digits, - and _", received=repr(name))
    return name


@dataclass(frozen=True)
class Layout:
    """Paths under one REFIT_HOME. Makes no folder but through ``create``."""

    home: Path

    @property
    def runs_dir(self) -> Path:
        """The folder of all runs, which TensorBoard reads."""
        return self.home / "runs"

    @property
    def models_dir(self) -> Path:
        """The folder of all published models, in TensorFlow Serving's layout."""
        return self.home / "models"

    @property
    def datasets_dir(self) -> Path:
        """The folder of all data sets."""
        return self.home / "data"

    def dataset(self, name: str) -> "DatasetLayout":
        """Paths of one data set."""
        return DatasetLayout(self.datasets_dir / safe_name(name, what="the data set"))

    def job_dir(self, job: str) -> Path:
        """The folder of one job's runs."""
        return self.runs_dir / safe_name(job, what="the job")

    def run(self, job: str, run: str) -> "RunLayout":
        """Paths of one run."""
        return RunLayout(self.job_dir(job) / safe_name(run, what="the run"))

    def model(self, name: str) -> "ModelLayout":
        """Paths of one published model."""
        return ModelLayout(self.models_dir / safe_name(name, what="the model"))

    def datasets(self) -> list[str]:
        """Names of the data sets that have a folder, sorted."""
        return sorted(path.name for path in _folders(self.datasets_dir))

    def jobs(self) -> list[str]:
        """Names of the jobs that have a folder, sorted."""
        return sorted(path.name for path in _folders(self.runs_dir))

    def runs(self, job: str) -> list[str]:
        """Ids of a job's runs, oldest first (an id begins with its UTC time)."""
        return sorted(path.name for path in _folders(self.job_dir(job)))

    def relative(self, path: Path) -> str:
        """``path`` as records keep it: relative to the home, with forward slashes."""
        return path.relative_to(self.home).as_posix()

    def resolve(self, relative: str) -> Path:
        """The inverse of ``relative``."""
        return self.home / relative

    def create(self) -> "Layout":
        """Make the home folder and see that it can be written.

        Raises:
            HomeError: it cannot.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"{HOME_VARIABLE} cannot be made.",
                where=str(self.home),
                received=error.strerror or str(error),
                remedy=f"Set {HOME_VARIABLE} to a folder that you may write.",
            ) from error
        if not os.access(self.home, os.W_OK | os.X_OK):
            raise HomeError(
                f"{HOME_VARIABLE} cannot be written.", where=str(self.home), remedy=f"Set {HOME_VARIABLE} to a folder that you may write."
            )
        return self


@dataclass(frozen=True)
class DatasetLayout:
    """Paths of one data set."""

    root: Path

    @property
    def shards_dir(self) -> Path:
        """Immutable Parquet files, named by content."""
        return self.root / "shards"

    def shard(self, digest: str) -> Path:
        """One shard."""
        return self.shards_dir / f"{digest}.parquet"

    @property
    def drops_dir(self) -> Path:
        """Positions of rows that no longer count, named by content."""
        return self.root / "drops"

    def drops(self, digest: str) -> Path:
        """Positions of one shard: uint32, sorted."""
        return self.drops_dir / f"{digest}.npy"

    @property
    def profiles_dir(self) -> Path:
        """Statistics of shards, computed once: a cache."""
        return self.root / "profiles"

    def profile(self, name: str) -> Path:
        """The statistics of one shard's rows that count."""
        return self.profiles_dir / f"{name}.arrow"

    @property
    def spool_dir(self) -> Path:
        """Copies of inputs while they are read: fetched, unpacked or decoded."""
        return self.root / "spool"

    @property
    def seen(self) -> Path:
        """Digests of files by name, size and times: a cache."""
        return self.root / "seen.json"

    @property
    def forgotten(self) -> Path:
        """Key hashes of rows that must not come back: uint64, sorted."""
        return self.root / "forgotten.npy"

    @property
    def rejects_dir(self) -> Path:
        """Rows that could not be read, a file an ingest."""
        return self.root / "rejects"

    def rejects(self, name: str) -> Path:
        """The rejected rows of one ingest, as the records of its inputs name them."""
        return self.rejects_dir / f"{name}.parquet"

    @property
    def snapshots_dir(self) -> Path:
        """Records of what a data set held, named by content."""
        return self.root / "snapshots"

    def snapshot(self, snapshot: str) -> Path:
        """One snapshot's record."""
        return self.snapshots_dir / f"{snapshot}.json"

    @property
    def splits_dir(self) -> Path:
        """What earlier splits have settled: where a row is, it stays."""
        return self.root / "splits"

    def settled(self, name: str) -> Path:
        """What splits of one kind have settled: sorted key hashes and cuts."""
        return self.splits_dir / f"{name}.npz"

    @property
    def splits_lock(self) -> Path:
        """Held while a split settles rows."""
        return self.root / "splits.lock"

    @property
    def head(self) -> Path:
        """Holds the id of the newest snapshot."""
        return self.root / "HEAD"

    @property
    def lock(self) -> Path:
        """Held while an ingest writes."""
        return self.root / "ingest.lock"


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run."""

    root: Path

    @property
    def record(self) -> Path:
        """The whole record of the run."""
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    @property
    def stages_dir(self) -> Path:
        """A record for each stage; that it exists means that the stage is complete."""
        return self.root / "stages"

    def stage(self, name: str) -> Path:
        """The record of one stage."""
        return self.stages_dir / f"{name}.json"

    @property
    def split_dir(self) -> Path:
        """Sides and membership: arrays of the split stage."""
        return self.root / "split"

    @property
    def sides(self) -> Path:
        """Side of each row in snapshot order: uint8."""
        return self.split_dir / "sides.npy"

    @property
    def folds(self) -> Path:
        """Fold of each row in snapshot order: uint8."""
        return self.split_dir / "folds.npy"

    def fold(self, number: int) -> "RunLayout":
        """What the fit of one fold leaves, counted from 0."""
        return RunLayout(self.root / "folds" / str(number + 1))

    @property
    def tensorboard_dir(self) -> Path:
        """Event files: train, validation, evaluation."""
        return self.root / "tensorboard"

    @property
    def checkpoints_dir(self) -> Path:
        """Complete training states."""
        return self.root / "checkpoints"

    @property
    def start_weights(self) -> Path:
        """The weights that a warm start took over, until the fit is complete."""
        return self.root / "start.npz"

    @property
    def model_dir(self) -> Path:
        """What the fit and the export leave."""
        return self.root / "model"

    @property
    def weights(self) -> Path:
        """Weights alone."""
        return self.model_dir / "weights.weights.h5"

    @property
    def keras_model(self) -> Path:
        """The whole Keras model."""
        return self.model_dir / "model.keras"

    @property
    def saved_model(self) -> Path:
        """The SavedModel from raw columns."""
        return self.model_dir / "saved_model"

    @property
    def scores(self) -> Path:
        """Predictions of candidate, champion and the best earlier version on the test rows."""
        return self.root / "scores.parquet"


@dataclass(frozen=True)
class ModelLayout:
    """Paths of one published model: numbered folders of which the highest serves."""

    root: Path

    def version(self, number: int) -> Path:
        """One version's SavedModel."""
        return self.root / str(number)

    def versions(self) -> list[int]:
        """Numbers of the complete versions, ascending."""
        return sorted(int(path.name) for path in _folders(self.root) if path.name.isdecimal() and path.name[0] != "0")

    @property
    def history(self) -> Path:
        """Promotions and rollbacks, one JSON object a line."""
        return self.root / "history.jsonl"

    @property
    def lock(self) -> Path:
        """Held while a version is published."""
        return self.root / "publish.lock"


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in parent.iterdir() if path.is_dir() and _SAFE.fullmatch(path.name))


def home_layout() -> Layout:
    """The layout under ``$REFIT_HOME``, or ``./artifacts``."""
    return Layout(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute())
