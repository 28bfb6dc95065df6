"""Leakage: features that give the label away, and test rows that training has seen.

Features are searched in a sample: the rows with the smallest hashes of their keys, so that the same data give the same answer.
These are rows of the test split, too: nothing here reaches a model.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from refit.config import Job, TargetKind
from refit.expectations import family, num_parts, present_sql
from refit.records import CheckRecord, Column
from refit.schema import KEY_HASH, is_number
from refit.sources.inputs import identifier
from refit.wording import counted, percent

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
SAMPLE_ROWS = 20_000
COLUMNS_AT_A_TIME = 100  # 16 MB of the sample
MIN_LEAKAGE_ROWS = 50  # in fewer rows one feature of some hundred fits by chance
MIN_LEAKAGE_CLASS_ROWS = 10  # ten each of two classes are in order by chance once in 92,378 features
GIVES_AWAY = 0.995  # one row of 200 is wrong; features that people may honestly use stay well below that
MAX_BASE_SHARE = 0.9  # a label that more rows have than these is no news
MAX_CHANCE = 1e-6  # so improbable must it be that rows without a value share their label
MAX_CUT_CLASSES = 100  # for more classes no feature is cut
MAX_PAIRED_COLUMNS = 20  # 190 pairs
SUM_HOLDS = 0.99  # share of the rows, and of the target's variance, for which two columns make up the target
_HUGE = 8e307  # the difference of two such numbers is finite
_QUANTITY_DEPTH = 8  # 256 steps can follow a smooth curve to 1e-5 of its variance; 8 steps cannot reach 0.995
MAX_REPEATED_SHARE = 0.01  # so much is the most that memorised rows can add to a score, about half of what a gate can tell
MAX_COARSE_VALUES = 100  # rows are equal by chance only where no feature has more values


def check_leakage(
    job: Job, connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, Column], kind: TargetKind
) -> Iterator[CheckRecord]:
    """Name the features by which the target could be known without a model: they only warn, for some are honest.

    Args:
        job: its target, features and derived columns.
        connection: where ``rows`` can be read.
        rows: a table expression that can be scanned more than once, with the columns and ``_key_hash``.
        columns: those of ``rows``, by name; the target is among them, varies, and is no tensor.
        kind: of the target.
    """
    target, features = columns[job.target.column], seen_columns(job, columns)
    found: dict[str, list[str]] = {}
    for name in _derived_from(job, [feature.name for feature in features]):
        found.setdefault(name, []).append(f'"{target.name}" is computed from it (data.derive)')
    rows = _sampled(connection, rows, target)
    is_searched = (kind != "regression" or is_number(target)) and _read_sample(connection, rows, target, [], kind).is_enough
    for name, reason in _find_leaks(connection, rows, target, [f for f in features if f.shape is None], kind) if is_searched else ():
        found.setdefault(name, []).append(reason)
    for name, reasons in found.items():
        text = f"{'; '.join(reasons)}. If it is not known when the model predicts, leave it out of the features"
        yield CheckRecord(name=f"leakage: {name}", ok=False, detail=text, only_warns=True)
    if not found:
        detail = "no feature gives the target away" if is_searched else "too few rows to tell whether a feature gives the target away"
        yield CheckRecord(name="leakage", ok=True, detail=detail, only_warns=True)


def seen_columns(job: Job, columns: Mapping[str, Column]) -> list[Column]:
    """The job's features, or every column but target, key, group, dates and times."""
    taken = {job.target.column, *job.data.key, *job.split.named_columns}
    names = job.feature_columns or [name for name in columns if name not in taken and family(columns[name]) != "time"]
    return [columns[name] for name in names if name in columns]


_WORDS = re.compile(r"""'(?:[^']|'')*'|"((?:[^"]|"")*)"|([^\W\d]\w*)(?!\w|\s*\()""")


