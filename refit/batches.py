"""Parquet to tf.data: a batch is a pure function of (snapshot, split, seed, epoch, step).

Two engines stand behind the functions here: ``refit.resident`` holds all rows in memory, ``refit.streaming`` reads them in windows.
Neither has a shuffle buffer or hidden state, so that any batch of any epoch can be produced first, in any process.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from refit.assignments import NO_SIDE, SIDE_CODES, TRAIN, VALIDATION, Sides, threshold
from refit.config import BatchesConfig, Feature, ImageFeature, Job
from refit.errors import DataError, JobError
from refit.feature_plans import ConstantColumnError, fit_plans, plan_crosses, plan_image, resolve_features
from refit.layout import Layout
from refit.memory import available_bytes
from refit.packing import Packing, plan_packing
from refit.records import BatchesRecord, FeaturePlan, Side, SnapshotRecord
from refit.resident import Resident, load_resident
from refit.row_groups import check_digests, count_missing, open_row_groups, stored_bytes
from refit.schema import check_names
from refit.shards import live_mask, read_hashes
from refit.slicing import Slicing, count_steps
from refit.splits import Rows
from refit.streaming import Streaming
from refit.targets import encode_labels, plan_target
from refit.weights import check_weight_column, check_weights_count, class_weights
from refit.wording import counted

RowsSource = Resident | Streaming
ReadColumns = Callable[[Side, list[str]], Rows]
_WINDOW_BYTES = 1 << 28
_SHARE_OF_MEMORY = 0.5
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # spreads hashes of which a split has taken a range. Source: Knuth, TAOCP 3, 6.4
FITTED: tuple[Side, ...] = ("train", "validation")
_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """A place in training: the epoch and step that come next, both from 0."""

    epoch: int
    step: int


# ---- how rows become batches


def plan_batches(job: Job, snapshot: SnapshotRecord, layout: Layout, sides: Sides, read: ReadColumns) -> BatchesRecord:
    """Decide how rows become batches: features and target with their statistics, weights, elements, engine, steps.

    Columns are read one at a time.

    Args:
        job: the job.
        snapshot: the data.
        layout: where they lie.
        sides: of each row, as ``refit.splits.read_sides`` gives them for the fit.
        read: columns of the rows of a side; what it gives as train is what statistics are taken from.

    Raises:
        DataError: a feature, the target or a weight cannot be made of its column, or there are fewer rows than a batch.
        JobError: the class weights do not fit the target.
        SourceError: a shard is missing or damaged.
    """
    check_digests(snapshot, layout)
    features = tuple(_plan_features(job, snapshot, read))
    check_names([*(plan.name for plan in features), *(cross.name for cross in plan_crosses(job))])
    labels = read("train", [job.target.column]).table[job.target.column]
    target = plan_target(job, snapshot, labels)
    _check_weights(job, snapshot, read)
    encode_labels(read("validation", [target.name]).table[target.name], target)
    num_train, num_validation = _count_rows(job, sample_sides(snapshot, layout, sides, job.batches.sample))
    packing = plan_packing(features, target, job.fit.sample_weight)
    engine = choose_engine(job.batches, _held_bytes(snapshot, layout, packing, num_train + num_validation))
    if engine == "streaming":
        _check_images(snapshot, layout, features)
    return BatchesRecord(
        engine=engine,
        row_bytes=packing.row_bytes,
        batch_size=job.fit.batch_size,
        steps_per_epoch=count_steps(num_train, job.fit.batch_size, drop_remainder=job.batches.drop_remainder),
        elements={field.name: field.element for field in packing.fields},
        features=features,
        crosses=plan_crosses(job),
        target=target,
        num_train=num_train,
        num_validation=num_validation,
        window_rows=max(job.fit.batch_size, min(job.batches.window_rows, _WINDOW_BYTES // packing.row_bytes)),
        drop_remainder=job.batches.drop_remainder,
        sample=job.batches.sample,
        resplit_each_epoch=job.split.resplit_each_epoch,
        class_weights=class_weights(job.fit.class_weight, target, labels),
        sample_weight=job.fit.sample_weight,
        tensorflow=str(tf.__version__),
    )


def _held_bytes(snapshot: SnapshotRecord, layout: Layout, packing: Packing, num_rows: int) -> int:
    """Memory that rows take when all are held; what lies beside the records is there twice while it is read."""
    return num_rows * packing.row_bytes + 2 * stored_bytes(snapshot, layout, [field.column for field in packing.words])


def _check_images(snapshot: SnapshotRecord, layout: Layout, features: Sequence[FeaturePlan]) -> None:
    """See that no image or vector is missing, for streaming would meet it in the middle of an epoch.

    Raises:
        DataError: one is.
    """
    for name, count in count_missing(snapshot, layout, [plan.name for plan in features if plan.kind in ("image", "vector")]).items():
        raise DataError(f'{count:,} values of "{name}" are missing, a tensor column has none.', remedy="Filter them: data.where.")


def _plan_features(job: Job, snapshot: SnapshotRecord, read: ReadColumns) -> Iterator[FeaturePlan]:
    """Features with their statistics; a column that does not vary is left out where nobody has asked for it.

    Raises:
        DataError: none is left.
    """
    num_left_out = 0
    resolved = resolve_features(job, snapshot)
    for name, feature in resolved.items():
        try:
            yield _plan_feature(job, snapshot, name, feature, read)
        except ConstantColumnError as error:
            if job.features is not None:
                raise
            num_left_out += 1
            _log.warning("%s It is left out", error.what)
    if num_left_out == len(resolved):
        raise DataError("no column varies in the train split: there is nothing to predict from.", where="features")


def _plan_feature(job: Job, snapshot: SnapshotRecord, name: str, feature: Feature, read: ReadColumns) -> FeaturePlan:
    """A feature with its statistics; of images there are none, and they are not read."""
    if name == job.fit.sample_weight:
        raise JobError(f'"{name}" is the weight of a row and cannot be a feature, too.', where=f"features.{name}")
    if isinstance(feature, ImageFeature):
        return plan_image(name, feature, snapshot.column(name))
    return fit_plans({name: feature}, snapshot, read("train", [name]))[0]


def _check_weights(job: Job, snapshot: SnapshotRecord, read: ReadColumns) -> None:
    """See that sample weights are weights on each side that has rows."""
    name = job.fit.sample_weight
    if name is None:
        return
    check_weight_column(snapshot, name)
    for side in FITTED:
        values = read(side, [name]).table[name]
        if len(values):
            check_weights_count(values, name, side)


def _count_rows(job: Job, sides: Sides) -> tuple[int, int]:
    """Rows of an epoch on each side.

    Raises:
        DataError: there are fewer than a batch.
    """
    num_train, num_validation = (int((sides == code).sum()) for code in (TRAIN, VALIDATION))
    if num_train < job.fit.batch_size:
        told = "the train split has" if job.batches.sample is None else f"the sample ({job.batches.sample:g} of the train split) has"
        raise DataError(
            f"{told} {counted(num_train, 'row')}, fewer than a batch of {job.fit.batch_size:,}.",
            where="fit.batch_size",
            expected=f"at most {num_train:,}",
            received=f"{job.fit.batch_size:,}",
            remedy="Lower it, or add rows.",
        )
    return num_train, num_validation


def choose_engine(config: BatchesConfig, num_bytes: int) -> Literal["resident", "streaming"]:
    """What the job says, or resident where packed rows take at most ``memory_mb``, by default half of the memory that is free."""
    if config.engine != "auto":
        return config.engine
    allowed = config.memory_mb << 20 if config.memory_mb is not None else int(available_bytes() * _SHARE_OF_MEMORY)
    return "resident" if num_bytes <= allowed else "streaming"


def sample_sides(snapshot: SnapshotRecord, layout: Layout, sides: Sides, share: float | None) -> Sides:
    """Sides with this share of the train rows, the others on no side: a row is in the sample, or not, however many there are.

    Returns:
        uint8 ``[rows]``; ``sides`` itself where there is no share.
    """
    if share is None:
        return sides
    home, shards = layout.dataset(snapshot.dataset), snapshot.shards
    keys = np.concatenate([hashes[live_mask(home, shard)] for hashes, shard in zip(read_hashes(home, shards), shards, strict=True)])
    is_left_out = (sides == TRAIN) & (keys * _FIBONACCI >= threshold(share))
    return np.where(is_left_out, np.uint8(NO_SIDE), sides)


# ---- reading


def open_side(snapshot: SnapshotRecord, plan: BatchesRecord, layout: Layout, sides: Sides, side: Literal[Side, "pool"]) -> RowsSource:
    """Rows of one side, ready to be read by the plan's engine.

    Args:
        snapshot: the data.
        plan: how rows become batches.
        layout: where they lie.
        sides: of each row, uint8 ``[rows]`` in the order of the snapshot.
        side: which rows. ``pool``: train and validation together; what is validation is drawn anew for each epoch, as many rows
            as ``sides`` say.

    Raises:
        SourceError: a shard is missing, truncated or altered.
        DataError: the side is empty, or rows cannot be used.
    """
    sides = sample_sides(snapshot, layout, sides, plan.sample)
    is_chosen = sides <= VALIDATION if side == "pool" else sides == SIDE_CODES[side]
    if not is_chosen.any():
        counts = ", ".join(f"{int((sides == code).sum()):,} {name}" for name, code in SIDE_CODES.items())
        raise DataError(f"no row is left for {side}.", where="split", received=f"{len(sides):,} rows: {counts}", remedy="Add rows.")
    packing = plan_packing(plan.features, plan.target, plan.sample_weight)
    groups = open_row_groups(snapshot, layout, packing.columns, is_chosen)
    weights = plan.class_weights if side in ("train", "pool") else None
    num_validation = int((sides == VALIDATION).sum()) if side == "pool" else 0
    if plan.tensorflow not in ("", tf.__version__):
        _log.warning("batches: planned with TensorFlow %s; %s may order rows otherwise", plan.tensorflow, tf.__version__)
    if plan.engine == "resident":
        return load_resident(groups, packing, class_weights=weights, num_validation=num_validation)
    return Streaming(groups, packing, plan.window_rows, weights, num_validation)


def read_batches(
    source: RowsSource,
    *,
    batch_size: int,
    seed: int,
    start: Position,
    drop_remainder: bool = False,
    worker: int = 0,
    num_workers: int = 1,
    device: str | None = None,
) -> tf.data.Dataset:
    """Stream shuffled batches without end, in the order that (seed, epoch, step) fixes.

    Args:
        source: the train split, or the pool.
        batch_size: rows a batch over all workers; the last of an epoch may be smaller.
        seed: of the order.
        start: the first batch to produce; earlier ones are neither read nor computed.
        drop_remainder: leave a smaller last batch out; which rows that are differs from epoch to epoch.
        worker: whose rows: ``worker``, ``worker + num_workers`` and so on of each batch.
        num_workers: how many share each batch. Where the last batch has fewer rows, some get none of it.
        device: where batches are copied to ahead of use, such as ``/gpu:0``; batches with strings stay on the host.

    Returns:
        Elements ``(features, label)``, or ``(features, label, weight)`` where classes or rows have weights: features maps each column
        to ``[batch, *shape]``; label and weight are ``[batch]``.

    Raises:
        ValueError: an epoch has no such step.
    """
    slicing = Slicing(batch_size, drop_remainder, worker, num_workers)
    if not 0 <= start.step < slicing.num_steps(source.num_rows):
        raise ValueError(f"an epoch of {source.num_rows} rows has {slicing.num_steps(source.num_rows)} steps, none is {start.step}")
    return source.shuffled(seed=seed, epoch=start.epoch, step=start.step, slicing=slicing, device=device)


def read_in_order(source: RowsSource, *, batch_size: int) -> tf.data.Dataset:
    """Every row once, in the order of the snapshot; the last batch may be smaller. Elements as in ``read_batches``, classes unweighted."""
    return _of_length(source.in_order(Slicing(batch_size)), source.num_rows, batch_size)


def read_validation(source: RowsSource, *, batch_size: int, seed: int, epoch: int | tf.Variable) -> tf.data.Dataset:
    """The rows of a pool that are validation rows in an epoch, every one once. Elements as in ``read_in_order``.

    Args:
        source: the pool.
        batch_size: rows a batch; the last may be smaller.
        seed: that of ``read_batches``.
        epoch: whose rows. A variable is read whenever an iteration begins, so that one dataset follows the epochs of a fit.

    Raises:
        ValueError: the source is no pool.
    """
    if not source.num_validation:
        raise ValueError("only of a pool are validation rows drawn; use read_in_order")
    batches = source.validation(seed=seed, epoch=epoch, slicing=Slicing(batch_size))
    return _of_length(batches, source.num_validation, batch_size)


def _of_length(batches: tf.data.Dataset, num_rows: int, batch_size: int) -> tf.data.Dataset:
    return batches.apply(tf.data.experimental.assert_cardinality(count_steps(num_rows, batch_size)))
