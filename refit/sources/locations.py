"""Where the files of a source lie, on this machine or in an object store: lists them, reads them, brings them here.

What may pass by itself, such as a network that fails, is a ``TransientError``, which tasks retry.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pyarrow import fs

from refit.config import VARIABLE, Located
from refit.errors import NothingThereError, SourceError
from refit.sources.inputs import File
from refit.sources.stores import (
    Address,
    TransientError,
    changed_file,
    expect_bucket,
    nothing_there,
    open_store,
    parse_address,
    telling_store_errors,
    where_paths_begin,
)

_LOCAL_PIECE = 1 << 20
_REMOTE_PIECE = 8 << 20  # each piece is one request
_WILD = re.compile(r"[*?[]")


# ---- variables


def expand_variables(path: str) -> str:
    """``path`` with ``${NAME}`` and ``${NAME:-default}`` replaced by environment variables, as a shell does.

    A default is for a variable that is not set or empty; no other ``$`` is special, nor is one in a value.

    Raises:
        SourceError: variables without a default are not set.
    """
    unset = sorted({match[1] for match in VARIABLE.finditer(path) if match[2] is None and match[1] not in os.environ})
    if unset:
        raise SourceError(
            f"environment variables are not set: {', '.join(unset)}." if unset[1:] else f"the environment variable {unset[0]} is not set.",
            where=f'data.sources, "{path}"',
            remedy=f"Set it where the job runs: export {unset[0]}=…; or give a default in the job: ${{{unset[0]}:-…}}.",
        )
    return VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[2] or "", path)


# ---- listing


def list_files(pattern: str, place: Located) -> list[File]:
    """Regular files that a path or a glob names, sorted by name.

    ``*``, ``?`` and ``[…]`` match within one part of a path, a part ``**`` any number of folders, itself without following
    links to folders; none of them matches a name's leading dot. Folders, links that lead nowhere, pipes and devices are left
    out. The rules are the same for the keys of an object store.

    Args:
        pattern: relative to the working directory, or absolute, or ``s3://bucket/key``, ``gs://bucket/key``; with variables.
        place: says where the object store is; its own path is not looked at.

    Raises:
        SourceError: there is no such file, a folder may not be listed, the address cannot be used, or a variable is not set.
        TransientError: the store cannot be reached.
    """
    pattern = expand_variables(pattern)
    address = parse_address(pattern)
    files = _local_files(pattern) if address is None else _remote_files(pattern, address, place)
    return sorted(files, key=lambda file: file.name)


def list_folder(path: str, place: Located, suffixes: Collection[str]) -> list[File]:
    """Regular files under a folder at any depth whose names end in one of ``suffixes``, whatever the case; sorted by name.

    Links to folders are not followed; names with a leading dot are left out, and so are folders of such names.

    Raises:
        SourceError: it is no folder, or holds no such file; or a variable is not set.
        TransientError: the store cannot be reached.
    """
    path = expand_variables(path)
    address = parse_address(path)
    if address is None:
        _expect_folder(path)
        files = [file for name in _walk(_prefix(Path(path)), ["**"]) if (file := _local_file(name))]
    else:
        files = _matching(address, place, PurePosixPath(address.key).parts, ["**"])
    found = [file for file in files if file.name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))]
    if not found:
        raise nothing_there(path, f"holds no file whose name ends in {', '.join(suffixes)}", remedy=where_paths_begin(path))
    return sorted(found, key=lambda file: file.name)


def _expect_folder(path: str) -> None:
    if not Path(path).is_dir():
        what = "is no folder" if os.path.lexists(path) else "does not exist"
        raise nothing_there(path, what, remedy=where_paths_begin(path))


# ---- patterns


def _split(parts: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The parts of a path before the first that is a pattern, and the rest."""
    wild = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return tuple(parts[:wild]), list(parts[wild:])


def _reach(patterns: Sequence[str], at: Iterable[int]) -> set[int]:
    """Positions in the pattern, with those that follow where a ``**`` stands for no folder at all."""
    reached = set(at)
    for number, pattern in enumerate(patterns):
        if number in reached and pattern == "**":
            reached.add(number + 1)
    return reached


def _advance(patterns: Sequence[str], at: Iterable[int], name: str) -> tuple[set[int], set[int]]:
    """Positions behind the parts of the pattern that match ``name``, and positions of a ``**`` that takes it for one folder more."""
    here = [(number, patterns[number]) for number in at if number < len(patterns)]
    advanced = {number + 1 for number, pattern in here if pattern != "**" and _matches(name, pattern)}
    return advanced, {number for number, pattern in here if pattern == "**" and not name.startswith(".")}


