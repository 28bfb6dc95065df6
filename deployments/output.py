"""What a command says, and where: results to stdout, messages to stderr, and with ``--json`` one JSON document.

Loads nothing but Typer: rich is imported by the first word that is said, so that ``refit --help`` answers at once.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def stderr() -> "Console":
    """Where messages go."""
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> "Console":
    """Where results go; wide where nobody watches, so that no line is broken."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def say(console: "Console", text: str) -> None:
    """One line, whatever it holds: nothing in it is markup, and it is broken nowhere."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def new_table(*columns: str) -> "Table":
    """A table without lines; ids and times are never broken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column in ("run", "started"))
    return table


def print_json(document: Any) -> None:  # noqa: ANN401 -- a record or plain JSON
    """The one document of a command with ``--json``."""
    text = document.model_dump_json(indent=2) if hasattr(document, "model_dump_json") else json.dumps(document, indent=2)
    typer.echo(text)


def as_plain(record: Any) -> Any:  # noqa: ANN401 -- a pydantic model
    """A record as plain JSON, to stand within a document."""
    return json.loads(record.model_dump_json())
