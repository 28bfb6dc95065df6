"""Are the labels sound: present, finite, varied, and of classes that are classes.

What else a label can suffer from has files of its own: ``refit.leakage`` for what gives it away, ``refit.sizes`` for too few rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb

from refit.config import Job, TargetKind
from refit.expectations import present_sql
from refit.leakage import MIN_LEAKAGE_ROWS, check_leakage
from refit.records import CheckRecord, Column
from refit.schema import is_number, is_whole
from refit.sources.inputs import identifier
from refit.wording import counted, format_list, percent, shorten

MAX_CLASSES = 100  # a whole-number target with more values is taken for a quantity
MAX_LABELS = 1_000  # of a multilabel target
MAX_COUNTED = 10_000  # values of a target that are counted one by one; more are estimated
MIN_CLASS_ROWS = 5  # from fewer rows nothing is learned that would not be learned of one row
ID_SHARE = 0.5  # a class for every other row: most classes are seen once, as names and numbers of rows are
FEW_VALUES = 10  # a quantity with fewer values is a grade or a code more often than a measurement
RARE_SHARE = 0.005  # beside it, a model that never says so is right 99.5 times of 100


def check_labels(job: Job, connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, Column]) -> Iterator[CheckRecord]:
    """See whether the target can be learned, and whether a feature gives it away.

    Args:
        job: the job.
        connection: where ``rows`` can be read.
        rows: a table expression that can be scanned more than once, with the columns and ``_key_hash``.
        columns: those of ``rows``, by name; the target is among them and is no tensor.
    """
    target = columns[job.target.column]
    facts = _read_facts(connection, rows, target)
    is_set = job.target.kind == "multilabel"
    if not is_set:  # a row may have no label at all
        yield CheckRecord.of("labels", facts.num_missing == 0, "none is missing", _missing_text(facts))
    yield CheckRecord.of("target varies", facts.varies, "it does", f'"{target.name}" has the same value in every row')
    if not facts.varies:
        return
    if is_set:
        yield from _label_set_checks(job, connection, rows, target)
        yield from check_leakage(job, connection, rows, columns, "multilabel")
        return
    counts = count_classes(connection, rows, target) if facts.num_values <= MAX_COUNTED else {}
    kind = target_kind(job, target, len(counts) or facts.num_values)
    if kind == "regression":
        yield from _quantity_checks(target, facts, len(counts) or facts.num_values)
    else:
        yield from _class_checks(kind, counts, facts, hint=_kind_hint(job, target))
    yield from check_leakage(job, connection, rows, columns, kind)


@dataclass(frozen=True)
class _Facts:
    """The target in one pass; ``num_values`` is an estimate of how many differ."""

    num_rows: int
    num_missing: int
    num_infinite: int
    num_values: int
    varies: bool


def _read_facts(connection: duckdb.DuckDBPyConnection, rows: str, target: Column) -> _Facts:
    name, present = identifier(target.name), present_sql(target)
    infinite = f"isinf({name})" if is_number(target) and not is_whole(target) else "false"
    there = f"FILTER (WHERE {present})"
    sql = (
        f"SELECT count(*), count(*) FILTER (WHERE NOT {present}), count(*) FILTER (WHERE {infinite}), "  # noqa: S608
        f"approx_count_distinct({name}) {there}, coalesce(min({name}) {there} <> max({name}) {there}, false) FROM {rows}"
    )
    return _Facts(*connection.execute(sql).fetchall()[0])


def _missing_text(facts: _Facts) -> str:
    share = percent(facts.num_missing / max(1, facts.num_rows))
    return f"{facts.num_missing:,} of {counted(facts.num_rows, 'label')} ({share}) are missing; filter them with data.where"


def _label_set_checks(job: Job, connection: duckdb.DuckDBPyConnection, rows: str, target: Column) -> Iterator[CheckRecord]:
    sql = (
        f"SELECT label, count(*) FROM (SELECT trim(unnest(string_split({identifier(target.name)}, ?))) AS label FROM {rows}) "  # noqa: S608
        f"WHERE label <> '' GROUP BY label ORDER BY 2 DESC, 1"
    )
    counts = dict(connection.execute(sql, [job.target.separator]).fetchall())
    empty_sql = f"SELECT count(*) FROM {rows} WHERE coalesce(trim({identifier(target.name)}), '') = ''"  # noqa: S608
    empty = connection.execute(empty_sql).fetchall()[0][0]
    yield CheckRecord(name="labels", ok=True, detail=f"{counted(empty, 'row')} without any")
    separated = f'"{target.name}" has {len(counts)} labels; they are separated by target.separator, which is "{job.target.separator}"'
    yield CheckRecord.of("labels differ", len(counts) > 1, f"{len(counts):,}", separated)
    many = f"{len(counts):,} labels: each is an output of the model. Is something else than labels in the column?"
    yield CheckRecord.of("number of labels", len(counts) <= MAX_LABELS, f"{len(counts):,}", many, only_warns=True)
    few = [f"{shorten(name)} ({count})" for name, count in counts.items() if count < MIN_CLASS_ROWS]
    few_text = f"fewer than {MIN_CLASS_ROWS} rows have {format_list(few)}; add rows, or leave these labels out with data.derive"
    yield CheckRecord.of("label sizes", not few, f"{MIN_CLASS_ROWS} rows or more each", few_text, only_warns=True)


def count_classes(connection: duckdb.DuckDBPyConnection, rows: str, target: Column) -> dict[str, int]:
    """Rows of each value of the target by its text, the most frequent first; for targets of at most ``MAX_COUNTED`` values."""
    name = identifier(target.name)
    sql = f"SELECT CAST({name} AS VARCHAR), count(*) FROM {rows} WHERE {present_sql(target)} GROUP BY {name} ORDER BY 2 DESC, 1"  # noqa: S608
    return dict(connection.execute(sql).fetchall())


def class_sizes(job: Job, connection: duckdb.DuckDBPyConnection, rows: str, target: Column) -> dict[str, int]:
    """Rows of each class, as ``check_sizes`` wants them: none for a quantity, or for so many classes that they are no classes."""
    if _read_facts(connection, rows, target).num_values > MAX_COUNTED:
        return {}
    counts = count_classes(connection, rows, target)
    return {} if target_kind(job, target, len(counts)) in ("regression", "multilabel") else counts


def target_kind(job: Job, target: Column, num_values: int) -> TargetKind:
    """What the job says, or what the column's type and the number of its values suggest."""
    if job.target.kind is not None:
        return job.target.kind
    if target.type != "string" and (not is_whole(target) or num_values > MAX_CLASSES):
        return "regression"
    return "binary" if num_values == 2 else "classes"