def _is_whole(patterns: Sequence[str], advanced: set[int], lingering: set[int]) -> bool:
    """Whether the name just taken ends the pattern; a ``**`` at its end stands for one name at least, as only folders hold files."""
    return len(patterns) in advanced | _reach(patterns, lingering)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def _matches_whole(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    at, is_whole = _reach(patterns, {0}), False
    for part in parts:
        advanced, lingering = _advance(patterns, at, part)
        is_whole = _is_whole(patterns, advanced, lingering)
        at = _reach(patterns, advanced | lingering)
    return is_whole


# ---- this machine


def _local_files(pattern: str) -> list[File]:
    fixed, patterns = _split(Path(pattern).parts)
    names = list(_walk(_prefix(Path(*fixed)), patterns)) if patterns else [str(Path(pattern))]
    files = [file for name in names if (file := _local_file(name))]
    if not files:
        raise _no_local_file(pattern, names if patterns or os.path.lexists(pattern) else [])
    return files


def _no_local_file(pattern: str, names: list[str]) -> NothingThereError:
    """Why nothing is left of what a pattern names."""
    if not names:
        what = "matches no file" if _WILD.search(pattern) else "does not exist"
        return nothing_there(pattern, what, remedy=where_paths_begin(pattern))
    name = min(names)
    subject = f'matches no file: "{name}" ' if _WILD.search(pattern) else ""
    if Path(name).is_dir():
        return nothing_there(pattern, f"{subject}is a folder", remedy=f"Name the files in it, such as {name}/*.csv.")
    return nothing_there(pattern, f"{subject}{_oddity(name)}", remedy="Name a regular file.")


def _oddity(name: str) -> str:
    if not Path(name).is_symlink():
        return "is a pipe, a socket or a device"
    try:
        Path(name).stat()
    except OSError as error:
        return "is a link to itself" if error.errno == errno.ELOOP else f'is a link to "{Path(name).readlink()}", which does not exist'
    return "is a link to a pipe, a socket or a device"


def _prefix(folder: Path) -> str:
    """What stands before the names in a folder."""
    return "" if folder == Path() else f"{str(folder).rstrip('/')}/"


def _walk(prefix: str, patterns: Sequence[str]) -> Iterator[str]:
    """Names under a folder that match; a link to a folder is entered only where a part of the pattern names it."""
    folders = [(prefix, _reach(patterns, {0}))]
    while folders:
        folder, at = folders.pop()
        for entry in _entries(folder or "."):
            advanced, lingering = _advance(patterns, at, entry.name)
            name = f"{folder}{entry.name}"
            if _is_whole(patterns, advanced, lingering):
                yield name
            inside = advanced if entry.is_symlink() else advanced | lingering
            if inside - {len(patterns)} and _is_folder(entry):
                folders.append((f"{name}/", _reach(patterns, inside)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise _unreadable("folder", folder, error) from error
        if _is_absence(error):
            return []
        raise


def _is_absence(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def _unreadable(what: str, name: str, error: OSError) -> SourceError:
    return SourceError(f"the {what} cannot be read: {error.strerror}.", where=name, remedy="Give the process the right to read it.")


def _local_file(name: str) -> File | None:
    """What a name stands for, if that is a regular file; a file is never opened here."""
    try:
        status = Path(name).stat()
    except PermissionError as error:
        raise _unreadable("file", name, error) from error
    except OSError as error:
        if _is_absence(error):
            return None
        raise
    if not stat.S_ISREG(status.st_mode):
        return None
    return File(_speakable(name), status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}")


def _speakable(name: str) -> str:
    """``name``, which records and queries can hold only if it is text."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError("the name of a file is no valid UTF-8.", where=ascii(name), remedy="Rename the file.") from error
    return name


def _read_local(name: str) -> Iterator[bytes]:
    """The content in pieces. Opening does not wait, so that a pipe that took the file's place cannot hang the process."""
    try:
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise TransientError(f"{name}: is no regular file any more.")
            while piece := stream.read(_LOCAL_PIECE):
                yield piece
    except (PermissionError, IsADirectoryError) as error:
        raise _unreadable("file", name, error) from error
    except OSError as error:
        if _is_absence(error):
            raise _unreadable("file", name, error) from error
        raise


# ---- object stores


def _remote_files(pattern: str, address: Address, place: Located) -> list[File]:
    fixed, patterns = _split(address.key.split("/"))
    if patterns:
        files = _matching(address, place, fixed, patterns)
        if not files:
            raise nothing_there(pattern, "matches no file", remedy=where_paths_begin(pattern))
        return files
    store = open_store(address, place)
    with telling_store_errors(pattern, address.scheme):
        info = store.get_file_info(address.path)
    if info.type == fs.FileType.Directory:
        raise nothing_there(pattern, "is a folder", remedy=f"Name the files in it, such as {pattern.rstrip('/')}/*.csv.")
    if info.type != fs.FileType.File:
        expect_bucket(address, store)
        raise nothing_there(pattern, "does not exist", remedy=where_paths_begin(pattern))
    return [_remote_file(info, address, place)]


def _matching(address: Address, place: Located, fixed: Sequence[str], patterns: Sequence[str]) -> list[File]:
    """Objects under a fixed part of the key whose rest matches."""
    store, base = open_store(address, place), "/".join([address.bucket, *fixed])
    selector = fs.FileSelector(base, recursive=len(patterns) > 1 or patterns[0] == "**", allow_not_found=True)
    with telling_store_errors(f"{address.scheme}://{base}", address.scheme):
        infos = store.get_file_info(selector)
    if not infos:
        expect_bucket(address, store)
    objects = [info for info in infos if info.type == fs.FileType.File]
    matching = [info for info in objects if _matches_whole(info.path.removeprefix(f"{base}/").split("/"), patterns)]
    return [_remote_file(info, address, place) for info in matching]


def _remote_file(info: fs.FileInfo, address: Address, place: Located) -> File:
    """An object as listings tell of it; they have no ETag."""
    return File(f"{address.scheme}://{info.path}", info.size, f"{info.mtime_ns} {info.mtime_ns} {place.endpoint or ''}")


def _read_remote(file: File, address: Address, place: Located) -> Iterator[bytes]:
    store = open_store(address, place)
    with telling_store_errors(file.name, address.scheme), store.open_input_stream(address.path, compression=None) as stream:
        while piece := stream.read(_REMOTE_PIECE):
            yield piece


# ---- any place


def read_pieces(file: File, place: Located) -> Iterator[bytes]:
    """The content of a file in pieces, as it is now.

    Raises:
        SourceError: the file may not be read, or is no longer there.
        TransientError: the store cannot be reached.
    """
    address = parse_address(file.name)
    return _read_local(file.name) if address is None else _read_remote(file, address, place)


def file_times(file: File) -> list[str]:
    """When the file was modified and when changed, in nanoseconds since 1970."""
    return file.stamp.split(" ")[:2]


# ---- bringing here


@contextlib.contextmanager
def local_path(file: File, place: Located, spool: Path) -> Iterator[Path]:
    """A path of this machine with the file's content: its own, or that of a copy in ``spool`` that is removed afterwards.

    Raises:
        SourceError: the file may not be read.
        TransientError: it is not, or no longer at the end, what was listed; or the store cannot be reached.
    """
    address = parse_address(file.name)
    if address is not None:
        with _fetched(file, address, place, spool) as path:
            yield path
        return
    _expect_unchanged(file, _local_file(file.name))
    try:
        yield Path(file.name)
    except Exception:
        _expect_unchanged(file, _local_file(file.name))  # what went wrong may have gone wrong because of that
        raise
    _expect_unchanged(file, _local_file(file.name))


def _expect_unchanged(file: File, now: File | None) -> None:
    """Compares size and times; inodes are not constant in every network file system."""
    if now is None or (now.size, file_times(now)) != (file.size, file_times(file)):
        raise changed_file(file.name)


@contextlib.contextmanager
def _fetched(file: File, address: Address, place: Located, spool: Path) -> Iterator[Path]:
    spool.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=spool, suffix=_ending(file.name))
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as copy:
            for piece in _read_remote(file, address, place):
                copy.write(piece)
        _expect_fetched_whole(file, path, address, place)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _expect_fetched_whole(file: File, path: Path, address: Address, place: Located) -> None:
    store = open_store(address, place)
    with telling_store_errors(file.name, address.scheme):
        info = store.get_file_info(address.path)
    _expect_unchanged(file, _remote_file(info, address, place) if info.type == fs.FileType.File else None)
    if path.stat().st_size != file.size:
        raise changed_file(file.name)


def _ending(name: str) -> str:
    """The suffixes, by which some readers know a format, where they are plain."""
    ending = "".join(PurePosixPath(name).suffixes[-2:])
    return ending if re.fullmatch(r"[.A-Za-z0-9]{0,20}", ending) else ""
