"""The digest of a file's content, said once more and in one breath."""

import hashlib

BLOCK = 16 << 20


def digest_of(content: bytes) -> str:
    """SHA-256 of the SHA-256s of blocks of 16 MiB."""
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    return hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()
