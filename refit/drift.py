"""Whether the rows that the champion never saw have another distribution than those it was trained on.

Each column is tested twice, its values and its share of missing values, and all p-values are corrected together. A certain
difference is not yet an important one: with enough rows everything is certain. So a column has drifted only where the
corrected p-value is small and the effect is large enough.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import asin, ceil, sqrt

import numpy as np
from scipy import stats

from refit.config import DriftConfig, Job, nearest
from refit.errors import DataError
from refit.layout import Layout
from refit.profiles import ColumnProfile, Profile, merge_profiles, profile_shards, values_of
from refit.records import Column, ColumnDrift, DriftRecord, Histogram, SnapshotRecord
from refit.wording import format_column

MINIMUM_VALUES = 30
"""Fewer values on a side are not tested: ten bins would hold less than three each."""

MINIMUM_COHEN_H = 0.2
"""A smaller difference between two missing shares is no drift: 0 and 1 %, 2 and 6 %, 50 and 60 % are just large enough.
Source: J. Cohen (1988), "Statistical power analysis for the behavioral sciences", chapter 6: h = 0.2 is a small effect."""

MAX_CATEGORIES = 20
"""So many values at most are compared one by one, the rest together; a whole number with more is compared as a number."""

MINIMUM_EXPECTED = 5
"""Rarer categories are counted together. Source: W. Cochran (1954), "Some methods for strengthening the common chi-squared
tests", doi:10.2307/3001616."""

QUANTILE_BINS = 10
"""Bins of the population stability index of a number. Source: N. Siddiqi (2006), "Credit risk scorecards"."""

HISTOGRAM_BINS = 20
HISTOGRAM_LABELS = 12
OTHER = "(other)"

_PSEUDO_COUNT = 0.5
_LARGEST = 1e300


def measure_drift(
    job: Job, snapshot: SnapshotRecord, champion: SnapshotRecord | None, layout: Layout, *, version: int | None
) -> DriftRecord:
    """Compare the rows of the champion's snapshot with the rows in shards that it does not have.

    Keys grow and times pass: the values of key columns, dates and timestamps are measured, but judged only where ``drift.columns``
    names them. Distributions are those of samples of ``refit.profiles.SAMPLE_ROWS`` rows a side, and the tests have the samples' n;
    missing values are counted exactly.

    Args:
        job: its ``drift``; its features and target say which whole numbers are categories.
        snapshot: whose new rows are judged.
        champion: the snapshot that the champion was trained on; ``None`` where there is no champion.
        layout: where the shards lie; their profiles are cached there.
        version: the champion's.

    Raises:
        DataError: ``drift.columns`` names a column that is not there.
        CorruptRecordError: a shard is not there or cannot be read.
        SchemaMismatchError: a column has different types in two shards of a side.
    """
    names = _select(job.drift, snapshot)
    if champion is None:
        new = profile_shards(snapshot.shards, layout.dataset(snapshot.dataset))
        return _describe(job, [snapshot.column(name) for name in names], merge_profiles([]), new, "There is no champion yet.")
    known = {shard.digest for shard in champion.shards}
    old = profile_shards(champion.shards, layout.dataset(champion.dataset))
    new = profile_shards([shard for shard in snapshot.shards if shard.digest not in known], layout.dataset(snapshot.dataset))
    before = {column.name: column for column in champion.columns}
    pairs = [(before[name], snapshot.column(name)) for name in names if name in before]
    if new.num_rows:
        record = DriftRecord(num_old=old.num_rows, num_new=new.num_rows, columns=_judge(job, pairs, old, new))
    else:
        record = _describe(job, [column for column, _ in pairs], old, new, "There are no rows that the champion has not seen.")
    return record.model_copy(update={"champion": version, "old_snapshot": champion.id})


