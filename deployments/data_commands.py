"""``refit data``: data sets listed, shown, verified, rid of what nothing needs, and of rows that must be forgotten.

Exit status: 0 done and sound, 1 failed or not sound, 2 the request itself was wrong.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.output import AsJson, as_plain, new_table, print_json, say, stderr, stdout
from refit.errors import RefitError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from refit.dependents import TrainedRun
    from refit.forgetting import Erasure, ErasurePlan
    from refit.upkeep import Removal, SnapshotSummary
    from refit.verification import Verification

app = typer.Typer(help="Keep data sets in order.", no_args_is_help=True)

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The data set.")]


# ---- looking


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List data sets: rows, snapshots, bytes, and the newest snapshot."""
    from refit import upkeep
    from refit.layout import home_layout
    from refit.wording import ABSENT, format_bytes, format_time

    layout = home_layout()
    found = upkeep.list_datasets(layout)
    if as_json:
        print_json([as_plain(summary) for summary in found])
        return
    if not found:
        say(stdout(), f"There is no data set under {layout.home} yet. The first run of a job makes one.")
        return
    table = new_table("data set", "rows", "snapshots", "on disk", "newest", "made")
    for one in found:
        rows = ABSENT if one.num_rows is None else f"{one.num_rows:,}"
        at = format_time(one.at) if one.at else ABSENT
        table.add_row(one.name, rows, f"{one.num_snapshots:,}", format_bytes(one.num_bytes), one.snapshot or one.fault or ABSENT, at)
    stdout().print(table)


