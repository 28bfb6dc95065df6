"""What stages hand over and what stays on disk: small frozen JSON documents.

A record is written last, aside, and renamed, so that its existence means that its stage is complete. Paths in records
are relative to REFIT_HOME. Fields may be added; those that stand here keep their names and meanings.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refit.config import Feature, Job, TargetKind
from refit.errors import CorruptRecordError

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["promote", "keep", "first", "incompatible", "skipped"]
Status = Literal["running", "completed", "failed", "cancelled", "abandoned"]
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
Metrics = dict[str, float]


class Record(BaseModel):
    """Immutable and strict; a newer field in an old program's hands is ignored, so that forks can read each other's runs."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    def write(self, path: Path) -> Self:
        """Put the record at ``path`` whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=2).encode() + b"\n")
        return self

    def brief(self) -> str:
        """A few words for a line of the log."""
        return ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            FileNotFoundError: there is none, so its stage is not complete.
            CorruptRecordError: it is not a record of this kind.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CorruptRecordError(
                f"this is no valid {cls.__name__}: {'.'.join(map(str, first['loc']))} {first['msg']}.",
                where=str(path),
                remedy="Restore the file, or remove the folder that it describes.",
            ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, fsync, rename, fsync the folder: a reader sees the old file or the new one."""
    with opened_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def opened_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes its place when all went well, as ``write_atomically`` does it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_path(path.parent)


def write_array(path: Path, values: "np.ndarray") -> None:
    """Put an array at ``path`` in NumPy's own format, whole or not at all; it is not copied."""
    import numpy as np

    with opened_atomically(path) as file:
        np.save(file, values, allow_pickle=False)


def array_bytes(values: "np.ndarray") -> bytes:
    """What a file holds that ``write_array`` writes."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return content.getvalue()


def sync_path(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- data


class Column(Record):
    """One column of a snapshot.

    ``type`` is Arrow's name of the storage type (``double``, ``string``, ``fixed_size_binary[64]``). A tensor column also
    has the ``shape`` of one row and the ``dtype`` of its elements.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


class ShardRecord(Record):
    """One Parquet file of a snapshot: content digest, rows, bytes; and which of its rows no longer count.

    ``dropped`` names an array in the data set's ``drops`` folder: sorted positions (uint32) of rows that another row with the
    same key has replaced.
    """

    digest: str
    num_rows: int
    num_bytes: int
    dropped: str | None = None
    num_dropped: int = 0

    @property
    def num_live(self) -> int:
        """Rows that count."""
        return self.num_rows - self.num_dropped


class SourceRecord(Record):
    """One input of a snapshot. ``num_read`` is the sum of the five counts that follow it.

    ``listed_by`` is the source of the job that named the input. ``refused`` says why nothing of it could be read. ``notes`` are
    sentences for the report. ``watermark`` is the greatest value read so far of an incremental column, as text. ``rejects`` names the
    file of its rejected rows.
    """

    name: str
    digest: str
    listed_by: str = ""
    num_read: int
    num_kept: int
    num_rejected: int = 0
    num_filtered: int = 0
    num_duplicate: int = 0
    num_superseded: int = 0
    shards: tuple[ShardRecord, ...] = ()
    refused: str | None = None
    is_vanished: bool = False
    watermark: str | None = None
    rejects: str | None = None
    notes: tuple[str, ...] = ()


class SnapshotRecord(Record):
    """What a data set holds at one time, sources oldest first. ``id`` is the digest of all the rest but ``parent``."""

    id: str
    dataset: str
    key: tuple[str, ...]
    key_hash: str = Field(description="Name and version of the hash in the column _key_hash.")
    reading: str = Field("", description="Digest of what decides how a source's row becomes a stored row.")
    columns: tuple[Column, ...]
    source_columns: tuple[Column, ...] = Field((), description="Columns of the inputs as they were first seen; later inputs must fit.")
    sources: tuple[SourceRecord, ...]
    parent: str | None = None

    @property
    def shards(self) -> list[ShardRecord]:
        """All shards in order of their sources."""
        return [shard for source in self.sources for shard in source.shards]

    @property
    def num_rows(self) -> int:
        """Rows that count, over all shards."""
        return sum(shard.num_live for shard in self.shards)

    def column(self, name: str) -> Column:
        """The column of that name; ``KeyError`` where there is none."""
        return {c.name: c for c in self.columns}[name]

    def brief(self) -> str:
        """A few words for a line of the log."""
        return f"snapshot {self.id} holds {self.num_rows:,} rows"


