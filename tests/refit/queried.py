"""Databases that are asked as a job asks them, for the tests of the ``sql`` source."""

import sqlite3
import traceback

import pytest

from refit.config import SqlSource
from refit.records import SourceRecord
from refit.sources.databases import identity, list_inputs, open_input
from tests.refit.postgres import postgres as postgres  # a fixture

SPOOL = None


def sql(database, query, incremental=None):
    return SqlSource(kind="sql", database=str(database), query=query, incremental=incremental)


@pytest.fixture
def lite(tmp_path):
    """Makes a SQLite file by statements; gives its path."""

    def make(*statements, rows=()):
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            for statement in statements:
                connection.execute(statement)
            if rows:
                connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(rows[0]))})", rows)
        connection.close()
        return path

    return make


def rows_of(found):
    with open_input(found, SPOOL) as batches:
        tables = list(batches.read())
    return [row for batch in tables for row in batch.to_pylist()]


def rows(source):
    (found,) = list_inputs(source, {}, None)
    return rows_of(found)


def types(source):
    (found,) = list_inputs(source, {}, None)
    with open_input(found, SPOOL) as batches:
        read = [batch.schema for batch in batches.read()]
        told = {column.name: column.type for column in batches.columns}
    assert all({field.name: str(field.type) for field in schema} == told for schema in read)
    return told


def record(found, source):
    """What ingestion keeps of an input that it has read."""
    watermark = found.bounds[1] if found.bounds else None
    return SourceRecord(name=found.name, digest=found.digest, listed_by=identity(source), num_read=1, num_kept=1, watermark=watermark)


def ingest(source, known):
    """Read what is new as ingestion does; ``known`` grows by it."""
    new = [found for found in list_inputs(source, known, None) if found.name not in known or known[found.name].digest != found.digest]
    read = [row for found in new for row in rows_of(found)]
    known.update({found.name: record(found, source) for found in new})
    return read


def told(error):
    """All that a log or a console could show of an error."""
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)