@app.command()
def show(
    name: DatasetName,
    snapshot: Annotated[str | None, typer.Option("--snapshot", metavar="ID", help="By default the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a snapshot is made of, input by input, and why rows were rejected."""
    from refit import upkeep
    from refit.layout import home_layout

    found = upkeep.show_snapshot(home_layout(), name, snapshot)
    if as_json:
        print_json(found)
    else:
        _show_snapshot(stdout(), found)


def _show_snapshot(console: "Console", found: "SnapshotSummary") -> None:
    from refit.wording import counted, format_time

    newest = "the newest snapshot" if found.is_head else "snapshot"
    say(console, f"{found.dataset}: {newest} {found.id} of {format_time(found.at)}, {counted(found.num_rows, 'row')}")
    if found.tombstone is not None:
        told = found.tombstone.forgotten
        what = f"  {counted(told.num_rows, 'row')} of snapshot {found.asked} were forgotten by {told.by} on {format_time(told.at)};"
        say(console, f"{what} this is what it became.")
    say(console, f"  key: {', '.join(found.key) or 'none, rows are never de-duplicated'}")
    _show_inputs(console, found)
    for rejects in found.rejects:
        say(console, f"Rejected rows: {rejects.path}" + (f" cannot be read: {rejects.fault}" if rejects.fault else ""))
        for reason, count in rejects.reasons.items():
            say(console, f"  {count:>9,}  {reason}")


def _show_inputs(console: "Console", found: "SnapshotSummary") -> None:

    table = new_table("input", "read", "kept", "rejected", "filtered", "duplicate", "superseded", "")
    for one in found.inputs:
        counts = (one.num_read, one.num_kept, one.num_rejected, one.num_filtered, one.num_duplicate, one.num_superseded)
        standing = "refused" if one.refused else "vanished" if one.is_vanished else ""
        table.add_row(one.name, *(f"{count:,}" for count in counts), standing)
    console.print(table)
    for one in found.inputs:
        for text in (*([f"refused: {one.refused}"] if one.refused else []), *one.notes):
            say(console, f"  {text}")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this data set.")] = None, as_json: AsJson = False
) -> None:
    """Compare data sets with their records: every file, every count. Exit status 1 where anything is wrong."""
    from refit.layout import home_layout
    from refit.verification import verify_dataset

    layout = home_layout()
    found = [verify_dataset(layout, one) for one in ([name] if name is not None else layout.datasets())]
    if as_json:
        print_json([as_plain(one) for one in found])
    elif not found:
        say(stdout(), f"There is no data set under {layout.home} yet.")
    else:
        for one in found:
            _show_verification(stdout(), one)
    if any(one.findings for one in found):
        raise typer.Exit(1)


def _show_verification(console: "Console", found: "Verification") -> None:
    from refit.wording import counted, format_bytes

    extent = f"{counted(found.num_snapshots, 'snapshot')}, {counted(found.num_shards, 'shard')}, {format_bytes(found.num_bytes)}"
    standing = counted(len(found.findings), "fault") if found.findings else "sound"
    say(console, f"{'✗' if found.findings else '✓'} {found.dataset}: {standing} ({extent})")
    for finding in found.findings:
        say(console, f"  - {finding.what}")
        for label in ("where", "expected", "received", "remedy"):
            if value := getattr(finding, label):
                say(console, f"      {label:<9} {value}")
    for note in found.notes:
        say(console, f"  note: {note}")


# ---- removing


@app.command("gc")
def remove_unneeded(
    name: DatasetName,
    keep: Annotated[int, typer.Option("--keep", metavar="N", help="Keep the newest N snapshots, and those that runs refer to.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, and files that no snapshot needs."""
    from refit import upkeep
    from refit.layout import home_layout

    removal = upkeep.remove_unneeded(home_layout(), name, keep=keep, dry_run=dry_run)
    if as_json:
        print_json(removal)
    else:
        _show_removal(stdout(), removal)


def _show_removal(console: "Console", removal: "Removal") -> None:
    from refit.wording import counted, format_bytes

    would = "would go" if removal.is_dry_run else "removed"
    removed = f"{counted(len(removal.removed), 'snapshot')}, {counted(len(removal.files), 'file')}, {format_bytes(removal.num_bytes)}"
    say(console, f"{removal.dataset}: {removed} {would}; {counted(len(removal.kept), 'snapshot')} kept")
    if removal.kept_for_runs:
        say(console, f"  kept only because runs refer to them: {', '.join(removal.kept_for_runs)}")
    for file in removal.files if removal.is_dry_run else ():
        say(console, f"  {file}")


# ---- forgetting


@app.command()
def forget(
    name: DatasetName,
    where: Annotated[str | None, typer.Option("--where", metavar="SQL", help="A condition over the stored columns.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="VALUE", help="The key of the rows; once for each of its columns, in order.")
    ] = None,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="Delete all files of rejected rows too: they may hold raw text of the same rows.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase rows from all snapshots for good; they do not come back when a source is read again."""
    from datetime import UTC, datetime

    from refit import forgetting, runs
    from refit.layout import home_layout

    if not yes and not sys.stdin.isatty():
        raise RequestError("erased rows cannot be brought back, and there is no terminal to ask in.", remedy="Give --yes.")
    erasure = forgetting.forget_rows(
        home_layout(),
        name,
        forgetting.Choice(where=where, key=tuple(key or ())),
        confirm=(lambda _: True) if yes else _confirm,
        by=runs.current_user(),
        at=datetime.now(UTC),
        deletes_rejects=rejects,
    )
    if erasure is None:
        raise RefitError("the erasure was not confirmed; nothing was changed.")
    if as_json:
        print_json(erasure)
    else:
        _show_erasure(stdout(), erasure)


def _confirm(plan: "ErasurePlan") -> bool:
    from refit.wording import counted

    rows = f"{counted(plan.num_rows, 'row')} with {counted(plan.num_keys, 'key')}"
    say(stderr(), f"{rows} will be erased for good from {counted(len(plan.snapshots), 'snapshot')} of {plan.dataset}.")
    if plan.rejects:
        fate = "will be deleted" if plan.deletes_rejects else "remain, and may hold raw text of the same rows (--rejects deletes them)"
        say(stderr(), f"{counted(len(plan.rejects), 'file')} of rejected rows {fate}.")
    stderr().print("Erase them? [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _show_erasure(console: "Console", erasure: "Erasure") -> None:
    from refit.wording import counted

    erased = f"{counted(erasure.num_rows, 'row')} with {counted(erasure.num_keys, 'key')} erased"
    say(console, f"{erasure.dataset}: {erased if erasure.num_rows else 'no such row is there (any more); nothing was erased'}")
    for one in erasure.snapshots:
        say(console, f"  snapshot {one.snapshot} is now {one.now}: {counted(one.num_rows, 'row')} fewer")
    for note in (*erasure.notes, *(f"  {path}" for path in erasure.rejects_left)):
        say(console, note)
    if erasure.runs:
        say(console, "Runs that were trained on forgotten rows, the ones of earlier requests included:")
    for run in erasure.runs:
        _show_trained(console, run)


def _show_trained(console: "Console", run: "TrainedRun") -> None:
    from refit.wording import counted, format_list

    rows = "it kept no list of its rows" if run.num_rows is None else counted(run.num_rows, "row")
    versions = f", published as version {format_list(run.versions)}" if run.versions else ""
    say(console, f"  {run.job}/{run.run}: {rows}{versions}")
    say(console, f"      {run.remedy}")