def measure_input_drift(
    job: Job, snapshot: SnapshotRecord, columns: Sequence[Column], new: Profile, layout: Layout, *, version: int
) -> DriftRecord:
    """Compare rows that were predicted with those of the snapshot that the model was trained on.

    Args:
        job: of the model's run; its ``drift`` says which columns are compared, and how.
        snapshot: of the model's run.
        columns: what the model predicts from, as it is stored.
        new: statistics of the rows that were predicted.
        layout: where the shards lie.
        version: the model's.

    Raises:
        CorruptRecordError: a shard is not there or cannot be read.
    """
    wanted = [column for column in columns if column.name in job.drift.columns or not job.drift.columns]
    old = profile_shards(snapshot.shards, layout.dataset(snapshot.dataset))
    if new.num_rows:
        record = DriftRecord(num_old=old.num_rows, num_new=new.num_rows, columns=_judge(job, [(c, c) for c in wanted], old, new))
    else:
        record = _describe(job, wanted, old, new, "No row was predicted.")
    return record.model_copy(update={"champion": version, "old_snapshot": snapshot.id})


def _select(drift: DriftConfig, snapshot: SnapshotRecord) -> list[str]:
    there = [column.name for column in snapshot.columns]
    lost = [f'"{name}" is no column of the data.{nearest(name, there)}' for name in drift.columns if name not in there]
    if lost:
        raise DataError("; ".join(lost), where="drift.columns", remedy="Mend the job.")
    return [name for name in there if name in drift.columns or not drift.columns]


# ---- one column


@dataclass(frozen=True)
class _Side:
    """One side of a column: exact counts, and the sampled values that are not missing."""

    counts: ColumnProfile
    values: np.ndarray

    @property
    def is_sampled(self) -> bool:
        return len(self.values) < self.counts.num_present


@dataclass(frozen=True)
class ValueTest:
    """Whether two samples come from one distribution: the test's name and result, and the effect size.

    ``size`` is the statistic as people read it, where the number alone says something. ``why_not`` says why nothing was tested.
    """

    test: str
    statistic: float
    p_value: float
    psi: float
    size: str = ""
    why_not: str = ""


def _untested(why_not: str) -> ValueTest:
    return ValueTest("none", 0.0, 1.0, 0.0, why_not=why_not)


@dataclass(frozen=True)
class _Pair:
    """A column on both sides, before its p-values are corrected. ``unjudged`` says why its values are not judged."""

    column: Column
    is_categorical: bool
    old: _Side
    new: _Side
    values: ValueTest
    missing_p_value: float
    unjudged: str = ""


def _describe(job: Job, columns: Sequence[Column], old: Profile, new: Profile, why_not: str) -> DriftRecord:
    """One side alone: nothing to compare."""
    pairs = [_pair(job, column, column, old, new) for column in columns]
    told = tuple(_record(job, pair, 1.0, 1.0, "nothing to compare with") for pair in pairs)
    return DriftRecord(num_old=old.num_rows, num_new=new.num_rows, why_not=why_not, columns=told)