def _derived_from(job: Job, features: Sequence[str]) -> list[str]:
    """Features that the expression of a derived target names, itself or through other derived columns."""
    derived = {name.casefold(): expression for name, expression in job.data.derive.items()}
    seen: set[str] = set()
    waiting = {job.target.column.casefold()}
    while waiting:
        words = _WORDS.findall(derived.get(waiting.pop(), ""))
        named = {(quoted.replace('""', '"') or bare).casefold() for quoted, bare in words} - seen
        waiting |= named
        seen |= named
    return [name for name in features if name.casefold() in seen]


def _find_leaks(
    connection: duckdb.DuckDBPyConnection, rows: str, target: Column, features: Sequence[Column], kind: TargetKind
) -> Iterator[tuple[str, str]]:
    """Features, or pairs of them, and in words how they give the target away."""
    closeness: dict[str, float] = {}
    for start in range(0, len(features), COLUMNS_AT_A_TIME):
        part = features[start : start + COLUMNS_AT_A_TIME]
        sample = _read_sample(connection, rows, target, part, kind)
        for column in part:
            values = sample.features[column.name]
            reason = _missing_leak(values, sample) or _value_leak(values, sample, is_ordered=is_number(column))
            if reason:
                yield column.name, reason
            elif is_number(column) and not sample.num_classes:
                closeness[column.name] = _rank_correlation(values, sample.targets)
    near = sorted(closeness, key=lambda name: (-closeness[name], name))[:MAX_PAIRED_COLUMNS]
    if len(near) > 1:
        yield from _pair_leaks(_read_sample(connection, rows, target, [f for f in features if f.name in near], kind))


# ---- the sample


def _sampled(connection: duckdb.DuckDBPyConnection, rows: str, target: Column) -> str:
    """Table expression of the sample: all other columns are read for its rows only."""
    sql = f"SELECT {KEY_HASH} FROM {rows} WHERE {present_sql(target)} ORDER BY 1 LIMIT {SAMPLE_ROWS}"  # noqa: S608
    ((highest,),) = connection.execute(f"SELECT coalesce(max({KEY_HASH}), 0) FROM ({sql})").fetchall()  # noqa: S608
    return f"(SELECT * FROM {rows} WHERE {KEY_HASH} <= {highest})"  # noqa: S608


@dataclass(frozen=True)
class _Sample:
    """Rows to search.

    Attributes:
        labels: ``[rows]``, numbers.
        targets: ``[rows]``: positions among the classes, or for a quantity the ranks of the labels from 0 to 1.
        features: ``[rows]`` each; a text is a number that stands for it; NaN is missing.
        is_even: ``[rows]``: one half, by the hash of the key, so that rows with one hash are in the same half.
        num_classes: 0 for a quantity.
    """

    labels: Floats
    targets: Floats
    features: dict[str, Floats]
    is_even: npt.NDArray[np.bool_]
    num_classes: int

    @property
    def is_enough(self) -> bool:
        """Whether leakage can be told from chance."""
        varies = len(self.targets) > 0 and self.targets.min() < self.targets.max()
        return len(self.targets) >= MIN_LEAKAGE_ROWS and bool(varies) and bool(self.is_even.any()) and not self.is_even.all()


def _read_sample(connection: duckdb.DuckDBPyConnection, rows: str, target: Column, features: Sequence[Column], kind: TargetKind) -> _Sample:
    """The sample, without infinite labels and without classes that have too few rows in one of the halves."""
    selected = ", ".join(f"{_number_sql(column)} AS c{position}" for position, column in enumerate((target, *features)))
    sql = (
        f"SELECT {KEY_HASH} % 2 = 0 AS is_even, {selected} FROM {rows} WHERE {present_sql(target)} "  # noqa: S608
        f"ORDER BY {KEY_HASH} LIMIT {SAMPLE_ROWS}"
    )
    arrays = connection.execute(sql).fetchnumpy()
    is_even, labels = np.asarray(arrays["is_even"], dtype=np.bool_), np.asarray(arrays["c0"])
    kept = np.isfinite(labels) if kind == "regression" else _frequent(labels, is_even)
    labels = labels[kept]
    return _Sample(
        labels=labels,
        targets=_ranks(labels) if kind == "regression" else _positions(labels).astype(np.float64),
        features={column.name: np.asarray(arrays[f"c{position}"])[kept] for position, column in enumerate(features, start=1)},
        is_even=is_even[kept],
        num_classes=0 if kind == "regression" else len(np.unique(labels)),
    )


