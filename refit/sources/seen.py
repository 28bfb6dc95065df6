"""What is known of files from an earlier reading: digests of their content, so that an unchanged file is not read again."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import StringConstraints, TypeAdapter, ValidationError

from refit.config import Located
from refit.parallel import ordered_map
from refit.records import write_atomically
from refit.sources.inputs import File
from refit.sources.locations import file_times, read_pieces
from refit.sources.stores import is_address

_THREADS = 8
_BLOCK_BYTES = 16 << 20
_SETTLED_LOCAL_NS = 2_000_000_000
_SETTLED_REMOTE_NS = 60_000_000_000


class _Entry(NamedTuple):
    """The digest of a file as it was: ``at`` is when its reading began, in nanoseconds since 1970."""

    size: int
    stamp: str
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    at: int


class Seen:
    """Digests of files that were read before, so that an unchanged file is not read again. Safe to share among threads.

    A file is unchanged if its name, its size and its stamp are: times and inode, for objects the time alone. The time of change
    (ctime) is among them, for unlike the time of modification nobody can set it back, as ``cp -p`` and ``touch -r`` do.

    Times are coarse, though. A file that was digested in the same moment in which it was written may have been written once
    more in that moment, with another content of the same size and times. So an entry is trusted only if the newest of the
    file's times was more than 2 seconds past when the reading began, which covers the coarsest clocks of file systems (FAT: 2 s,
    Linux kernels: 1 to 10 ms, S3: 1 s). For objects it is 60 seconds, since their times come from another machine's clock.
    Otherwise the file is read again, once it has settled for the last time.

    Source: "racy git", https://git-scm.com/docs/racy-git.
    """

    def __init__(self, known: Mapping[str, _Entry] | None = None, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Begin with ``known``; ``clock`` gives nanoseconds since 1970."""
        self.clock = clock
        self._loaded = dict(known or {})
        self._known = dict(self._loaded)
        self._used: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, clock: Callable[[], int] = time.time_ns) -> Self:
        """Read a cache; one that is missing, unreadable or damaged is empty."""
        try:
            return cls(TypeAdapter(dict[str, _Entry]).validate_json(path.read_bytes()), clock=clock)
        except (OSError, ValidationError):
            return cls(clock=clock)

    def save(self, path: Path) -> None:
        """Write the entries that were used since loading, if they are not those that were loaded."""
        with self._lock:
            used = dict(sorted(self._used.items()))
        if used != self._loaded:
            write_atomically(path, TypeAdapter(dict[str, _Entry]).dump_json(used))
            self._loaded = used

    def find(self, file: File) -> str | None:
        """The digest of a file that is unchanged for certain."""
        with self._lock:
            entry = self._known.get(file.name)
            if entry is None or (entry.size, entry.stamp) != (file.size, file.stamp) or not _was_settled(file, entry.at):
                return None
            self._used[file.name] = entry
            return entry.digest

    def add(self, file: File, digest: str, *, at: int) -> None:
        """Keep the digest of a file whose reading began at ``at``."""
        with self._lock:
            self._known[file.name] = self._used[file.name] = _Entry(file.size, file.stamp, digest, at)


def _was_settled(file: File, at: int) -> bool:
    margin = _SETTLED_REMOTE_NS if is_address(file.name) else _SETTLED_LOCAL_NS
    times = file_times(file)
    return all(moment.lstrip("-").isdecimal() for moment in times) and at - max(map(int, times)) > margin


# ---- digests


def digest_file(file: File, place: Located, seen: Seen) -> str:
    """Digest (hex) of the content, read only if ``seen`` does not have it.

    It is the SHA-256 of the SHA-256s of the content's blocks of 16 MiB, which several threads can make of one large file.

    Raises:
        SourceError: the file may not be read, or is no longer there.
        TransientError: the store cannot be reached.
    """
    known = seen.find(file)
    if known is not None:
        return known
    at, content = seen.clock(), hashlib.sha256()
    for block in ordered_map(_sha256, _blocks(read_pieces(file, place))):
        content.update(block)
    seen.add(file, content.hexdigest(), at=at)
    return content.hexdigest()


def _blocks(pieces: Iterator[bytes]) -> Iterator[list[memoryview]]:
    """Pieces that make up ``_BLOCK_BYTES`` each, but for the last."""
    block: list[memoryview] = []
    room = _BLOCK_BYTES
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest) >= room:
            yield [*block, rest[:room]]
            rest, block, room = rest[room:], [], _BLOCK_BYTES
        if len(rest):
            block.append(rest)
            room -= len(rest)
    if block:
        yield block


def _sha256(block: list[memoryview]) -> bytes:
    content = hashlib.sha256()
    for piece in block:
        content.update(piece)
    return content.digest()


def digest_files(files: Sequence[File], place: Located, seen: Seen) -> list[str]:
    """As ``digest_file``, several at a time; in the order of ``files``."""
    known = [seen.find(file) for file in files]
    fresh = [file for file, digest in zip(files, known, strict=True) if digest is None]
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(lambda file: digest_file(file, place, seen), fresh)
        return [digest or next(digests) for digest in known]
