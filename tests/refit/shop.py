"""A small shop with a data set of people, for the tests of what keeps data sets in order."""

import contextlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.config import parse_job
from refit.forgetting import Choice, forget_rows
from refit.ingestion import ingest
from refit.layout import Layout
from refit.profiles import profile_shard
from refit.records import CodeRecord, HistoryRecord, RunRecord
from refit.shards import read_table
from refit.splits import split_rows
from refit.upkeep import remove_unneeded
from refit.verification import verify_dataset

AT = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ["Ann", "Ben", "Cleo", "Dora", "Emil", "Fritz", "Greta", "Hugo"]


class Shop:
    """A folder of sources and a home beside it."""

    def __init__(self, folder, **changes):
        self.layout = Layout(folder / "home")
        self.home = self.layout.dataset("people")
        self.changes = changes
        self.place = Path("in") if folder == Path.cwd() else folder / "in"  # relative, so that a folder can be copied
        self.place.mkdir(exist_ok=True)

    def write(self, file, ids, *, suffix="", **more):
        names = [None if i is None else f"{NAMES[int(i) % 8]}-{i};{suffix}" for i in ids]
        table = pa.table({"id": ids, "name": names, "y": [0 if i is None else int(i) % 2 for i in ids], **more})
        pq.write_table(table, self.place / f"{file}.parquet")

    def job(self, **changes):
        tree = {
            "name": "people",
            "data": {"sources": [{"kind": "parquet", "path": str(self.place / "*.parquet")}], "key": ["id"]},
            "target": {"column": "y"},
        }
        return parse_job(tree, {key.replace("__", "."): value for key, value in (self.changes | changes).items()})

    def ingest(self, **changes):
        return ingest(self.job(**changes), self.layout)

    def verify(self):
        return verify_dataset(self.layout, "people")

    def gc(self, keep=1, **more):
        return remove_unneeded(self.layout, "people", keep=keep, **more)

    def forget(self, where=None, key=(), **more):
        choice = Choice(where=where, key=tuple(key))
        return forget_rows(self.layout, "people", choice, **{"confirm": lambda _: True, "by": "me", "at": AT, **more})

    def rows(self, snapshot, *columns):
        return read_table(snapshot, self.layout, columns or ["id", "name"]).to_pylist()

    def ids(self, snapshot):
        return sorted(row["id"] for row in self.rows(snapshot))

    def run(self, snapshot, *, run="20260101-000000-aaaa", status="completed"):
        """A run's folder as the ingest and the split leave it."""
        job = self.job(split__test=0.3, split__validation=0.3)
        paths = self.layout.run("people", run)
        split_rows(snapshot, job, self.layout, paths)
        record = RunRecord(
            run=run,
            job="people",
            status=status,
            snapshot=snapshot.id,
            config_digest="",
            code=CodeRecord(git=None, builder_sha256=""),
            versions={},
            started=AT,
            inputs_digest="",
            parameters=job,
        )
        record.write(paths.record)
        return paths

    def publish(self, run, version):
        """A version's folder as the registry leaves it."""
        record = HistoryRecord(version=version, action="promote", run=run, verdict="first", reason="", by="me", at=AT)
        record.write(self.layout.model("people").version(version) / "refit.json")


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        return folder, three_snapshots(Shop(folder))


@pytest.fixture
def three(shop, made_once, tmp_path):
    """Three snapshots in the shop."""
    folder, snapshots = made_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return snapshots


def three_snapshots(shop):
    """The second corrects rows of the first, the third adds some; profiles are cached."""
    snapshots = []
    for file, ids, suffix in [("a", range(40), ""), ("b", [*range(5, 10), *range(40, 60), 41], "+"), ("c", range(60, 80), "")]:
        shop.write(file, list(ids), suffix=suffix)
        snapshots.append(shop.ingest())
    for shard in {shard.digest: shard for snapshot in snapshots for shard in snapshot.shards}.values():
        profile_shard(shard, shop.home)
    return snapshots


def files(home):
    return {path.relative_to(home.root): path.read_bytes() for path in home.root.rglob("*") if path.is_file() and path != home.lock}


def found(verification):
    return [finding.what for finding in verification.findings]


def texts(home):
    """All text under a data set's folder, what Parquet and Arrow files hold included."""
    for path in home.root.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, repr(pq.read_table(path).to_pydict()).encode()
            if path.suffix == ".arrow":
                content = pa.ipc.open_file(pa.py_buffer(path.read_bytes()[32:])).read_all()
                yield path, repr(content.to_pydict()).encode()


def holding(home, text):
    return sorted({path for path, content in texts(home) if text.encode() in content})


def damage_a_byte(shop, snapshot):
    path = shop.home.shard(snapshot.shards[0].digest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