class CheckRecord(Record):
    """One check of the data: what was checked, whether it held, and the numbers. One that only warns stops nothing."""

    name: str
    ok: bool
    detail: str
    only_warns: bool = False

    @classmethod
    def of(cls, name: str, ok: bool, good: str, bad: str, *, only_warns: bool = False) -> Self:
        """A check that says one thing where it held and another where it did not."""
        return cls(name=name, ok=ok, detail=good if ok else bad, only_warns=only_warns)


class Histogram(Record):
    """Shares of a column's values that are not missing, old and new over the same bins: one edge more than bins, or a label each."""

    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    old: tuple[float, ...] = ()
    new: tuple[float, ...] = ()


class ColumnDrift(Record):
    """One column: the champion's training rows (old) against rows that it never saw (new).

    ``p_adjusted`` is corrected over all columns and both tests (values, missing share). ``psi`` is the effect size.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    test: str
    statistic: float
    p_value: float
    p_adjusted: float
    psi: float
    num_old: int
    num_new: int
    missing_old: float
    missing_new: float
    missing_p_adjusted: float = 1.0
    is_target: bool = False
    has_drifted: bool
    verdict: str
    histogram: Histogram


class DriftRecord(Record):
    """New rows against the champion's. Without a champion, or without new rows, ``columns`` hold the new side alone."""

    champion: int | None = None
    old_snapshot: str | None = None
    num_old: int = 0
    num_new: int
    why_not: str | None = Field(None, description="Why nothing was compared, in words.")
    columns: tuple[ColumnDrift, ...]

    @property
    def drifted(self) -> list[ColumnDrift]:
        """The columns that have drifted."""
        return [column for column in self.columns if column.has_drifted]


class ValidationRecord(Record):
    """The snapshot against its schema, the job's expectations, and the champion's data."""

    checks: tuple[CheckRecord, ...]
    drift: DriftRecord | None = None

    @property
    def warnings(self) -> list[CheckRecord]:
        """Checks that did not hold and only warn."""
        return [check for check in self.checks if not check.ok]

    def brief(self) -> str:
        """A few words for a line of the log."""
        warned = f", {len(self.warnings)} warn" if self.warnings else ""
        return f"{sum(check.ok for check in self.checks)} checks held{warned}"


class CutsRecord(Record):
    """Where time is cut, UTC: rows later than ``test_after`` are the test split, those before them later than ``validation_after``."""

    validation_after: datetime
    test_after: datetime


class SplitRecord(Record):
    """Which row is on which side. Arrays lie in the run's ``split`` folder.

    ``left_out`` counts the rows on no side by what keeps them off. ``folds`` counts the validation rows of each fold.
    """

    by: str
    num_rows: dict[Side, int]
    digest: str = Field(description="SHA-256 over the sides of all rows in snapshot order.")
    left_out: dict[str, int] = {}
    cuts: CutsRecord | None = None
    folds: tuple[int, ...] = ()
    learns_from: Literal["train", "pool"] = Field(
        "train", description="What the exported model learns from, its statistics included; pool is train and validation together."
    )
    checks: tuple[CheckRecord, ...] = ()

    def brief(self) -> str:
        """A few words for a line of the log."""
        counts = [f"{count:,} {side}" for side, count in self.num_rows.items()]
        counts += [f"{count:,} left out ({reason})" for reason, count in self.left_out.items()]
        return f"by {self.by}: {', '.join(counts)}" + (f"; {len(self.folds)} folds" if self.folds else "")


# ---- model


