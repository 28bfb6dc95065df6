"""TensorFlow without the lines that its C++ part writes to stderr on every machine."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Import early, without the lines that its C++ part writes to stderr on every machine; Python's own stderr stays as it is."""
    with contextlib.suppress(Exception), _native_stderr_closed():  # what fails here fails again where it is needed, and is told there
        importlib.import_module("tensorflow")


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    kept = os.dup(2)
    python_stderr, sys.stderr = sys.stderr, os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        sys.stderr = python_stderr
        os.close(kept)
        os.close(nowhere)
