"""Published models: versions, the champion, promotion and rollback.

A version is a numbered folder that TensorFlow Serving can read; the highest number serves. A version appears by one rename,
with its line of the history inside as ``refit.json``, so that whoever comes next can write the line if the publisher was
killed before it did. Writers take the model's lock; readers take none.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from refit.config import nearest
from refit.errors import ChampionMovedError, CorruptRecordError, PromotionError, UnknownNameError
from refit.layout import Layout, ModelLayout
from refit.records import HistoryRecord, Metrics, Record, sync_path

RECORD_NAME = "refit.json"
LOCK_SECONDS = 600
_INCOMING = ".publishing-"
_OUTGOING = ".removing-"


class VersionRecord(Record):
    """One version that is on disk. What is not known of a folder that refit did not publish is null."""

    version: int
    run: str | None = None
    at: datetime | None = None
    by: str | None = None
    action: str | None = None
    verdict: str | None = None
    reason: str | None = None
    metrics: Metrics = Field(default_factory=dict)
    restores: int | None = None
    withdrawn: bool = False
    serving: bool = False


# ---- reading


def models(layout: Layout) -> list[str]:
    """Names of the models that have a version, sorted."""
    folders = layout.models_dir.iterdir() if layout.models_dir.is_dir() else ()
    return sorted(path.name for path in folders if not path.name.startswith(".") and ModelLayout(path).versions())


def champion(layout: Layout, name: str) -> int | None:
    """The version that serves, or None where nothing was published."""
    return _serving(layout.model(name))


def champion_record(layout: Layout, name: str) -> VersionRecord | None:
    """What is known of the version that serves, or None where nothing was published."""
    serving = [record for record in _versions(layout.model(name)) if record.serving]
    return serving[0] if serving else None


def versions(layout: Layout, name: str) -> list[VersionRecord]:
    """The versions on disk, ascending; the last one serves.

    Raises:
        UnknownNameError: nothing was published under that name.
    """
    return _versions(_known_model(layout, name))


def read_history(layout: Layout, name: str) -> list[HistoryRecord]:
    """Promotions, rollbacks and releases, oldest first; empty where nothing was published.

    A version whose publisher was killed before it wrote its line is there all the same; a line that was cut short is not.

    Raises:
        CorruptRecordError: a line is not a record.
    """
    return _history(layout.model(name))


def is_held(layout: Layout, name: str) -> bool:
    """Whether automatic promotion is stopped: since a rollback, until a release or until a person promotes a run."""
    history = read_history(layout, name)
    return bool(history) and history[-1].action == "rollback"


def digest_folder(path: Path) -> str:
    """SHA-256 (hex) over the files of a SavedModel: relative names in order, lengths and contents. ``refit.json`` is left out."""
    total = hashlib.sha256()
    for relative, file in sorted((file.relative_to(path).as_posix(), file) for file in _contents(path) if file.is_file()):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        total.update(len(relative.encode()).to_bytes(8, "big") + relative.encode() + content)
    return total.hexdigest()


def _serving(model: ModelLayout) -> int | None:
    return max(model.versions(), default=None)


def _versions(model: ModelLayout) -> list[VersionRecord]:
    numbers = model.versions()
    history = _history(model)
    published, standing = _published(history), _standing(history)
    return [
        VersionRecord(
            **(published[number].model_dump(exclude={"version", "withdraws", "digest"}) if number in published else {}),
            version=number,
            withdrawn=standing.is_withdrawn(number),
            serving=number == numbers[-1],
        )
        for number in numbers
    ]


def _known_model(layout: Layout, name: str) -> ModelLayout:
    model = layout.model(name)
    if not model.versions():
        known = nearest(name, models(layout)) or " Nothing has been published yet."
        raise UnknownNameError(f'there is no model "{name}".{known}', where=str(layout.models_dir))
    return model


# ---- history


def _history(model: ModelLayout) -> list[HistoryRecord]:
    """Lines of the history, then what versions that have no line say of themselves.

    Folders are listed first: a version that is published meanwhile then has its line, or is not looked for.
    """
    numbers = model.versions()
    lines = _read_lines(model)
    return [*lines, *_unrecorded(model, numbers, lines)]


def _read_lines(model: ModelLayout) -> list[HistoryRecord]:
    try:
        content = model.history.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    return [_parse_line(line, number, model.history) for number, line in enumerate(whole.splitlines(), 1)]


def _parse_line(line: bytes, number: int, path: Path) -> HistoryRecord:
    try:
        return HistoryRecord.model_validate_json(line)
    except ValidationError as error:
        raise CorruptRecordError(
            "this line is no record of a promotion or a rollback.",
            where=f"{path}:{number}",
            received=repr(line[:80].decode(errors="replace")),
            remedy=f"Restore the line from the version's {RECORD_NAME}, or remove it.",
        ) from error


def _unrecorded(model: ModelLayout, numbers: Iterable[int], lines: Iterable[HistoryRecord]) -> list[HistoryRecord]:
    """Records of versions that have no line; a folder that refit did not publish has no record either."""
    recorded = _published(lines)
    records = []
    for number in numbers:
        if number not in recorded:
            with contextlib.suppress(FileNotFoundError):
                records.append(HistoryRecord.read(model.version(number) / RECORD_NAME))
    return records


def _published(history: Iterable[HistoryRecord]) -> dict[int, HistoryRecord]:
    return {record.version: record for record in history if record.action != "release"}


@dataclass(frozen=True)
class _Standing:
    """Which models were taken out of service. A rollback publishes an old model under a new number: both share their origin."""

    origins: dict[int, int]
    withdrawn: frozenset[int]

    def origin(self, version: int) -> int:
        return self.origins.get(version, version)

    def is_withdrawn(self, version: int) -> bool:
        return self.origin(version) in self.withdrawn


def _standing(history: Iterable[HistoryRecord]) -> _Standing:
    origins: dict[int, int] = {}
    withdrawn: set[int] = set()
    for record in history:
        if record.restores is not None:
            origins[record.version] = origins.get(record.restores, record.restores)
        if record.withdraws is not None:
            withdrawn.add(origins.get(record.withdraws, record.withdraws))
        withdrawn.discard(origins.get(record.version, record.version))
    return _Standing(origins, frozenset(withdrawn))


def _way_back(model: ModelLayout, history: Iterable[HistoryRecord]) -> int | None:
    """The newest version on disk that holds another model than the champion's and was not withdrawn."""
    standing, numbers = _standing(history), model.versions()
    good = [n for n in numbers if not standing.is_withdrawn(n) and standing.origin(n) != standing.origin(numbers[-1])]
    return max(good, default=None)