class FeaturePlan(Record):
    """One feature with the statistics that its layers hold, all from the train split.

    Attributes:
        name: of the column.
        kind: of the feature.
        column: what is stored.
        feature: what the job says of it, or what was inferred; None in records of earlier releases.
        mean: what is subtracted from a number (after its logarithm, where that is taken).
        variance: the square of what it is divided by then.
        fill: what stands for a missing number.
        boundaries: between bins, rising.
        num_missing: rows of the train split without a value.
        vocabulary: values or tokens by falling frequency.
        idf: the weight of each token of the vocabulary.
        means: of each position of a vector.
        variances: likewise.
        scale: factor of an image's values.
    """

    name: str
    kind: Literal["numeric", "category", "image", "text", "vector", "timestamp"]
    column: Column
    feature: Feature | None = None
    mean: float | None = None
    variance: float | None = None
    fill: float | None = None
    boundaries: tuple[float, ...] | None = None
    num_missing: int = 0
    vocabulary: tuple[str, ...] | tuple[int, ...] | None = None
    idf: tuple[float, ...] | None = None
    means: tuple[float, ...] | None = None
    variances: tuple[float, ...] | None = None
    scale: float | None = None


class CrossPlan(Record):
    """Combinations of categories, hashed into ``bins``."""

    name: str
    of: tuple[str, ...]
    bins: int


class TargetPlan(Record):
    """What is predicted: the classes in order of their index, none for a regression, and the scale on which that is learned."""

    name: str
    kind: TargetKind
    column: Column
    classes: tuple[str, ...] | tuple[int, ...] | None = None
    separator: str | None = Field(None, description="What stands between a row's labels (multilabel).")
    mean: float | None = Field(None, description="Of the train split's values, logarithms where log is true; null: they are not scaled.")
    deviation: float | None = None
    log: bool = False


class BatchesRecord(Record):
    """How rows become batches. What is measured or chosen once (engine, window, TensorFlow's version) decides the order of rows."""

    engine: Literal["resident", "streaming"]
    row_bytes: int
    batch_size: int
    steps_per_epoch: int
    elements: dict[str, str] = Field(description="Each element of a batch: dtype and shape.")
    features: tuple[FeaturePlan, ...]
    crosses: tuple[CrossPlan, ...] = ()
    target: TargetPlan
    num_train: int = 0
    num_validation: int = 0
    window_rows: int = Field(524_288, description="Rows that streaming shuffles at a time.")
    drop_remainder: bool = False
    sample: float | None = Field(None, description="Share of the train split that is trained on, where it is not all of it.")
    resplit_each_epoch: bool = False
    class_weights: tuple[float, ...] | None = Field(None, description="Weight of each class in the order of the target's classes.")
    sample_weight: str | None = Field(None, description="The column with the weights of rows.")
    tensorflow: str = Field("", description="The version by which rows are ordered.")

    def brief(self) -> str:
        """A few words for a line of the log."""
        told = f"{self.steps_per_epoch} steps of {self.batch_size} rows an epoch, {self.row_bytes} bytes a row"
        return told + (f", streamed in windows of {self.window_rows:,} rows" if self.engine == "streaming" else "")


class BuildRecord(Record):
    """The model that the builder returned."""

    build: str
    options: dict[str, Any]
    builder_sha256: str
    num_parameters: int
    summary: str

    def brief(self) -> str:
        """A few words for a line of the log."""
        return f"{self.build}, {self.num_parameters:,} parameters"


class Resumption(Record):
    """Where an interrupted fit went on: both count from 0 and name the next to be done."""

    epoch: int
    step: int


class Restart(Record):
    """How a fit that had diverged went on; all count from 0.

    Attributes:
        diverged_epoch: the epoch in which the loss was not finite.
        diverged_step: the step of that epoch.
        epoch: the epoch in which it went on.
        step: steps that were done there since the fit began.
        factor: by what the job's learning rate is multiplied from then on.
    """

    diverged_epoch: int
    diverged_step: int
    epoch: int
    step: int
    factor: float


