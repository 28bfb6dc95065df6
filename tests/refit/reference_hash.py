"""``murmur64a/1`` read plainly from its definition, one step at a time."""

import hashlib
import math
import struct

from refit.hashing import LONGEST

MASK = 2**64 - 1


def murmur64a(data: bytes) -> int:
    """MurmurHash64A with seed 0 over whole words, one step at a time."""
    m = 0xC6A4A7935BD1E995
    h = len(data) * m & MASK
    for (word,) in struct.iter_unpack("<Q", data):
        k = word * m & MASK
        h = (h ^ (k ^ k >> 47) * m & MASK) * m & MASK
    h ^= h >> 47
    h = h * m & MASK
    return h ^ h >> 47


def written(value) -> bytes:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return struct.pack("<Q", MASK)
    if isinstance(value, float):
        raw = struct.pack("<d", value + 0.0)
    elif isinstance(value, int):
        raw = struct.pack("<q", value)
    else:
        raw = value.encode() if isinstance(value, str) else value
    length = struct.pack("<Q", len(raw))
    raw = hashlib.sha256(raw).digest() if len(raw) > LONGEST else raw
    return length + raw + b"\0" * (-len(raw) % 8)


def hash_of(*values) -> int:
    """The hash of one row."""
    return murmur64a(b"".join(map(written, values)))
