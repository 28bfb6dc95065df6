"""Raw rows in, rows with predictions out: a published model over files of any length, in bounded memory and in the rows' order.

One thread reads, casts and makes tensors, the model computes, another thread writes and measures drift.
"""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from refit.config import Job
from refit.drift import measure_input_drift
from refit.errors import CorruptRecordError, DataError
from refit.layout import Layout
from refit.parallel import Behind, read_ahead
from refit.prediction_files import WRITERS, Format, Naming, Places, columns_of, name_columns, put_in_place, working_aside
from refit.profiles import ShardProfiler
from refit.progress import OnPredictionProgress, PredictionProgress
from refit.raw_rows import CarefullyError, RawPlan, RawReader
from refit.records import DriftRecord, FeaturePlan, Record
from refit.rejects import Rejects, check_rejected
from refit.schema import KEY_HASH, is_encoded, raw_input, signature_name, to_numpy
from refit.served import Request, Served, check_request
from refit.sources import list_inputs
from refit.sources.inputs import Input
from refit.sources.seen import Seen

BATCH_ROWS = 4_096
REJECTS = "rejects"
_BATCH_BYTES = 4 << 20  # of images and vectors: what a network makes of them is many times as large
_FEWEST_ROWS = 32
_ENCODED_ROWS = 64
_AHEAD = 4
_BEHIND = 2
_PEEKED_BYTES = 1 << 20


class InputRecord(Record):
    """One input: what it was (``digest`` is of its content and of how it is read), and its rows."""

    name: str
    digest: str
    num_read: int
    num_rejected: int


class PredictionRecord(Record):
    """What was predicted, from what, by which model."""

    model: str
    version: int
    run: str
    output: str
    inputs: tuple[InputRecord, ...]
    rejects: str | None
    num_read: int
    num_rejected: int
    num_scored: int
    predictions: tuple[str, ...]
    renamed: dict[str, str]
    left_out: tuple[str, ...]
    batch_rows: int
    started: datetime
    seconds: float
    drift: DriftRecord


def predict(served: Served, request: Request, layout: Layout, *, on_progress: OnPredictionProgress | None = None) -> PredictionRecord:
    """Predict all rows of the request's inputs. The output is there when it is complete, or not at all.

    Raises:
        RequestError: the request is wrong.
        AlreadyRunningError: another process writes the output.
        SourceError: an input is missing or cannot be read.
        SchemaMismatchError: an input lacks what the features need.
        DataError: too many rows were rejected; they are in the file of rejects.
    """
    started, began = datetime.now(UTC), time.perf_counter()
    job, places = check_request(served, request)
    inputs = list_inputs(job.data, {}, Seen())
    model = SignatureModel(served, request.batch_rows)
    with working_aside(places) as aside:
        work = _Work(served, job, model, aside / places.output.name, _Teller(on_progress, _estimate_rows(inputs)))
        reader, written = work.read_all(inputs)
        num_rejected = sum(count.num_rejected for count in reader.counts)
        rejects = aside / REJECTS if num_rejected else None
        _check_rejected(reader, request, rejects, places)
        record = PredictionRecord(
            model=served.name,
            version=served.version,
            run=served.run,
            output=str(places.output),
            inputs=tuple(InputRecord(**vars(count)) for count in reader.counts),
            rejects=str(places.rejects) if rejects else None,
            num_read=sum(count.num_read for count in reader.counts),
            num_rejected=num_rejected,
            num_scored=written.num_rows,
            predictions=written.predictions,
            renamed=dict(written.naming.renamed),
            left_out=written.naming.left_out,
            batch_rows=model.batch_rows,
            started=started,
            seconds=round(time.perf_counter() - began, 3),
            drift=_drift(served, written.profiler, layout),
        ).write(aside / "record")
        put_in_place(work.path, rejects, aside / "record", places)
    return record


def _check_rejected(reader: RawReader, request: Request, rejects: Path | None, places: Places) -> None:
    """Raise where too many rows were; then their file is put in its place all the same."""
    limit = reader.job.data.max_rejected_fraction if request.max_rejected_fraction is None else request.max_rejected_fraction
    worst = max(reader.counts, key=lambda count: count.num_rejected)
    try:
        check_rejected(
            reader.rejects,
            sum(count.num_rejected for count in reader.counts),
            sum(count.num_read for count in reader.counts),
            limit=limit,
            worst=f"{worst.name} ({worst.num_rejected:,})",
            remedy=f"Each stands in {places.rejects}. Mend the input, or allow more: --max-rejected-fraction.",
        )
    except DataError:
        if rejects is not None:
            rejects.replace(places.rejects)
        raise