def _number_sql(column: Column) -> str:
    name = identifier(column.name)
    if family(column) == "text":
        return f"CASE WHEN {name} IS NULL THEN 'nan'::DOUBLE ELSE CAST(hash({name}) >> 11 AS DOUBLE) END"
    number = f"epoch_us({name})" if family(column) == "time" else name
    return f"coalesce(CAST({number} AS DOUBLE), 'nan'::DOUBLE)"


def _frequent(labels: Floats, is_even: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which rows are of a class that has ``MIN_LEAKAGE_CLASS_ROWS``, half of them or more in each half."""
    positions = _positions(labels)
    smaller = np.minimum(np.bincount(positions[is_even], minlength=len(labels)), np.bincount(positions[~is_even], minlength=len(labels)))
    return np.asarray(smaller[positions] >= MIN_LEAKAGE_CLASS_ROWS // 2)


def _positions(values: Floats) -> Codes:
    """Each value's position among the values that occur; missing is one of them."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _ranks(values: Floats) -> Floats:
    """Mean ranks from 0 to 1: monotone, and no outlier weighs more than another row."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 0.5) / max(1, len(values)), dtype=np.float64)


# ---- one feature


def _missing_leak(values: Floats, sample: _Sample) -> str:
    """Whether rows that lack a value, or those that have one, share a label that is not that frequent."""
    for word, marked in (("without", np.isnan(values)), ("with", ~np.isnan(values))):
        num_rows = int(marked.sum())
        if not sample.num_classes or num_rows < MIN_LEAKAGE_CLASS_ROWS:
            continue
        counts = np.bincount(sample.targets[marked].astype(np.int64))
        count, base = int(counts.max()), float((sample.targets == counts.argmax()).mean())
        if count >= GIVES_AWAY * num_rows and base <= MAX_BASE_SHARE and base**num_rows < MAX_CHANCE:
            return (
                f"{count:,} of {counted(num_rows, 'row')} {word} a value have the same label, which only {percent(base)} of all rows have"
            )
    return ""


def _value_leak(values: Floats, sample: _Sample, *, is_ordered: bool) -> str:
    """Whether the feature alone predicts the target in rows that were not used to learn how."""
    score = _score(sample, _crosswise(values, sample, _learn_values))
    if score >= GIVES_AWAY:
        return f"each of its values goes with one label ({_right(sample, score)})"
    if not is_ordered:
        return ""
    order = _order(values, sample)
    if order >= GIVES_AWAY:
        return f"its order is that of the target ({'rank correlation' if not sample.num_classes else 'AUC'} {order:.4f})"
    if sample.num_classes > MAX_CUT_CLASSES:
        return ""
    score = _score(sample, _crosswise(values, sample, _learn_cuts))
    return f"a few cuts of its values tell the target ({_right(sample, score)})" if score >= GIVES_AWAY else ""


def _right(sample: _Sample, score: float) -> str:
    what = "right, as a mean over the classes, for" if sample.num_classes else "explains the order of"
    return f"{what} {percent(score)} of rows that it was not learned from"


def _order(values: Floats, sample: _Sample) -> float:
    """Absolute rank correlation with a quantity, AUC of two classes either way round; 0 for more classes."""
    if not sample.num_classes:
        return _rank_correlation(values, sample.targets)
    if sample.num_classes != 2:
        return 0.0
    present = np.isnan(values)
    ranks = _ranks(np.where(present, np.nanmedian(values) if not present.all() else 0.0, values))
    is_first = sample.targets == 0
    # Source: Hanley & McNeil (1982), https://doi.org/10.1148/radiology.143.1.7063747: the AUC is the Mann-Whitney statistic
    auc = 0.5 + float(ranks[~is_first].mean() - ranks[is_first].mean())
    return max(auc, 1 - auc)


def _rank_correlation(values: Floats, targets: Floats) -> float:
    """Spearman's, without its sign; 0 where one row of ten or more lacks a value, or nothing varies."""
    present = np.isfinite(values)
    if present.mean() < MAX_BASE_SHARE:
        return 0.0
    left, right = _ranks(values[present]), _ranks(targets[present])
    return abs(float(np.corrcoef(left, right)[0, 1])) if left.std() and right.std() else 0.0


_Predict = Callable[[Floats], Floats]
_Learn = Callable[[Floats, Floats, int], _Predict]


def _crosswise(values: Floats, sample: _Sample, learn: _Learn) -> Floats:
    """Predictions ``[rows]`` for each half by what was learned of the other."""
    predicted = np.empty_like(sample.targets)
    for half in (sample.is_even, ~sample.is_even):
        predicted[half] = learn(values[~half], sample.targets[~half], sample.num_classes)(values[half])
    return predicted


def _learn_values(values: Floats, targets: Floats, num_classes: int) -> _Predict:
    """For each value its most frequent class or its mean; for a value that was not seen that of all rows."""
    known, positions = np.unique(values, return_inverse=True)
    positions = positions.reshape(-1)
    if num_classes:
        pairs, counts = np.unique(positions * num_classes + targets.astype(np.int64), return_counts=True)
        in_order = np.argsort(counts, kind="stable")
        best = np.empty(len(known))
        best[pairs[in_order] // num_classes] = pairs[in_order] % num_classes  # the last one written is the most frequent
        usual = float(np.bincount(targets.astype(np.int64)).argmax())
    else:
        best = np.bincount(positions, weights=targets) / np.bincount(positions)
        usual = float(targets.mean())

    def predict(values: Floats) -> Floats:
        places = np.minimum(np.searchsorted(known, values), len(known) - 1)
        is_known = (known[places] == values) | (np.isnan(known[places]) & np.isnan(values))
        return np.where(is_known, best[places], usual)

    return predict


def _learn_cuts(values: Floats, targets: Floats, num_classes: int) -> _Predict:
    """A tree over one feature: of depth 3 for two classes, one more each time that the classes double."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if num_classes:
        depth = 2 + math.ceil(math.log2(num_classes))
        tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=2, class_weight="balanced", random_state=0)
    else:
        tree = DecisionTreeRegressor(max_depth=_QUANTITY_DEPTH, min_samples_leaf=2, random_state=0)
    known = np.unique(np.clip(values[~np.isnan(values)], -_HUGE, _HUGE))

    def as_column(values: Floats) -> npt.NDArray[np.float32]:
        # its place among the values that were learned from: a tree takes no infinite numbers and none that float32 cannot hold
        places = np.interp(np.clip(values, -_HUGE, _HUGE), known, np.arange(len(known))) if len(known) else np.zeros_like(values)
        return np.where(np.isnan(values), np.nan, places).astype(np.float32)[:, np.newaxis]

    tree.fit(as_column(values), targets)
    return lambda values: np.asarray(tree.predict(as_column(values)), dtype=np.float64)


def _score(sample: _Sample, predicted: Floats) -> float:
    """Mean over the classes of the share of their rows that is right; or the share of the ranks' variance that is explained."""
    if not sample.num_classes:
        return 1 - float(np.mean((predicted - sample.targets) ** 2) / np.var(sample.targets))
    positions = sample.targets.astype(np.int64)
    return float(np.mean(np.bincount(positions, weights=predicted == sample.targets) / np.bincount(positions)))


# ---- two features


def _pair_leaks(sample: _Sample) -> Iterator[tuple[str, str]]:
    """Two numbers whose sum or difference is the target."""
    for (a, left), (b, right) in itertools.combinations(sample.features.items(), 2):
        for words, made in ((f"{a} + {b}", left + right), (f"{a} - {b}", left - right), (f"{b} - {a}", right - left)):
            share = _share_equal(made, sample.labels)
            if share >= SUM_HOLDS:
                yield words, f"this is the target in {percent(share)} of the rows"


def _share_equal(made: Floats, labels: Floats) -> float:
    """Share of the rows with a value where both are equal; 0 where these are few, or the equality explains no variance."""
    present = np.isfinite(made)
    if present.sum() < max(MIN_LEAKAGE_ROWS, len(labels) / 2):
        return 0.0
    made, labels = made[present], labels[present]
    tolerance = 1e-5 * np.abs(labels) + 1e-6 * labels.std()  # of float32
    variance = labels.var()
    explains = variance > 0 and 1 - np.mean((made - labels) ** 2) / variance >= SUM_HOLDS
    return float((np.abs(made - labels) <= tolerance).mean()) if explains else 0.0


# ---- rows that training has seen


def check_duplicates(
    job: Job, connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, Column], side_sql: str
) -> Iterator[CheckRecord]:
    """See whether the test split holds rows that the model will have seen in training under another key.

    Rows are compared by a hash of all features, in as many passes as keep the memory bounded. Where the features take so few
    values that rows are equal by chance, that says nothing.

    Args:
        job: its features.
        connection: where ``rows`` can be read.
        rows: a table expression that can be scanned more than once.
        columns: those of ``rows``, by name.
        side_sql: SQL expression of a row's side: 0 train, 1 validation, 2 test.
    """
    features = seen_columns(job, columns)
    if not features:
        return
    names = ", ".join(identifier(feature.name) for feature in features)
    num_rows, num_test, num_combinations = _count_combinations(connection, rows, features, side_sql)
    if num_combinations * MAX_REPEATED_SHARE < num_rows:
        detail = f"the features have about {num_combinations:,} combinations of values, so that rows are equal by chance"
        yield CheckRecord(name="test rows are new", ok=True, detail=detail, only_warns=True)
        return
    num_repeated, parts = 0, num_parts(num_rows)
    for part in range(parts):
        groups = (
            f"SELECT count(*) FILTER (WHERE side = 2) AS num_test, bool_or(side = 0) AS is_trained FROM "  # noqa: S608
            f"(SELECT hash({names}) AS row_hash, {side_sql} AS side FROM {rows}) WHERE row_hash % {parts} = {part} GROUP BY row_hash"
        )
        ((num_found,),) = connection.execute(f"SELECT coalesce(sum(num_test), 0) FROM ({groups}) WHERE is_trained").fetchall()  # noqa: S608
        num_repeated += int(num_found)
    share = num_repeated / max(1, num_test)
    text = f"{num_repeated:,} of {counted(num_test, 'test row')} ({percent(share)}) have the same features as a row of train"
    remedy = "take out the repeats: name the columns that identify a row (key), keep what belongs together on one side (split.by: group)"
    yield CheckRecord.of("test rows are new", share <= MAX_REPEATED_SHARE, text, f"{text}; {remedy}", only_warns=True)


def _count_combinations(
    connection: duckdb.DuckDBPyConnection, rows: str, features: Sequence[Column], side_sql: str
) -> tuple[int, int, float]:
    """Rows, test rows, and estimated combinations of the features' values: without end where one has more than ``MAX_COARSE_VALUES``."""
    distinct = ", ".join(f"approx_count_distinct({identifier(f.name)}) + bool_or(NOT {present_sql(f)})::INTEGER" for f in features)
    sql = f"SELECT count(*), count(*) FILTER (WHERE ({side_sql}) = 2), {distinct} FROM {rows}"  # noqa: S608
    ((num_rows, num_test, *counts),) = connection.execute(sql).fetchall()
    is_coarse = all(count is not None and count <= MAX_COARSE_VALUES for count in counts)
    return num_rows, num_test, math.prod(counts) if is_coarse else math.inf