# ---- publishing


def publish(
    layout: Layout,
    name: str,
    saved_model: Path,
    *,
    run: str,
    verdict: str,
    reason: str,
    metrics: Metrics,
    expected_champion: int | None,
    keep_versions: int,
    by: str,
    at: datetime,
) -> int:
    """Make a run's SavedModel the next version, if the champion is still the one that the run was judged against.

    Killed at any moment, the version before serves or the new one does. Publishing a run again whose version serves changes
    nothing. A promotion ends the hold that a rollback left: whoever publishes automatically asks ``is_held`` first.

    Args:
        layout: where models lie.
        name: of the model.
        saved_model: folder of the SavedModel; it is copied and left as it is.
        run: that trained it.
        verdict: of the gate.
        reason: why it is published.
        metrics: of the run on its test rows; values that are not finite are left out of the history.
        expected_champion: the version that the run was judged against; None where there was none.
        keep_versions: so many of the newest stay on disk, and the one that a rollback would bring back.
        by: who publishes.
        at: when.

    Returns:
        The number of the version.

    Raises:
        ChampionMovedError: another version serves.
        PromotionError: there is no SavedModel, or another process holds the model for very long.
    """
    if not (saved_model / "saved_model.pb").is_file():
        raise PromotionError("there is no SavedModel to publish.", where=str(saved_model), expected="a folder with saved_model.pb")
    model = layout.model(name)
    with _writing(model):
        serving, history = _serving(model), _history(model)
        if serving is not None and _is_promotion_of(run, _published(history).get(serving)):
            return serving
        _check_champion(name, serving, expected_champion)
        record = HistoryRecord(
            version=_next_number(model, history),
            action="promote",
            run=run,
            verdict=verdict,
            reason=reason,
            by=by,
            at=at,
            metrics={metric: value for metric, value in metrics.items() if math.isfinite(value)},
        )
        _install(model, saved_model, record, _copy)
        _prune(model, keep_versions)
        return record.version


def rollback(layout: Layout, name: str, *, to: int | None = None, by: str, at: datetime, reason: str) -> int:
    """Publish an earlier version again under the next number, withdraw the one that served, and hold automatic promotion.

    Args:
        layout: where models lie.
        name: of the model.
        to: the version to bring back; by default the newest earlier one that was not withdrawn.
        by: who rolls back.
        at: when.
        reason: why.

    Returns:
        The new number.

    Raises:
        UnknownNameError: there is no such model, or no such version on disk.
        PromotionError: there is nothing to go back to, it serves already, or its files were changed since it was published.
    """
    model = _known_model(layout, name)
    with _writing(model):
        history, numbers = _history(model), model.versions()
        target = _rollback_target(model, name, history, to)
        restored = _published(history).get(target)
        _check_unchanged(model.version(target), restored)
        record = HistoryRecord(
            version=_next_number(model, history),
            action="rollback",
            run=restored.run if restored else None,
            verdict=restored.verdict if restored else None,
            reason=reason,
            by=by,
            at=at,
            metrics=restored.metrics if restored else {},
            restores=target,
            withdraws=numbers[-1],
        )
        _install(model, model.version(target), record, _link)
        return record.version


def release(layout: Layout, name: str, *, by: str, at: datetime) -> bool:
    """End the hold that a rollback left.

    Returns:
        Whether there was one; without one nothing is written.

    Raises:
        UnknownNameError: there is no such model.
    """
    model = _known_model(layout, name)
    with _writing(model):
        held = _history(model)[-1:]
        if not held or held[0].action != "rollback":
            return False
        text = f"ended the hold after the rollback to version {held[0].restores}"
        _append(model, HistoryRecord(version=model.versions()[-1], action="release", run=None, verdict=None, reason=text, by=by, at=at))
        return True


