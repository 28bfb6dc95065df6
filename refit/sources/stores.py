"""Object stores: addresses without credentials, clients, and what their errors mean.

Credentials come from the environment alone, as the stores' own libraries look for them; an address that carries some is refused.
What may pass by itself, such as a network that fails, is a ``TransientError``, which tasks retry.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from refit.config import Located
from refit.errors import NothingThereError, SourceError
from refit.sources.inputs import first_line

_GCS_PATIENCE = timedelta(seconds=30)  # by default the library tries for a quarter of an hour
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENDPOINT = re.compile(r"https?://[^/@?#\s]+/?")
_SECRET_IN_QUERY = re.compile(r"[?&](access_key|secret_key|session_token|x-amz-\w+|x-goog-\w+)=", re.IGNORECASE)
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|MISSING_AUTHENTICATION_TOKEN|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT"
    r"|\w+ \(HTTP status 40[13]\)|PERMISSION_DENIED|UNAUTHENTICATED"
)
_GONE = re.compile(r"NO_SUCH_KEY|\w+ \(HTTP status 416\)|OUT_OF_RANGE")
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN where there is one, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


class TransientError(OSError):
    """What may pass by itself: a store that cannot be reached, a file that changed while it was read. Worth another try."""


@dataclass(frozen=True)
class Address:
    """A place in an object store."""

    scheme: str
    bucket: str
    key: str

    @property
    def path(self) -> str:
        """As pyarrow takes it."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket


def is_address(path: str) -> bool:
    """Whether a path names a place in a store, and not on this machine."""
    return _SCHEME.match(path) is not None


def parse_address(path: str) -> Address | None:
    """The parts of ``scheme://bucket/key``; None for a path of this machine.

    Raises:
        SourceError: it is no address that can be read, or it carries credentials, which the error does not repeat.
    """
    if "\0" in path:
        raise SourceError("a path cannot hold the character NUL.", where="data.sources", received=repr(path))
    parts = _SCHEME.fullmatch(path)
    if parts is None:
        return None
    scheme, (bucket, _, key) = parts[1], parts[2].partition("/")
    expected = "a path, s3://bucket/key or gs://bucket/key"
    if scheme not in _ENVIRONMENT:
        raise SourceError("files at such an address cannot be read.", where="data.sources", expected=expected, received=f"{scheme}://…")
    if "@" in bucket or ":" in bucket or _SECRET_IN_QUERY.search(path):
        raise SourceError(
            "the address of a source carries a user name, a password or a key, which would end up in records and logs.",
            where="data.sources",
            expected=expected,
            remedy=f"Take it out, have it replaced, and give credentials through the environment: {_ENVIRONMENT[scheme]}.",
        )
    if not _BUCKET.fullmatch(bucket):
        raise SourceError("the address of a source names no bucket.", where="data.sources", expected=expected, received=f'"{path}"')
    return Address(scheme, bucket, key)


def open_store(address: Address, place: Located) -> fs.FileSystem:
    """The client of an address; its endpoint and its region come from the source.

    Raises:
        SourceError: the endpoint is no address of a server.
    """
    if place.endpoint is not None and not _ENDPOINT.fullmatch(place.endpoint):
        raise SourceError(
            "the endpoint of a source is no address of a server.",
            where="data.sources",
            expected="http:// or https://, a host and a port, and nothing else, such as http://127.0.0.1:9000",
        )
    return _make_client(address.scheme, (place.endpoint or "").rstrip("/"), place.region)


@functools.lru_cache(maxsize=16)
def _make_client(scheme: str, endpoint: str, region: str | None) -> fs.FileSystem:
    """A client, made once. It holds no credentials: the S3 library looks for them at each request, and signs none without."""
    protocol, _, host = endpoint.partition("://")
    known = {"scheme": protocol, "endpoint_override": host} if endpoint else {}
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=_GCS_PATIENCE, **known)
    return fs.S3FileSystem(region=region, **known)


def expect_bucket(address: Address, store: fs.FileSystem) -> None:
    """See that the bucket is there.

    Raises:
        SourceError: it is not, or may not be looked at.
        TransientError: the store cannot be reached.
    """
    name = f"{address.scheme}://{address.bucket}"
    with telling_store_errors(name, address.scheme):
        info = store.get_file_info(address.bucket)
    if info.type == fs.FileType.NotFound:
        raise _no_bucket(name)


# ---- what is wrong


def nothing_there(pattern: str, what: str, *, remedy: str) -> NothingThereError:
    """A source names nothing that is there."""
    where = "data.sources" if is_address(pattern) else f"data.sources, looked in {Path.cwd()}"
    return NothingThereError(f'the source "{pattern}" {what}.', where=where, remedy=remedy)


def _no_bucket(name: str) -> NothingThereError:
    return nothing_there(name, "does not exist: there is no such bucket", remedy="Check the bucket's name, the endpoint and the region.")


def where_paths_begin(pattern: str) -> str:
    """What to look at where a path leads nowhere."""
    if is_address(pattern):
        return "Check the bucket and the key, which are case-sensitive."
    return "Check the path." if Path(pattern).is_absolute() else "Paths are relative to the working directory."


def changed_file(name: str) -> TransientError:
    """A file is not what was listed any more."""
    return TransientError(
        f"{name}: the file changed or was removed while it was read. Put files in place whole: write them under another name, then rename."
    )


@contextlib.contextmanager
def telling_store_errors(name: str, scheme: str) -> Iterator[None]:
    """Tell what is wrong with the request (``SourceError``) from what may pass (``TransientError``)."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise store_error(name, scheme, error) from error


def store_error(name: str, scheme: str, error: Exception) -> Exception:
    """What a library says, as an error of the request or one that may pass."""
    text = first_line(error).partition(" error_info=")[0].rstrip(".")  # Google's library goes on with its own file names and lines
    code = _code(text)
    if isinstance(error, PermissionError) or _DENIED.fullmatch(code):
        return _denied(name, scheme, code)
    if code == "NO_SUCH_BUCKET":
        return nothing_there(
            name, "does not exist: there is no such bucket", remedy="Check the bucket's name, the endpoint and the region."
        )
    if "HTTP status 301" in code or code == "PERMANENT_REDIRECT":
        return SourceError("the bucket lies in another region.", where=name, remedy="Name its region: data.sources.region.")
    if isinstance(error, FileNotFoundError) or _GONE.fullmatch(code):
        return changed_file(name)
    if not isinstance(error, OSError):
        return SourceError(f"the address cannot be read: {text}.", where=name)
    return TransientError(f"{name}: the object store failed or could not be reached: {text}.")


def _code(text: str) -> str:
    """The word by which the library of a store says what went wrong, or nothing."""
    if "OAuth2 access token" in text and "Status(UNAVAILABLE" not in text:  # the credentials cannot be used, rather than not be asked for
        return "UNAUTHENTICATED"
    found = re.search(r"(?:AWS Error |Status\()(\w+(?: \(HTTP status \d+\))?)", text)
    return found[1] if found else ""


def _denied(name: str, scheme: str, code: str) -> SourceError:
    variable = _ENVIRONMENT[scheme].split()[0]
    return SourceError(
        "the object store denies access.",
        where=name,
        received=f"{code}; {variable} is {'set' if os.environ.get(variable) else 'not set'}",
        remedy=f"Credentials come from the environment: {_ENVIRONMENT[scheme]}. Set them, or name a Secret block that holds them under "
        "data.secrets, and check that they may list and read the bucket.",
    )
