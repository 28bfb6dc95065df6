"""Is a data set what its records say: every file, every count, every list. All faults are told together, and nothing is changed."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit.errors import CorruptRecordError, DataError, RefitError
from refit.layout import DatasetLayout, Layout
from refit.records import Record, ShardRecord, SourceRecord
from refit.schema import arrow_schema
from refit.shards import find_leftovers
from refit.snapshots import (
    Shelf,
    completed_files,
    count_forgotten,
    file_digest,
    find_dataset,
    find_newest,
    read_forgotten,
    read_shelf,
    snapshot_id,
)
from refit.sources.inputs import first_line
from refit.upkeep import count_rejected, file_size, unneeded_files


class Finding(Record):
    """One fault."""

    what: str
    where: str
    expected: str = ""
    received: str = ""
    remedy: str = ""


class Verification(Record):
    """What was looked at, all faults, and notes on what is merely left over."""

    dataset: str
    num_snapshots: int
    num_shards: int
    num_bytes: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def verify_dataset(layout: Layout, name: str) -> Verification:
    """Compare a data set with its records; reads every shard once and changes nothing.

    Raises:
        UnknownNameError: there is no such data set.
    """
    home = find_dataset(layout, name)
    found, shelf = _verify_once(home), None
    while found.findings and shelf != (shelf := read_shelf(home).snapshots):  # where snapshots go meanwhile, so do their files
        found = _verify_once(home)
    return found


def _verify_once(home: DatasetLayout) -> Verification:
    shelf = read_shelf(home)
    forgotten, findings = _verify_forgotten_list(home)
    used = {shard.digest for record in shelf.snapshots.values() for shard in record.shards}
    facts = {shard: _examine_shard(home.shard(shard), forgotten) for shard in sorted(used | _stems(home.shards_dir))}
    findings += [*_verify_head(home, shelf), *_verify_records(home, shelf), *_verify_tombstones(home, shelf)]
    findings += [*_verify_shards(home, shelf, facts), *_verify_drops(home, shelf), *_verify_sources(home, shelf)]
    findings += [*_verify_rejects(home, shelf), *_verify_forgotten(home, facts)]
    return Verification(
        dataset=home.root.name,
        num_snapshots=len(shelf.snapshots) + len(shelf.unreadable),
        num_shards=len(used),
        num_bytes=sum(facts[shard].num_bytes for shard in used),
        findings=tuple(dict.fromkeys(findings)),
        notes=tuple(_note_leftovers(home, shelf)),
    )


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in completed_files(folder)}


def _again(home: DatasetLayout) -> str:
    return (
        "Restore the file from a copy. Without one: where only old snapshots need it, refit data gc "
        f"{home.root.name} --keep 1; else remove the folder {home.root} to ingest again, sources are not touched."
    )


def _finding_of(error: RefitError) -> Finding:
    return Finding(what=error.what, where=error.where, expected=error.expected, received=error.received, remedy=error.remedy)


# ---- records


def _verify_head(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    try:
        find_newest(home, shelf)
    except CorruptRecordError as error:
        known = ", ".join(sorted(shelf.snapshots, key=shelf.times(home).__getitem__, reverse=True)[:3]) or "no other snapshot"
        yield Finding(
            what=error.what,
            where=error.where,
            expected=f"the id of a snapshot; the newest by date: {known}",
            received=error.received,
            remedy="Write the id of the snapshot that is to be the newest into the file.",
        )
    except DataError:
        return  # a data set without a snapshot is empty, and not damaged


def _verify_records(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    yield from (_finding_of(error) for error in shelf.unreadable.values())
    for snapshot, record in shelf.snapshots.items():
        path = home.snapshot(snapshot)
        received = {snapshot_id(json.loads(path.read_bytes())), record.id} if path.exists() else {snapshot}
        if received != {snapshot}:
            yield Finding(
                what="the snapshot's record is not the one that was written: its content has another digest.",
                where=str(path),
                expected=snapshot,
                received=", ".join(sorted(received)),
                remedy=_again(home),
            )


def _verify_tombstones(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    for snapshot in shelf.tombstones:
        found = shelf.resolve(snapshot)
        if found not in shelf.snapshots and found not in shelf.unreadable:
            yield Finding(
                what="rows of this snapshot were forgotten, and the snapshot that took its place is not there.",
                where=str(home.snapshot(snapshot)),
                expected=str(home.snapshot(found)),
                remedy="Restore that file from a copy, or remove this one.",
            )


def _verify_sources(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    for snapshot, record in shelf.snapshots.items():
        for source in record.sources:
            where = f"{home.snapshot(snapshot)}, input {source.name}"
            parts = source.num_kept + source.num_rejected + source.num_filtered + source.num_duplicate + source.num_superseded
            live = sum(shard.num_live for shard in source.shards)
            if parts != source.num_read:
                what = "the counts of an input do not add up."
                yield Finding(what=what, where=where, expected=f"{source.num_read:,}", received=f"{parts:,}", remedy=_again(home))
            if live != source.num_kept:
                what = "an input's shards hold another number of rows than were kept."
                yield Finding(what=what, where=where, expected=f"{source.num_kept:,}", received=f"{live:,}", remedy=_again(home))


# ---- shards


@dataclass(frozen=True)
class _ShardFacts:
    """What a shard's file turned out to be."""

    num_bytes: int = 0
    num_rows: int | None = None
    schema: pa.Schema | None = None
    fault: str | None = None
    num_forgotten: int = 0