def _is_promotion_of(run: str, record: HistoryRecord | None) -> bool:
    return record is not None and record.action == "promote" and record.run == run


def _check_champion(name: str, serving: int | None, expected: int | None) -> None:
    if serving != expected:
        raise ChampionMovedError(
            f'the champion of "{name}" changed after the candidate was judged.',
            expected="no version" if expected is None else f"version {expected}",
            received="no version" if serving is None else f"version {serving}",
            remedy="Evaluate the candidate again, against the version that serves now.",
        )


def _rollback_target(model: ModelLayout, name: str, history: list[HistoryRecord], to: int | None) -> int:
    numbers, standing = model.versions(), _standing(history)
    if to is not None and to not in numbers:
        known = nearest(str(to), map(str, numbers))
        raise UnknownNameError(f'there is no version {to} of "{name}" on disk.{known}', where=str(model.root))
    if to is not None and standing.origin(to) == standing.origin(numbers[-1]):
        raise PromotionError(f'version {to} of "{name}" serves already, as version {numbers[-1]}.', where=str(model.root))
    target = to if to is not None else _way_back(model, history)
    if target is None:
        raise PromotionError(
            f'there is no earlier version of "{name}" to go back to: each one on disk was withdrawn or is what serves.',
            where=str(model.root),
            remedy="Name a withdrawn one with --to, or publish another run with `refit promote RUN`.",
        )
    return target


def _check_unchanged(folder: Path, record: HistoryRecord | None) -> None:
    if record is not None and record.digest is not None and digest_folder(folder) != record.digest:
        raise PromotionError(
            "the files of this version are not those that were published.",
            where=str(folder),
            expected=f"digest {record.digest[:12]}",
            remedy="Name another version with --to, or publish its run again with `refit promote RUN`.",
        )


def _next_number(model: ModelLayout, history: Iterable[HistoryRecord]) -> int:
    """Above every number ever used, also by versions that are gone from disk."""
    return max([*model.versions(), *(record.version for record in history)], default=0) + 1


# ---- files, all under the lock


@contextlib.contextmanager
def _writing(model: ModelLayout) -> Iterator[None]:
    """Hold the model's lock, and first put in order what a killed writer left."""
    model.root.mkdir(parents=True, exist_ok=True)
    sync_path(model.root.parent)
    lock = FileLock(model.lock, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise PromotionError(
            f"another process has been publishing for more than {LOCK_SECONDS // 60} minutes.",
            where=str(model.lock),
            remedy="End that process, then try again.",
        ) from error
    try:
        _recover(model)
        yield
    finally:
        lock.release()


def _recover(model: ModelLayout) -> None:
    """Remove folders that never became versions or no longer are, cut a torn line, and write the lines that are missing."""
    for path in model.root.iterdir():
        if path.name.startswith((_INCOMING, _OUTGOING)):
            shutil.rmtree(path)
    lines = _cut_torn_line(model)
    for record in _unrecorded(model, model.versions(), lines):
        _append(model, record)


def _cut_torn_line(model: ModelLayout) -> list[HistoryRecord]:
    if model.history.exists():
        with model.history.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())
    return _read_lines(model)


def _append(model: ModelLayout, record: HistoryRecord) -> None:
    with model.history.open("ab") as file:
        file.write(record.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_path(model.root)


def _install(model: ModelLayout, source: Path, record: HistoryRecord, put: Callable[[Path, Path], None]) -> None:
    """Build the version aside, let it appear by one rename, then write its line. ``refit.json`` is always a file of its own."""
    aside = model.root / f"{_INCOMING}{record.version}"
    _place(source, aside, put)
    complete = record.model_copy(update={"digest": digest_folder(aside)})
    complete.write(aside / RECORD_NAME)
    aside.rename(model.version(record.version))
    sync_path(model.root)
    _append(model, complete)


def _place(source: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
    target.mkdir()
    for path in sorted(_contents(source)):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            put(path, copy)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        sync_path(folder)


def _contents(folder: Path) -> Iterator[Path]:
    """Files and folders of a SavedModel at any depth, without the record of its publication."""
    return (path for path in folder.rglob("*") if path != folder / RECORD_NAME)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """Hard link, or copy where the file system has no links, or no more of them."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _copy(source, target)


def _prune(model: ModelLayout, keep_versions: int) -> None:
    """Remove old versions that refit published, but never the champion nor the version that a rollback would bring back.

    A version disappears by one rename, so that nobody sees half of it.
    """
    history, numbers = _history(model), model.versions()
    kept = {*numbers[-keep_versions:], numbers[-1], _way_back(model, history)}
    for number in numbers:
        if number not in kept and number in _published(history):
            outgoing = model.root / f"{_OUTGOING}{number}"
            model.version(number).rename(outgoing)
            sync_path(model.root)
            shutil.rmtree(outgoing)
