"""Data sets to divide: through the real ingest, or shards written straight from tables where many are needed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit.config import parse_job
from refit.hashing import NAME, hash_rows
from refit.ingestion import ingest
from refit.layout import Layout
from refit.records import SIDES, SnapshotRecord, SourceRecord
from refit.schema import KEY_HASH, arrow_schema, column_of
from refit.shards import ShardWriter
from refit.splits import read_rows, split_rows

DAY = np.timedelta64(1, "D")


def job_of(folder, **changes):
    """A job over the Parquet files of a folder; ``changes`` by dotted key with ``__`` for the dot."""
    source = {"kind": "parquet", "path": str(folder / "in" / "*.parquet")}
    tree = {"name": "job", "data": {"sources": [source], "key": ["id"]}, "target": {"column": "y"}}
    return parse_job(tree, {name.replace("__", "."): value for name, value in changes.items()})


def rows_of(ids, **more):
    """Rows whose group, class and time follow from their ids."""
    ids = list(ids)
    at = np.datetime64("2026-01-01", "us") + np.array(ids, dtype=np.int64) * DAY
    columns = {"id": pa.array(ids, pa.int64()), "group": [f"g{i // 5}" for i in ids], "y": [i % 2 for i in ids], "at": pa.array(at)}
    return columns | more


class Home:
    """A home with one data set."""

    def __init__(self, folder):
        self.folder = folder
        self.layout = Layout(folder / "home")
        self.home = self.layout.dataset("job")
        self.num_runs = 0

    def job(self, **changes):
        return job_of(self.folder, **changes)

    def ingest(self, files, **changes):
        """Ingest these files and no others."""
        place = self.folder / "in"
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            old.unlink()
        for name, columns in files.items():
            pq.write_table(pa.table(columns), place / f"{name}.parquet")
        return ingest(self.job(**changes), self.layout)

    def store(self, *tables, key=("id",)):
        """A snapshot with one shard a table, as an ingest would leave it."""
        for folder in (self.home.shards_dir, self.home.drops_dir):
            folder.mkdir(parents=True, exist_ok=True)
        tables = [pa.table(table) for table in tables]
        columns = tuple(column_of(field) for field in tables[0].schema)
        sources = []
        for number, table in enumerate(tables):
            hashed = hash_rows([table[name].combine_chunks() for name in key])
            writer = ShardWriter(self.home, arrow_schema(columns))
            writer.write(table.append_column(pa.field(KEY_HASH, pa.uint64(), nullable=False), pa.array(hashed)))
            shards = writer.finish()
            sources.append(SourceRecord(name=str(number), digest=str(number), num_read=len(table), num_kept=len(table), shards=shards))
        return SnapshotRecord(id="0" * 16, dataset="job", key=key, key_hash=NAME, columns=columns, sources=tuple(sources))

    def split(self, snapshot, **changes):
        """Divide by a job with these changes; the record and the run's paths."""
        self.num_runs += 1
        run = self.layout.run("job", f"r{self.num_runs}")
        return split_rows(snapshot, self.job(**changes), self.layout, run), run

    def sides(self, snapshot, **changes):
        """``{id: side}`` of the rows that are on a side."""
        _, run = self.split(snapshot, **changes)
        return self.read(snapshot, run)

    def read(self, snapshot, run, **more):
        found = {side: read_rows(snapshot, self.layout, run, side, ["id"], **more).table["id"].to_pylist() for side in SIDES}
        assert sum(map(len, found.values())) == len({row for ids in found.values() for row in ids})
        return {row: side for side, ids in found.items() for row in ids}


def by(mode, **more):
    """Changes of a job that divide by this mode, with large shares of validation and test."""
    usual = {"hash": {}, "group": {"group": "group"}, "stratified": {}, "time": {}, "column": {"column": "part"}}[mode]
    time = {"data__time": "at"} if mode == "time" else {}
    return {"split": {"by": mode, "validation": 0.3, "test": 0.3, **usual, **more}, **time}