class WarmStart(Record):
    """The weights that a fit took over from the version that serves. Variables are named by path.

    Attributes:
        version: that served when the fit began.
        run: that trained it.
        why_not: why the fit starts afresh, in words; then nothing was taken.
        weights_sha256: of that run's file of weights.
        num_taken: variables that were taken over, those of which only some rows were among them.
        num_taken_parameters: numbers that were taken over.
        num_parameters: numbers in all variables.
        fresh: variables of which nothing was taken.
        tokens: of embeddings whose vocabulary has changed: how many tokens the version knew, and how many there are.
        shifted: features whose statistics have changed since, so that their numbers mean slightly else.
        num_seen_validation: validation rows that the version, or one that it started from, was trained on.
    """

    version: int | None = None
    run: str | None = None
    why_not: str | None = None
    weights_sha256: str | None = None
    num_taken: int = 0
    num_taken_parameters: int = 0
    num_parameters: int = 0
    fresh: tuple[str, ...] = ()
    tokens: dict[str, tuple[int, int]] = {}
    shifted: tuple[str, ...] = ()
    num_seen_validation: int = 0

    @property
    def num_variables(self) -> int:
        """Variables of the model."""
        return self.num_taken + len(self.fresh)

    def brief(self) -> str:
        """A few words for a line of the log."""
        if self.why_not:
            return f"afresh: {self.why_not}"
        return f"version {self.version}, {self.num_taken} of {self.num_variables} weights taken over"


class FitRecord(Record):
    """A finished fit. ``history`` maps each logged value to one number an epoch."""

    num_epochs: int
    best_epoch: int | None
    history: dict[str, list[float]]
    validation_epochs: list[int]
    weights_sha256: str
    resumed_at: tuple[Resumption, ...] = ()
    restarts: tuple[Restart, ...] = ()
    devices: tuple[str, ...]
    strategy: Literal["mirrored"] | None = None
    examples_per_second: float
    best_checkpoint: str | None = None
    precision: str = "float32"
    stopped_by: Literal["early_stopping", "max_minutes"] | None = None
    steps_per_execution: int = 1
    warm_start: WarmStart | None = None

    def brief(self) -> str:
        """A few words for a line of the log."""
        best = "" if self.best_epoch is None else f", best {self.best_epoch + 1}"
        return f"{self.num_epochs} epochs{best}, {self.examples_per_second:,.0f} examples/s"


class Spread(Record):
    """One metric over several fits; ``deviation`` is the standard deviation of a sample."""

    mean: float
    deviation: float
    low: float
    high: float


class FoldRecord(Record):
    """The fit of one fold: its metrics on the fold's rows after its best epoch (from 0)."""

    num_epochs: int
    best_epoch: int
    metrics: Metrics
    weights_sha256: str


class FoldsRecord(Record):
    """Cross-validation; without folds it says nothing. ``num_epochs`` is how long the exported model learns from all rows."""

    folds: tuple[FoldRecord, ...] = ()
    metrics: dict[str, Spread] = {}
    num_epochs: int | None = None

    def brief(self) -> str:
        """A few words for a line of the log."""
        if not self.folds:
            return "none asked for"
        told = ", ".join(f"{name} {spread.mean:.4f} ± {spread.deviation:.4f}" for name, spread in self.metrics.items())
        return f"{len(self.folds)} folds: {told}; {self.num_epochs} epochs are best in the median"


class ExportRecord(Record):
    """An exported SavedModel and the proof that it predicts what the trained model predicts."""

    path: str
    digest: str
    num_bytes: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    proof_rows: int
    threshold: float = Field(0.5, description="Above which a label is told (binary, multilabel).")
    proof_odd_rows: int = Field(0, description="Rows that were made up, with missing and unseen values.")
    max_difference: float = Field(description="Between predictions of the trained model and of the SavedModel; a share of those above 1.")
    latency_p50_ms: float
    latency_p99_ms: float

    def brief(self) -> str:
        """A few words for a line of the log."""
        return f"proved on {self.proof_rows} rows, off by {self.max_difference:.1g}, p99 {self.latency_p99_ms:.2f} ms"


class ChampionRecord(Record):
    """The version that serves, or the best of the earlier ones, and what it scored on the rows of this run."""

    version: int
    run: str | None = None
    metrics: Metrics
    incompatible: str | None = Field(None, description="Why it cannot be compared, in words.")
    num_shared_rows: int = Field(0, description="Test rows of this run that the champion was trained on.")
    threshold: float = Field(0.5, description="As its export has it.")


