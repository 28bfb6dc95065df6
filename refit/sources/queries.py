"""What a ``sql`` source asks, and of which database: names and faults for people, in which no password stands.

Both engines see a database through the query of its source. Nothing is ever written: the query stands in a subquery, in a transaction
that only reads.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa

from refit.config import SqlSource
from refit.errors import SourceError
from refit.sources.inputs import MAX_RAW_TEXT, Reject

Bounds = tuple[str | None, str | None]  # of the incremental column's values, as text: above the first, up to the second

_CONNECT_SECONDS = 10
_SCHEME = re.compile(r"(\w[\w+.-]*)://")
_HOST = r"(?:\[[\da-fA-F:.%]+\]|[^\s:@/?,\[\]]*)(?::\d*)?"
_OPTION = r"[^\s@?&=]+=[^\s@?&=]*"
_POSTGRESQL = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^\s:@/?]*)(?::(?P<password>[^\s@/?]*))?@)?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/(?P<name>[^\s@/?]*))?(?:\?(?P<options>(?:{_OPTION}(?:&{_OPTION})*)?))?"
)


class Database(Protocol):
    """An open connection, seen through the query of its source, in one transaction."""

    def faults(self) -> AbstractContextManager[None]:
        """Turns the driver's errors into ours; the other methods are called within it."""

    def schema(self, bounds: Bounds | None) -> pa.Schema:
        """Names and types of the columns, as ``read`` gives them."""

    def read(self, schema: pa.Schema, bounds: Bounds | None, rejects: list[Reject]) -> Iterator[pa.RecordBatch]:
        """The rows; those within ``bounds`` in the order of the incremental column."""

    def extent(self, column: str, low: str | None) -> tuple[str | None, int]:
        """The greatest value above ``low`` (none: nothing is above it) and the number of rows without a value."""


# ---- addresses


@dataclass(frozen=True)
class Server:
    """The address of a server. ``secrets`` must not be shown; ``uri`` holds them."""

    uri: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def scrub(self, text: str) -> str:
        """``text`` without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def find_address(source: SqlSource) -> Path | Server:
    """Where the database is, which the job names itself or through an environment variable.

    Raises:
        SourceError: the variable is not set, or the address is of another kind or cannot be understood.
    """
    text = source.database
    if text.startswith("env:"):
        text = os.environ.get(text.removeprefix("env:"), "").strip()
        if not text:
            raise query_fault(
                source, "the environment variable is not set.", remedy="Set it to the address of the database, password included."
            )
    scheme = _SCHEME.match(text)
    if scheme is None and not re.search(r"\b(host|dbname|password)\s*=", text):
        return Path(text)
    if scheme is not None and scheme[1] not in ("postgresql", "postgres"):
        raise query_fault(source, f"databases of the kind {scheme[1]} are not read.", expected="a SQLite file, or postgresql://host/name")
    return _server(source, text)


def _server(source: SqlSource, text: str) -> Server:
    parts = _POSTGRESQL.fullmatch(text)
    if parts is None:
        raise query_fault(
            source,
            "the address cannot be understood.",
            expected="postgresql://user:password@host:port/name?option=value",
            remedy="Write special characters of the password as percent codes, such as %40 for @. The address is not shown here.",
        )
    options = dict(option.partition("=")[::2] for option in (parts["options"] or "").split("&"))
    hidden = [parts["password"], os.environ.get("PGPASSWORD"), *(value for key, value in options.items() if "password" in key)]
    secrets = sorted({form for word in hidden if word for form in (word, unquote(word))}, key=len, reverse=True)
    if "connect_timeout" not in options and "PGCONNECT_TIMEOUT" not in os.environ:
        text += f"{'&' if parts['options'] else '' if text.endswith('?') else '?'}connect_timeout={_CONNECT_SECONDS}"
    return Server(text, (text, *secrets))


def database_label(database: str) -> str:
    """The database as people know it, without user, password and options."""
    if _SCHEME.match(database) is None:
        return database
    parts = _POSTGRESQL.fullmatch(database)
    return f"postgresql://{parts['hosts']}/{parts['name'] or ''}" if parts else f"{database.partition(':')[0]}://…"


# ---- queries


def statement(source: SqlSource) -> str:
    """The query without the semicolon at its end, so that it can stand in a subquery."""
    return source.query.strip().rstrip(";").rstrip()


def select_sql(source: SqlSource, select: str, rest: str) -> str:
    """SQL that selects from the rows of the query, which are called ``q``."""
    return f"SELECT {select} FROM (\n{statement(source)}\n) AS q {rest}"  # noqa: S608 -- the query is the job's, names are quoted


def shown_query(source: SqlSource) -> str:
    """The query in one line, cut where it is long."""
    words = " ".join(source.query.split())
    return words if len(words) <= MAX_RAW_TEXT else f"{words[:MAX_RAW_TEXT]}…"


def check_names(source: SqlSource, names: Sequence[str]) -> None:
    """See that the query's columns can be told apart, and that the incremental one is among them.

    Raises:
        SourceError: they cannot, or it is not.
    """
    if not names:
        raise query_fault(source, "the query gives no columns.", received=shown_query(source), remedy="Name the columns to be read.")
    counts = Counter(name.casefold() for name in names)
    twice = dict.fromkeys(name for name in names if counts[name.casefold()] > 1)
    if twice:
        told = ", ".join(f'"{name}"' for name in twice)
        raise query_fault(
            source,
            f"two columns of the query are called {told}.",
            remedy="Give each column a name of its own: … AS name; case does not count.",
        )
    if source.incremental is not None and source.incremental not in names:
        raise query_fault(
            source,
            f'the query has no column "{source.incremental}", which the job names as incremental.',
            received=", ".join(names),
            remedy="Select that column too; upper and lower case count.",
        )


# ---- faults


def query_fault(source: SqlSource, what: str, *, expected: str = "", received: str = "", remedy: str = "") -> SourceError:
    """What is wrong with a source, told of its database."""
    return SourceError(what, where=database_label(source.database), expected=expected, received=received, remedy=remedy)


def failed_query(source: SqlSource, reason: str) -> SourceError:
    """The database's own reason for refusing the query."""
    sentence = f"the query failed: {reason.strip().rstrip('.')}."
    return query_fault(source, sentence, received=shown_query(source), remedy="Mend the query.")


def endless_fault(source: SqlSource, column: str, value: str) -> SourceError:
    """The greatest value of the incremental column is infinite or no number."""
    return query_fault(
        source,
        f'the greatest value of "{column}" is {value}, above which nothing can ever be read.',
        remedy=f"Leave those rows out of the query, such as WHERE {column} < …",
    )