def _drift(served: Served, profiler: ShardProfiler, layout: Layout) -> DriftRecord:
    profile, columns = profiler.finish(), [feature.column for feature in served.plan.features]
    try:
        return measure_input_drift(served.job, served.snapshot, columns, profile, layout, version=served.version)
    except CorruptRecordError as error:
        return DriftRecord(champion=served.version, num_new=profile.num_rows, why_not=str(error), columns=())


# ---- the way of the rows


@dataclass(frozen=True)
class _Work:
    """One prediction: what it is made with, and the file that it writes."""

    served: Served
    job: Job
    model: "SignatureModel"
    path: Path
    tell: "_Teller"

    def read_all(self, inputs: list[Input]) -> tuple[RawReader, "_Written"]:
        """Read and predict all inputs; from the start where one of them is to be read with more care."""
        while True:
            try:
                return self._read(inputs)
            except CarefullyError as error:
                inputs = [replace(found, is_doubtful=found.is_doubtful or number == error.number) for number, found in enumerate(inputs)]

    def _read(self, inputs: list[Input]) -> tuple[RawReader, "_Written"]:
        folder = self.path.parent
        with Rejects(folder / REJECTS, folder / "misfits") as rejects, closing(_Written(self.served, self.path)) as written:
            reader = RawReader(self.served, self.job, inputs, rejects, folder / "spool")
            reader.spool.mkdir(exist_ok=True)
            with closing(read_ahead(self._batches(reader), _AHEAD)) as batches, Behind(_BEHIND) as behind:
                num_done = 0
                for plan, rows, tensors in batches:
                    behind.submit(written.add, plan, rows, self.model.predict(tensors, num_done))
                    num_done += len(rows)
                    self.tell(num_done, sum(count.num_rejected for count in reader.counts))
                behind.finish()
            if reader.plan is not None:
                written.finish(reader.plan, self.model.nothing())
        return reader, written

    def _batches(self, reader: RawReader) -> Generator[tuple[RawPlan, pa.Table, dict[str, tf.Tensor]], None, None]:
        with closing(reader.read()) as tables:
            for rows in _rebatched(tables, self.model.batch_rows):
                if reader.plan is not None:
                    yield reader.plan, rows, self.model.tensors(rows)