class BaselinesRecord(Record):
    """What models that learn next to nothing score on the test rows: ``metrics`` by name, and why one could not be made."""

    metrics: dict[str, Metrics] = {}
    why_not: dict[str, str] = {}
    num_train_rows: dict[str, int] = Field({}, description="Rows that each learned from.")

    def brief(self) -> str:
        """A few words for a line of the log."""
        return ", ".join([*self.metrics, *(f"no {name}: {why}" for name, why in self.why_not.items())]) or "none"


class EvaluationRecord(Record):
    """Metrics of the exported candidate, and of the champion, the best earlier version and the baselines on the same test rows."""

    metrics: dict[Literal["validation", "test"], Metrics]
    champion: ChampionRecord | None = None
    best: ChampionRecord | None = Field(None, description="The best of the earlier versions, where the job's rule asks for it.")
    num_rows: int
    baselines: dict[str, Metrics] = {}
    no_baselines: dict[str, str] = Field({}, description="Why a baseline could not be made, by its name.")

    def brief(self) -> str:
        """A few words for a line of the log."""
        told = ", ".join(f"{name} {value:.4f}" for name, value in list(self.metrics["test"].items())[:3])
        return f"{self.num_rows:,} test rows: {told}" + (f", against version {self.champion.version}" if self.champion else "")


class Comparison(Record):
    """Candidate minus champion, or another version, on the same rows, in the metric's unit, with its interval."""

    metric: str
    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    confidence: float
    num_rows: int
    method: str
    p_value: float | None = Field(None, description="Of a difference this large where there is none, two-sided.")
    detectable: float | None = Field(None, description="The smallest difference that so many rows tell from zero 80 times in 100.")
    rows_needed: int | None = Field(
        None, description="Rows that tell the difference seen from zero 80 times in 100; null where it is zero."
    )


class Reason(Record):
    """Why: a code for programs, a sentence for people."""

    code: str
    ok: bool
    text: str


class GateRecord(Record):
    """The verdict, its reasons and its numbers."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    comparison: Comparison | None = None
    best: Comparison | None = Field(None, description="The candidate against the best of the earlier versions.")
    judged_against: int | None = Field(None, description="The champion's version; null where there was none.")

    def brief(self) -> str:
        """A few words for a line of the log."""
        return self.verdict


class PublishRecord(Record):
    """The version that the run published, if any."""

    version: int | None
    path: str | None = None

    def brief(self) -> str:
        """A few words for a line of the log."""
        return "nothing" if self.version is None else f"version {self.version}"


# ---- the run


class Rows(Record):
    """Rows on each side."""

    train: int
    validation: int
    test: int


class CodeRecord(Record):
    """The code that ran. ``git`` is the commit, with ``+`` and a digest of the uncommitted changes where there are any."""

    git: str | None
    builder_sha256: str


class RunRecord(Record):
    """``run.json``: inputs, digests, versions, verdict, metrics, seconds."""

    run: str
    job: str
    status: Status
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    snapshot: str | None = None
    rows: Rows | None = None
    metrics: dict[Literal["validation", "test"], Metrics] = {}
    champion: ChampionRecord | None = None
    baselines: dict[str, Metrics] = {}
    weights_sha256: str | None = None
    model_version: int | None = None
    seconds: dict[str, float] = {}
    resumed_at: tuple[Resumption, ...] = ()
    config_digest: str
    code: CodeRecord
    versions: dict[str, str]
    started: datetime
    ended: datetime | None = None
    error: str | None = None
    inputs_digest: str = Field(description="What must be unchanged for a later run to be skipped.")
    unchanged_since: str | None = Field(None, description="The run whose inputs were the same (verdict skipped).")
    comparison: Comparison | None = None
    parameters: Job
    report: str | None = None
    saved_model: str | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether a later start of the job should finish this run first, if nobody owns it."""
        return self.status in ("running", "cancelled")


class HistoryRecord(Record):
    """One line of a model's history."""

    version: int
    action: Literal["promote", "rollback", "release"]
    run: str | None
    verdict: str | None
    reason: str
    by: str
    at: datetime
    digest: str | None = None
    metrics: Metrics = {}
    restores: int | None = Field(None, description="The version that a rollback published again.")
    withdraws: int | None = Field(None, description="The version that a rollback took out of service.")
