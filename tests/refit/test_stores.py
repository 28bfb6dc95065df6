"""Addresses of object stores are taken apart and never repeat credentials; what may pass is told from what may not."""

import pickle

import pytest

from refit.config import Located
from refit.errors import RefitError, SourceError
from refit.sources import stores
from refit.sources.locations import list_files, list_folder
from refit.sources.stores import Address, TransientError, open_store, parse_address, store_error
from tests.refit.local_files import HERE


def test_what_may_pass_is_an_error_of_the_system_and_survives_a_process_border():
    error = pickle.loads(pickle.dumps(TransientError("s3://a/b: gone")))  # noqa: S301
    assert (isinstance(error, OSError), isinstance(error, RefitError), str(error)) == (True, False, "s3://a/b: gone")


@pytest.mark.parametrize(
    "path",
    [
        "s3://AKIAKEY:hunter2@bucket/x.csv",
        "s3://AKIAKEY:hun/ter2@bucket/x.csv",
        "s3://hunter2@bucket/x.csv",
        "gs://user:hunter2@bucket/x.csv",
        "s3://bucket/x.csv?secret_key=hunter2",
        "s3://bucket/x.csv?a=1&X-Amz-Signature=hunter2",
        "https://user:hunter2@host/x.csv",
        "postgresql://user:hunter2@host/x",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(path, caplog):
    for call in (lambda: list_files(path, HERE), lambda: list_folder(path, HERE, [".csv"])):
        with pytest.raises(SourceError) as caught:
            call()
        assert "hun" not in str(caught.value) + caplog.text
        assert "ter2" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://host/path", "http://", "http://h?x=hunter2"])
def test_an_endpoint_that_is_no_server_is_refused_and_not_repeated(endpoint):
    with pytest.raises(SourceError, match="endpoint of a source is no address") as caught:
        list_files("s3://bucket/x.csv", Located(path="x", endpoint=endpoint))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", ["s3:///x.csv", "s3://", "s3://*/x.csv", "gs://buck[e]t/x"])
def test_an_address_without_a_bucket_is_refused(path):
    with pytest.raises(SourceError, match="names no bucket"):
        list_files(path, HERE)


@pytest.mark.parametrize("path", ["http://host/x.csv", "S3://bucket/x.csv", "azure://x/y", "file:///etc/passwd"])
def test_an_address_of_another_kind_is_refused(path):
    with pytest.raises(SourceError, match=r"such an address cannot be read.*s3://bucket/key or gs://bucket/key"):
        list_files(path, HERE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://b/k/x.csv", ("gs", "b", "k/x.csv")),
        ("s3://b.c-d/k", ("s3", "b.c-d", "k")),
        ("s3://b", ("s3", "b", "")),
        ("s3://b/k://@:", ("s3", "b", "k://@:")),
        ("dir/a:b.csv", None),
        ("s3:/b/k", None),
    ],
)
def test_an_address_is_taken_apart(path, expected):
    found = parse_address(path)
    assert found == (expected and Address(*expected))


def test_each_kind_of_store_has_its_own_client_made_once():
    from pyarrow import fs

    google, amazon = parse_address("gs://b/k"), parse_address("s3://b/k")
    assert isinstance(open_store(google, HERE), fs.GcsFileSystem)
    assert isinstance(open_store(amazon, HERE), fs.S3FileSystem)
    here = Located(path="x", endpoint="http://127.0.0.1:9", region="eu-west-1")
    assert open_store(amazon, here) is open_store(amazon, here.model_copy())
    assert open_store(amazon, here) is not open_store(amazon, HERE)
    assert open_store(amazon, here).region == "eu-west-1"


def test_a_google_store_that_cannot_be_reached_may_be_tried_again(monkeypatch):
    """Google's own client, which reaches neither a server that gives credentials nor, at a closed port, the store itself."""
    from datetime import timedelta

    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    stores._make_client.cache_clear()
    monkeypatch.setattr(stores, "_GCS_PATIENCE", timedelta(milliseconds=10))
    with pytest.raises(TransientError, match=r"gs://bucket.*could not be reached"):
        list_files("gs://bucket/*.csv", Located(path="x", endpoint="http://127.0.0.1:1"))


def test_a_google_store_without_usable_credentials_is_named_with_the_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "key.json").write_text('{"private_key": "hunter2"')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    stores._make_client.cache_clear()
    with pytest.raises(SourceError, match=r"denies access.*GOOGLE_APPLICATION_CREDENTIALS is set") as caught:
        list_files("gs://bucket/x.csv", HERE)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("When listing objects under key '' in bucket 'b': AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: x", SourceError),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body.", SourceError),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", SourceError),
        ("AWS Error UNKNOWN (HTTP status 416) during GetObject operation: The requested range is not satisfiable", TransientError),
        ("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body.", TransientError),
        ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", TransientError),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error, with a last message of x error_info={a=b})", SourceError),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of x error_info={a=b})", TransientError),
        ("something new", TransientError),
    ],
)
def test_what_may_pass_is_told_from_what_may_not_by_the_words_of_the_library(text, expected):
    error = store_error("s3://b/k", "s3", OSError(text))
    assert isinstance(error, expected)
    assert isinstance(error, TransientError) == (expected is TransientError)
    assert "error_info" not in str(error)
