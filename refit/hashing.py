"""The hash of a row's key, ``murmur64a/1``: stable for ever, so that a row keeps its side of the split for ever.

It is MurmurHash64A with seed 0 over the values of the key's columns in their order. A value is written as a word of 8 bytes,
little-endian, that holds its length in bytes, and then its bytes, filled up with zeros to whole words. Whole numbers, truth
values, dates (days) and times (microseconds) are 8 bytes of a signed integer; other numbers 8 bytes of a float64, with -0.0 as
0.0; text is UTF-8; a tensor is its bytes. A missing value is the length 2^64 - 1 alone. Of a value longer than 1,024 bytes
the SHA-256 stands in place of its bytes.

It costs a tenth of MD5 in DuckDB (docs/decisions/0007-key-hash.md). The hash stands for the key: among 10^8 rows the chance
that two keys share one is 3 in 10,000.

Source: Austin Appleby, MurmurHash2.cpp, function MurmurHash64A (public domain).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

NAME = "murmur64a/1"
LONGEST = 1_024
_BLOCK_ROWS = 16_384  # so that what is computed on stays in the processor's cache
_M, _R = np.uint64(0xC6A4A7935BD1E995), np.uint64(47)
_MISSING = np.uint64(2**64 - 1)
_WORD = 8
_MASKS = np.array([(1 << (8 * size)) - 1 for size in range(_WORD + 1)], dtype=np.uint64)


def hash_rows(columns: Sequence[pa.Array]) -> Words:
    """Hash rows by their values.

    Args:
        columns: of one length, in the order of the key.

    Returns:
        uint64 ``[rows]``, uniform over the whole range.
    """
    num_rows = len(columns[0])
    blocks = [_hash_block([column.slice(start, _BLOCK_ROWS) for column in columns]) for start in range(0, num_rows, _BLOCK_ROWS)]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.uint64)


def _hash_block(columns: Sequence[pa.Array]) -> Words:
    values = [_value_of(column) for column in columns]
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for value in values:
        total += value.num_words
    state = total * np.uint64(_WORD) * _M
    for value in values:
        value.feed(state)
    state ^= state >> _R
    state *= _M
    state ^= state >> _R
    return state


def _mix(state: Words, words: Words) -> None:
    words = words * _M
    words ^= words >> _R
    words *= _M
    state ^= words
    state *= _M


class _Fixed:
    """A column whose values are one word each."""

    def __init__(self, words: Words, present: npt.NDArray[np.bool_] | None) -> None:
        self._words = words
        self._present = None if present is None else np.flatnonzero(present)
        self._lengths = np.full(1, _WORD, dtype=np.uint64) if present is None else np.where(present, np.uint64(_WORD), _MISSING)
        self.num_words = np.uint64(2) if present is None else 1 + present.astype(np.uint64)

    def feed(self, state: Words) -> None:
        """Mix the values in."""
        _mix(state, self._lengths)
        if self._present is None:
            _mix(state, self._words)
        else:
            _mix_some(state, self._present, self._words[self._present])


class _Bytes:
    """A column whose values are bytes: ``starts`` and ``sizes`` within ``content``, which ends with a spare word."""

    def __init__(self, content: bytes | npt.NDArray[np.uint8], starts: Words, sizes: Words, lengths: Words) -> None:
        padded = np.concatenate([np.frombuffer(content, np.uint8), np.zeros(_WORD, np.uint8)])
        self._windows = np.ndarray((len(padded) - _WORD + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
        self._starts = starts
        self._sizes = sizes
        self._lengths = lengths
        self.num_words = 1 + (sizes + np.uint64(_WORD - 1)) // np.uint64(_WORD)

    def feed(self, state: Words) -> None:
        """Mix the values in, a word of every row at a time."""
        _mix(state, self._lengths)
        rows, starts, left = None, self._starts, self._sizes
        while True:
            going = np.flatnonzero(left)
            if not len(going):
                return
            if len(going) < len(left):
                rows, starts, left = going if rows is None else rows[going], starts[going], left[going]
            words = self._windows[starts] & _MASKS[np.minimum(left, _WORD)]
            _mix(state, words) if rows is None else _mix_some(state, rows, words)
            starts, left = starts + np.uint64(_WORD), left - np.minimum(left, np.uint64(_WORD))


def _mix_some(state: Words, rows: npt.NDArray[np.intp], words: Words) -> None:
    some = state[rows]
    _mix(some, words)
    state[rows] = some


def _value_of(column: pa.Array) -> _Fixed | _Bytes:
    present = None if not column.null_count else column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_binary(column.type):
        return _bytes_of(column.cast(pa.binary()), present)
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return _bytes_of(column.cast(pa.binary()), present)
    return _Fixed(_words_of(column), present)


def _words_of(column: pa.Array) -> Words:
    """Each value as 8 bytes; those of missing values are not looked at."""
    if pa.types.is_floating(column.type):
        real: npt.NDArray[np.float64] = np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(), dtype=np.float64) + 0.0
        return real.view(np.uint64)
    whole = column.cast(pa.int32()).cast(pa.int64()) if pa.types.is_date(column.type) else column.cast(pa.int64())
    return np.asarray(whole.fill_null(0).to_numpy(), dtype=np.int64).view(np.uint64)


def _bytes_of(column: pa.Array, present: npt.NDArray[np.bool_] | None) -> _Bytes:
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.uint64)
    starts, sizes = bounds[:-1], bounds[1:] - bounds[:-1]
    data = np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)
    if present is not None:
        sizes[~present] = 0
    lengths = sizes.copy()
    if len(sizes) and sizes.max() > LONGEST:
        data, starts, sizes = _shortened(data, starts, sizes)
    if present is not None:
        lengths[~present] = _MISSING
    return _Bytes(data, starts, sizes, lengths)


def _shortened(data: npt.NDArray[np.uint8], starts: Words, sizes: Words) -> tuple[npt.NDArray[np.uint8], Words, Words]:
    """Put the digests of long values behind the others."""
    starts, sizes, long = starts.copy(), sizes.copy(), np.flatnonzero(sizes > LONGEST)
    digests = [hashlib.sha256(data[int(starts[i]) : int(starts[i] + sizes[i])].tobytes()).digest() for i in long]
    starts[long] = len(data) + 32 * np.arange(len(long), dtype=np.uint64)
    sizes[long] = 32
    return np.concatenate([data, np.frombuffer(b"".join(digests), np.uint8)]), starts, sizes