def _examine_shard(path: Path, forgotten: np.ndarray) -> _ShardFacts:
    try:
        size = path.stat().st_size
        content = file_digest(path)
        if content != path.stem:
            return _ShardFacts(size, fault=f"content with the digest {content[:12]}…, {size:,} bytes")
        with pq.ParquetFile(path) as file:
            num_forgotten = count_forgotten(file, forgotten) if len(forgotten) else 0
            return _ShardFacts(size, file.metadata.num_rows, file.schema_arrow, num_forgotten=num_forgotten)
    except FileNotFoundError:
        return _ShardFacts(fault="no file")
    except (OSError, pa.ArrowException, KeyError) as error:
        return _ShardFacts(fault=first_line(error))


def _verify_shards(home: DatasetLayout, shelf: Shelf, facts: Mapping[str, _ShardFacts]) -> Iterator[Finding]:
    for snapshot, record in shelf.snapshots.items():
        schema = arrow_schema(record.columns)
        for shard in record.shards:
            fact, path = facts[shard.digest], home.shard(shard.digest)
            if fact.fault is not None:
                told = f"content with the digest {shard.digest[:12]}…, {shard.num_bytes:,} bytes"
                yield Finding(
                    what="a shard is missing or damaged.", where=str(path), expected=told, received=fact.fault, remedy=_again(home)
                )
                continue
            for what, expected, received in _differences(shard, fact, schema):
                where = f"{path}, by {home.snapshot(snapshot)}"
                yield Finding(what=what, where=where, expected=expected, received=received, remedy=_again(home))


