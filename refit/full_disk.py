"""A full disk, however the library that met it tells: as an error number, or in words of its own."""

import errno
import os

from refit.errors import StorageError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_WORDS = tuple(os.strerror(number) for number in _NUMBERS)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk has no room."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _NUMBERS or any(words in str(seen) for words in _WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full_disk(where: str) -> StorageError:
    """The error that says so."""
    return StorageError("the disk is full.", where=where, remedy="Make room; the next start of the job goes on after what is done.")