def _judge(job: Job, pairs: Sequence[tuple[Column, Column]], old: Profile, new: Profile) -> tuple[ColumnDrift, ...]:
    """Test every column, correct all p-values together, and tell what came out.

    Source: Y. Benjamini and Y. Hochberg (1995), "Controlling the false discovery rate", doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    tested = [_pair(job, before, after, old, new) for before, after in pairs]
    if not tested:
        return ()
    p_values = [[1.0 if pair.unjudged else pair.values.p_value, pair.missing_p_value] for pair in tested]
    adjusted = stats.false_discovery_control(np.ravel(p_values)).reshape(-1, 2).tolist()
    return tuple(_record(job, pair, of_values, of_missing) for pair, (of_values, of_missing) in zip(tested, adjusted, strict=True))


def _pair(job: Job, before: Column, after: Column, old: Profile, new: Profile) -> _Pair:
    if before != after:
        nothing = _Side(ColumnProfile(column=after), np.empty(0))
        why_not = f"not compared: {format_column(before)} before, {format_column(after)} now"
        return _Pair(after, False, nothing, nothing, _untested(why_not), 1.0, why_not)
    one, two = (_Side(profile.column(after), profile.values(after.name)) for profile in (old, new))
    is_categorical = _is_categorical(job, after, [one.values, two.values])
    values = _test_values(after, is_categorical, one, two)
    unjudged = values.why_not or _why_unjudged(job, after)
    return _Pair(after, is_categorical, one, two, values, _missing_p_value(one.counts, two.counts), unjudged)


def _is_categorical(job: Job, column: Column, values: Sequence[np.ndarray]) -> bool:
    """Text, truth values, and whole numbers that the job calls categories or that have few distinct values."""
    kind = values_of(column)
    if kind != "whole":
        return kind in ("text", "truth", "bytes")
    declared = job.target.kind if column.name == job.target.column else (job.features or {}).get(column.name)
    named = declared if isinstance(declared, str) or declared is None else declared.kind
    if named in ("binary", "classes", "category"):
        return True
    return named not in ("regression", "numeric") and len(np.unique(np.concatenate(values))) <= MAX_CATEGORIES


def _why_unjudged(job: Job, column: Column) -> str:
    """Why other values than before are as it should be; empty where they are not."""
    if column.name in job.drift.columns:
        return ""
    if column.name in job.data.key:
        return "not judged: part of the key"
    return "not judged: time passes" if values_of(column) == "time" else ""


# ---- the tests


def _test_values(column: Column, is_categorical: bool, old: _Side, new: _Side) -> ValueTest:
    if values_of(column) == "bytes":
        return _untested("only missing values are compared")
    if min(len(old.values), len(new.values)) < MINIMUM_VALUES:
        are_rows_few = min(old.counts.num_rows, new.counts.num_rows) < MINIMUM_VALUES
        return _untested(f"too few {'rows' if are_rows_few else 'values'} to tell")
    test = compare_categories(old.values.tolist(), new.values.tolist()) if is_categorical else compare_numbers(old.values, new.values)
    of = {"tensor": " of each row's mean", "time": " of seconds since 1970"}.get(values_of(column), "")
    sampled = f", samples of {len(old.values):,} and {len(new.values):,} values" if old.is_sampled or new.is_sampled else ""
    return replace(test, test=f"{test.test}{of}{sampled}")


def compare_numbers(old: np.ndarray, new: np.ndarray) -> ValueTest:
    """Two-sample Kolmogorov-Smirnov test with its asymptotic p-value, and PSI over the old side's deciles.

    Ties make the test conservative, never the opposite. Source: G. Noether (1963), "Note on the Kolmogorov statistic in the discrete
    case", Metrika 7.

    Args:
        old: float64 ``[values]`` without NaN; infinities are the largest and smallest of all.
        new: likewise.
    """
    found = stats.ks_2samp(old, new, method="asymp")
    cuts = quantile_cuts(old)
    psi = stability_index(_count_between(cuts, old), _count_between(cuts, new))
    return ValueTest("Kolmogorov-Smirnov", float(found.statistic), float(found.pvalue), psi, f"KS {found.statistic:.2f}")


def quantile_cuts(values: np.ndarray) -> np.ndarray:
    """Where bins of equal shares end: ascending, each part of the bin below it.

    A value that is as frequent as a whole bin gets one of its own, so that what lies just below it is seen.
    """
    cuts = np.quantile(values, np.arange(1, QUANTILE_BINS) / QUANTILE_BINS, method="inverted_cdf")
    repeated = cuts[1:][cuts[1:] == cuts[:-1]]
    return np.unique(np.concatenate([cuts, np.nextafter(repeated, -np.inf)]))


def _count_between(cuts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in each bin, those beyond the ends in the outer ones: int64 ``[cuts + 1]``."""
    return np.bincount(np.searchsorted(cuts, values, side="left"), minlength=len(cuts) + 1)