def _differences(shard: ShardRecord, fact: _ShardFacts, schema: pa.Schema) -> Iterator[tuple[str, str, str]]:
    if fact.num_bytes != shard.num_bytes:
        yield "a shard has another size than its record.", f"{shard.num_bytes:,} bytes", f"{fact.num_bytes:,} bytes"
    if fact.num_rows != shard.num_rows:
        yield "a shard has another number of rows than its record.", f"{shard.num_rows:,}", f"{fact.num_rows:,}"
    if fact.schema is not None and not fact.schema.equals(schema, check_metadata=True):
        yield "a shard has other columns than its record.", _listed(schema), _listed(fact.schema)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _verify_drops(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    shards = {(s.digest, s.dropped, s.num_rows, s.num_dropped): s for record in shelf.snapshots.values() for s in record.shards}
    for shard in shards.values():
        fault = _fault_of_drops(home, shard)
        if fault:
            yield Finding(
                what="the list of a shard's replaced rows is missing or damaged.",
                where=str(home.drops(shard.dropped) if shard.dropped else home.shard(shard.digest)),
                expected=f"{shard.num_dropped:,} positions below {shard.num_rows:,}, ascending",
                received=fault,
                remedy=_again(home),
            )


def _fault_of_drops(home: DatasetLayout, shard: ShardRecord) -> str | None:
    if shard.dropped is None:
        return "no list" if shard.num_dropped else None
    try:
        content = home.drops(shard.dropped).read_bytes()
        positions = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return "no file" if isinstance(error, FileNotFoundError) else first_line(error)
    if hashlib.sha256(content).hexdigest() != shard.dropped:
        return "a list of another digest"
    if positions.dtype != np.uint32 or positions.ndim != 1 or (np.diff(positions.astype(np.int64)) <= 0).any():
        return "a list that is not ascending"
    is_within = not len(positions) or int(positions[-1]) < shard.num_rows
    return None if is_within and len(positions) == shard.num_dropped else f"{len(positions):,} positions up to {positions.max(initial=0)}"


# ---- rejected and forgotten rows


def _verify_rejects(home: DatasetLayout, shelf: Shelf) -> Iterator[Finding]:
    known: dict[str, dict[str, int] | str] = {}
    for snapshot, record in shelf.snapshots.items():
        for name in sorted({source.rejects for source in record.sources if source.rejects}):
            path = home.rejects(name)
            counts = known.setdefault(name, _count_rejected(path))
            fault = counts if isinstance(counts, str) else _fault_of_rejects([s for s in record.sources if s.rejects == name], counts)
            if fault:
                recorded = sum(source.num_rejected for source in record.sources if source.rejects == name)
                yield Finding(
                    what="the file of rejected rows is missing or damaged.",
                    where=f"{path}, by {home.snapshot(snapshot)}",
                    expected=f"{recorded:,} rejected rows",
                    received=fault,
                    remedy="Restore the file from a copy; training does not need it.",
                )


def _count_rejected(path: Path) -> dict[str, int] | str:
    try:
        return count_rejected(path, by="file")
    except duckdb.Error as error:
        return first_line(error) if path.exists() else "no file"


def _fault_of_rejects(sources: Sequence[SourceRecord], counts: Mapping[str, int]) -> str | None:
    """What is wrong with the numbers of rejected rows by file.

    The file may also hold rows of inputs that have changed or gone since, and of files that an input is made of; so the numbers must
    be equal only where each name in it is one of these inputs'.
    """
    recorded, found = sum(source.num_rejected for source in sources), sum(counts.values())
    names = {source.name: source.num_rejected for source in sources}
    is_theirs = set(counts) <= set(names)
    too_many = [f"{counts[name]:,} of {name}" for name in names if counts.get(name, 0) > names[name]]
    if found < recorded or (is_theirs and found != recorded):
        return f"{found:,} rejected rows"
    return ", ".join(too_many) or None


def _verify_forgotten_list(home: DatasetLayout) -> tuple[np.ndarray, list[Finding]]:
    try:
        hashes = read_forgotten(home)
    except CorruptRecordError as error:
        return np.empty(0, np.uint64), [_finding_of(error)]
    return hashes, []


def _verify_forgotten(home: DatasetLayout, facts: Mapping[str, _ShardFacts]) -> Iterator[Finding]:
    for shard, fact in facts.items():
        if fact.num_forgotten:
            yield Finding(
                what="rows that were to be forgotten are still there: their erasure was interrupted.",
                where=str(home.shard(shard)),
                expected="0 rows",
                received=f"{fact.num_forgotten:,}",
                remedy="Give the command refit data forget again: it goes on from here.",
            )


# ---- leftovers


def _note_leftovers(home: DatasetLayout, shelf: Shelf) -> Iterator[str]:
    temporary = find_leftovers(home)
    if temporary:
        yield f"{_told(temporary)} temporary: of an ingest that runs now, or that was interrupted. The next one removes them."
    unneeded = [] if shelf.unreadable else list(unneeded_files(home, shelf.snapshots.values()))
    if unneeded:
        yield f"{_told(unneeded)} named by no snapshot; refit data gc removes them."
    without = sum(1 for record in shelf.snapshots.values() if any(s.num_rejected and not s.rejects for s in record.sources))
    if without:
        yield f"The rejected rows of {without:,} snapshot{'s were' if without > 1 else ' was'} deleted when rows were forgotten."


def _told(paths: Sequence[Path]) -> str:
    num_bytes = sum(file_size(path) for path in paths)
    return f"{len(paths):,} file{'s' if len(paths) > 1 else ''} ({num_bytes:,} bytes) {'are' if len(paths) > 1 else 'is'}"