# ---- quantities and classes


def _quantity_checks(target: Column, facts: _Facts, num_values: int) -> Iterator[CheckRecord]:
    infinite = f"{facts.num_infinite:,} of {counted(facts.num_rows, 'label')} are infinite; filter them with data.where"
    yield CheckRecord.of("labels finite", facts.num_infinite == 0, "all are", infinite)
    few = f'"{target.name}" has only {num_values} values; if they are classes, say so: target.kind'
    yield CheckRecord.of("target values", num_values >= FEW_VALUES, f"{num_values:,} differ", few, only_warns=True)


def _kind_hint(job: Job, target: Column) -> str:
    return ", or say that it is a quantity (target.kind: regression)" if job.target.kind is None and is_number(target) else ""


def _class_checks(kind: TargetKind, counts: Mapping[str, int], facts: _Facts, *, hint: str) -> Iterator[CheckRecord]:
    num_labels, num_classes = facts.num_rows - facts.num_missing, len(counts) or facts.num_values
    id_text = f"{num_classes:,} classes for {counted(num_labels, 'row')}: is the target an identifier?"
    is_id = num_labels >= MIN_LEAKAGE_ROWS and num_classes > ID_SHARE * num_labels
    yield CheckRecord.of("classes", not is_id, f"{num_classes:,}", id_text, only_warns=True)
    if is_id or not counts:
        return
    few = [f"{shorten(name)} ({count})" for name, count in counts.items() if count < MIN_CLASS_ROWS]
    few_text = f"fewer than {MIN_CLASS_ROWS} rows have {format_list(few)}; add rows, or filter these with data.where{hint}"
    yield CheckRecord.of("class sizes", not few, f"{min(counts.values()):,} rows or more each", few_text, only_warns=True)
    alike = [" and ".join(map(shorten, names)) for names in _spellings(counts)]
    alike_text = f"only capitals or spaces tell apart {format_list(alike)}"
    yield CheckRecord.of("class names", not alike, "they differ by more than capitals and spaces", alike_text, only_warns=True)
    if kind == "binary":
        yield _rare_check(counts, num_labels)


def _spellings(counts: Mapping[str, int]) -> list[list[str]]:
    """Names that are the same but for capitals and white space."""
    by_name: dict[str, list[str]] = {}
    for name in counts:
        by_name.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [names for names in by_name.values() if len(names) > 1]


def _rare_check(counts: Mapping[str, int], num_labels: int) -> CheckRecord:
    name, count = min(counts.items(), key=lambda item: item[1])
    share = count / num_labels
    text = f"{count:,} of {counted(num_labels, 'row')} ({percent(share)}) are {shorten(name)}"
    rare = f"{text}: accuracy is {percent(1 - share)} without a model; compare by auc (gate.champion.metric)"
    return CheckRecord.of("rarer class", share >= RARE_SHARE, text, rare, only_warns=True)