def stability_index(old: np.ndarray, new: np.ndarray) -> float:
    """Population stability index of two sets of counts over the same bins: the sum of ``(q - p) ln(q / p)`` over their shares.

    Half a row is added to every bin, so that an empty one is no infinity. Source: index: N. Siddiqi (2006), "Credit risk
    scorecards"; its distribution: B. Yurdakul and J. Naranjo (2020), doi:10.21314/JRMV.2020.227; the half: R. Krichevsky
    and V. Trofimov (1981), doi:10.1109/TIT.1981.1056331.
    """
    before, after = ((counts + _PSEUDO_COUNT) / (counts.sum() + _PSEUDO_COUNT * len(counts)) for counts in (old, new))
    return float(np.sum((after - before) * np.log(after / before)))


def compare_categories(old: Sequence[Hashable], new: Sequence[Hashable]) -> ValueTest:
    """Chi-squared test of homogeneity, and PSI, over the most frequent categories and all others together."""
    table = _pool_rare(*_count_both(old, new))
    if table.shape[1] < 2 and len({*old, *new}) > 1:
        return _untested("hardly a value repeats: not compared")
    found = stats.chi2_contingency(table, correction=False)
    return ValueTest("chi-squared", float(found.statistic), float(found.pvalue), stability_index(*table))