def _rebatched(tables: Iterable[pa.Table], num_rows: int) -> Generator[pa.Table, None, None]:
    """The same rows in tables of ``num_rows``, the last of fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= num_rows:
            rows = pa.concat_tables(waiting)
            whole = len(rows) - len(rows) % num_rows
            yield from (rows.slice(start, num_rows) for start in range(0, whole, num_rows))
            waiting = [rows.slice(whole)]
    rest = pa.concat_tables(waiting) if waiting else None
    if rest is not None and len(rest):
        yield rest


class _Teller:
    """Tells how far a prediction is."""

    def __init__(self, on_progress: OnPredictionProgress | None, total: int | None) -> None:
        self._on_progress = on_progress
        self._total = total
        self._began = time.perf_counter()

    def __call__(self, num_done: int, num_rejected: int) -> None:
        if self._on_progress is not None:
            rate = num_done / max(time.perf_counter() - self._began, 1e-6)
            self._on_progress(PredictionProgress(num_done, num_rejected, max(self._total, num_done) if self._total else None, rate))


def _estimate_rows(inputs: list[Input]) -> int | None:
    """About how many rows there are; None where a look at the beginning does not tell."""
    found = [_estimate(file.name, file.size) for one in inputs for file in one.files]
    return sum(filter(None, found)) if found and all(found) else None


def _estimate(name: str, num_bytes: int) -> int | None:
    try:
        with Path(name).open("rb") as file:
            head = file.read(_PEEKED_BYTES)
        if head.startswith(b"PAR1"):
            return int(pq.read_metadata(name).num_rows)
    except (OSError, pa.ArrowException):
        return None
    num_lines = head.count(b"\n")
    return num_bytes * num_lines // len(head) if num_lines and b"\0" not in head else None


# ---- the model


class SignatureModel:
    """A SavedModel, and how rows become its inputs."""

    def __init__(self, served: Served, batch_rows: int | None = None) -> None:
        """Load it; ``batch_rows`` are given to it at a time, by default what suits its inputs."""
        try:
            self._loaded = tf.saved_model.load(str(served.saved_model))
        except (OSError, ValueError) as error:
            raise CorruptRecordError(f"the model cannot be loaded: {error}", where=str(served.saved_model)) from error
        self._predict = self._loaded.signatures["serving_default"]
        wanted = dict(self._predict.structured_input_signature[1])
        self._features = tuple(feature for feature in served.plan.features if signature_name(feature.name) in wanted)
        if len(self._features) < len(wanted):
            what = "the model wants other columns than the record of its run tells."
            raise CorruptRecordError(what, where=str(served.saved_model), expected=", ".join(wanted))
        self.batch_rows = batch_rows or _suiting_rows(self._features)

    def tensors(self, rows: pa.Table) -> dict[str, tf.Tensor]:
        """Rows as the signature takes them."""
        return {signature_name(feature.name): _tensor(rows[feature.name], feature) for feature in self._features}

    def predict(self, tensors: dict[str, tf.Tensor], first_row: int) -> dict[str, np.ndarray]:
        """Named outputs: one value a row before many, the label first."""
        try:
            outputs = {name: values.numpy() for name, values in self._predict(**tensors).items()}
        except tf.errors.OpError as error:
            told = error.message.strip().splitlines()[0]
            raise DataError(
                f"the model cannot predict these rows: {told}", where=f"from row {first_row:,} on, without rejected ones"
            ) from error
        return dict(sorted(outputs.items(), key=lambda item: (item[1].ndim > 1, item[0] != "label", item[0])))

    def nothing(self) -> dict[str, np.ndarray]:
        """Named outputs of no rows."""
        specs = self._predict.structured_outputs.items()
        empty = {name: np.empty((0, *(size or 0 for size in spec.shape[1:])), spec.dtype.as_numpy_dtype) for name, spec in specs}
        return dict(sorted(empty.items(), key=lambda item: (item[1].ndim > 1, item[0] != "label", item[0])))


def _suiting_rows(features: tuple[FeaturePlan, ...]) -> int:
    if any(is_encoded(feature.column) for feature in features):
        return _ENCODED_ROWS
    shapes = [(np.dtype(dtype).itemsize, shape) for dtype, shape in map(raw_input, features) if shape]
    row_bytes = sum(int(np.prod(shape)) * size for size, shape in shapes)
    return min(BATCH_ROWS, max(_FEWEST_ROWS, _BATCH_BYTES // row_bytes)) if row_bytes else BATCH_ROWS


def _tensor(values: pa.ChunkedArray, feature: FeaturePlan) -> tf.Tensor:
    """Raw values of a feature. Of texts each distinct one is handed over once: to make a Python string is dear."""
    dtype, _ = raw_input(feature)
    if dtype != "string" or is_encoded(feature.column):
        return tf.constant(to_numpy(values, feature), dtype)
    words = values.cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
    return tf.gather(tf.constant(words.dictionary.to_pylist(), tf.string), words.indices.to_numpy())


# ---- what is written


class _Written:
    """The output while it is written."""

    def __init__(self, served: Served, path: Path) -> None:
        self._served = served
        self._path = path
        self._writer: Format | None = None
        self._schema = pa.schema([])
        self.naming = Naming((), (), {})
        self.predictions: tuple[str, ...] = ()
        self.num_rows = 0
        self.profiler = ShardProfiler([feature.column for feature in served.plan.features])

    def add(self, plan: RawPlan, rows: pa.Table, outputs: Mapping[str, np.ndarray]) -> None:
        """Append rows with their predictions."""
        predicted = self._columns(outputs)
        writer = self._writer or self._begin(plan, predicted)
        shown = [rows[plan.shown[name]] for name in self.naming.kept]
        writer.write(pa.Table.from_arrays([*shown, *predicted.values()], schema=self._schema))
        numbers = pa.array(np.arange(self.num_rows, self.num_rows + len(rows), dtype=np.uint64))
        features = [feature.name for feature in self._served.plan.features]
        self.profiler.add(rows.select(features).append_column(KEY_HASH, numbers))
        self.num_rows += len(rows)

    def finish(self, plan: RawPlan, nothing: Mapping[str, np.ndarray]) -> None:
        """End the file, which has all columns even without a row."""
        if self._writer is None:
            self._begin(plan, self._columns(nothing))
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self, plan: RawPlan, predicted: Mapping[str, pa.Array]) -> Format:
        kind = WRITERS[self._path.suffix.lower()]
        self.naming = name_columns(plan.shown, plan.schema, list(predicted), kind)
        shown = [plan.schema.field(plan.shown[name]).with_name(name) for name in self.naming.kept]
        told = [pa.field(self.naming.renamed.get(name, name), values.type) for name, values in predicted.items()]
        self._schema = pa.schema([*shown, *told])
        self.predictions = tuple(field.name for field in told)
        self._writer = kind(self._path, self._schema)
        return self._writer

    def _columns(self, outputs: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        classes = self._served.plan.target.classes
        return {title: column for name, values in outputs.items() for title, column in columns_of(name, values, classes).items()}