def _count_both(old: Sequence[Hashable], new: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """The categories, the most frequent of both sides together first, and their counts: int64 ``[2, categories]``."""
    before, after = Counter(old), Counter(new)
    names = sorted(before | after, key=lambda name: (-(before[name] + after[name]), str(name)))
    return names, np.array([[side[name] for name in names] for side in (before, after)], dtype=np.int64).reshape(2, -1)


def _pool_rare(names: list[Hashable], counts: np.ndarray) -> np.ndarray:
    """Add up the categories after the most frequent, until no cell expects less than ``MINIMUM_EXPECTED``: int64 ``[2, bins]``."""
    smaller_share = counts.sum(axis=1).min() / counts.sum()
    expected = counts.sum(axis=0) * smaller_share
    kept = min(int((expected >= MINIMUM_EXPECTED).sum()), len(names) if len(names) <= MAX_CATEGORIES else MAX_CATEGORIES - 1)
    while 0 < kept < len(names) and expected[kept:].sum() < MINIMUM_EXPECTED:
        kept -= 1
    rest = counts[:, kept:].sum(axis=1, keepdims=True)
    return np.hstack([counts[:, :kept], rest]) if kept < len(names) else counts


def _missing_p_value(old: ColumnProfile, new: ColumnProfile) -> float:
    """Two-proportion test: the z test's square, or Fisher's exact test where it expects too few in a cell.

    Source: W. Cochran (1954), doi:10.2307/3001616.
    """
    table = np.array([[side.num_missing, side.num_present] for side in (old, new)])
    if table.sum(axis=1).min() < MINIMUM_VALUES or table.sum(axis=0).min() == 0:
        return 1.0
    if stats.contingency.expected_freq(table).min() >= MINIMUM_EXPECTED:
        return float(stats.chi2_contingency(table, correction=False).pvalue)
    return float(stats.fisher_exact(table).pvalue)


def cohen_h(old: float, new: float) -> float:
    """Difference between two shares on a scale on which it is as easy to see everywhere: 0 to pi. Source: J. Cohen (1988), chapter 6."""
    return abs(2 * asin(sqrt(new)) - 2 * asin(sqrt(old)))


# ---- what is told


def _record(job: Job, pair: _Pair, p_adjusted: float, missing_p_adjusted: float, instead: str = "") -> ColumnDrift:
    old, new = pair.old.counts, pair.new.counts
    rate = job.drift.false_discovery_rate
    values_drifted = not pair.unjudged and p_adjusted <= rate and pair.values.psi >= job.drift.min_psi
    missing_drifted = missing_p_adjusted <= rate and cohen_h(old.missing_share, new.missing_share) >= MINIMUM_COHEN_H
    told = list(_findings(pair, values_drifted=values_drifted, missing_drifted=missing_drifted))
    return ColumnDrift(
        name=pair.column.name,
        kind="categorical" if pair.is_categorical else "numeric",
        test=pair.values.test,
        statistic=pair.values.statistic,
        p_value=pair.values.p_value,
        p_adjusted=p_adjusted,
        psi=pair.values.psi,
        num_old=old.num_present,
        num_new=new.num_present,
        missing_old=old.missing_share,
        missing_new=new.missing_share,
        missing_p_adjusted=missing_p_adjusted,
        is_target=pair.column.name == job.target.column,
        has_drifted=values_drifted or missing_drifted,
        verdict=instead or "; ".join(told) or pair.unjudged or "stable",
        histogram=draw_histogram(pair.column, pair.old.values, pair.new.values, is_categorical=pair.is_categorical),
    )


def _findings(pair: _Pair, *, values_drifted: bool, missing_drifted: bool) -> Iterator[str]:
    if values_drifted:
        yield "drifted: " + ", ".join(filter(None, [f"PSI {pair.values.psi:.2f}", pair.values.size]))
    if missing_drifted:
        before, now = pair.old.counts.missing_share, pair.new.counts.missing_share
        yield f"{'more' if now > before else 'less'} is missing: {100 * before:.3g} % before, {100 * now:.3g} % now"


def draw_histogram(column: Column, old: np.ndarray, new: np.ndarray, *, is_categorical: bool) -> Histogram:
    """Shares of both sides over the same bins or categories; a side without values has none."""
    if not len(old) and not len(new):
        return Histogram()
    return _category_histogram(column, old, new) if is_categorical else _number_histogram(column, old, new)


def _number_histogram(column: Column, old: np.ndarray, new: np.ndarray) -> Histogram:
    edges = _edges(np.concatenate([old, new]), is_whole=values_of(column) == "whole")
    old_shares, new_shares = (_shares(_count_between(edges[1:-1], side)) for side in (old, new))
    return Histogram(edges=tuple(edges.tolist()), old=old_shares, new=new_shares)


def _edges(values: np.ndarray, *, is_whole: bool) -> np.ndarray:
    """Equal bins over all but the outermost 1 % of the values, which belong to the outer bins; whole numbers lie within theirs."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.array([-1.0, 0.0, 1.0])
    clipped = np.clip(finite, -_LARGEST, _LARGEST)
    low, high = np.quantile(clipped, [0.005, 0.995], method="inverted_cdf")
    if low == high:
        low, high = clipped.min(), clipped.max()
    if low == high:
        half = max(0.5, abs(low) * 1e-9)
        return np.array([low - half, low + half])
    if is_whole:
        width = max(1, ceil((high - low + 1) / HISTOGRAM_BINS))
        return np.unique(low - 0.5 + width * np.arange(ceil((high - low + 1) / width) + 1))
    return np.unique(np.linspace(low, high, HISTOGRAM_BINS + 1))


def _category_histogram(column: Column, old: np.ndarray, new: np.ndarray) -> Histogram:
    names, counts = _count_both(old.tolist(), new.tolist())
    shown = len(names) if len(names) <= HISTOGRAM_LABELS + 1 else HISTOGRAM_LABELS
    labels = [_label(column, name) for name in names[:shown]]
    if shown < len(names):
        labels, counts = [*labels, OTHER], np.hstack([counts[:, :shown], counts[:, shown:].sum(axis=1, keepdims=True)])
    return Histogram(labels=tuple(labels), old=_shares(counts[0]), new=_shares(counts[1]))


def _label(column: Column, value: object) -> str:
    kind = values_of(column)
    if kind == "truth":
        return "true" if value else "false"
    return f"{value:.0f}" if kind == "whole" else str(value)


def _shares(counts: np.ndarray) -> tuple[float, ...]:
    total = counts.sum()
    return tuple((counts / total).tolist()) if total else ()
