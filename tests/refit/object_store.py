"""An S3-speaking server of the tests' own: moto's, in a process of its own, on a free port of this machine."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from pyarrow import fs

KEY, SECRET = "AKIAOFATEST000000000", "s3cr3t/of+a+test/that/nobody/may/see/"


class ObjectStore:
    """The server, with one bucket that is there from the beginning."""

    bucket = "training"

    def __init__(self, port):
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.files = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, scheme="http", endpoint_override=f"127.0.0.1:{port}", allow_bucket_creation=True
        )
        self.files.create_dir(self.bucket)

    def put(self, key, content):
        """Write an object; its address."""
        with self.files.open_output_stream(f"{self.bucket}/{key}", compression=None) as stream:
            stream.write(content)
        return self.address(key)

    def address(self, key):
        return f"s3://{self.bucket}/{key}"

    def remove(self, key):
        self.files.delete_file(f"{self.bucket}/{key}")

    @contextlib.contextmanager
    def checking_credentials(self):
        """Within the block the server looks up who asks; it knows nobody."""
        self._authenticate_after("0")
        try:
            yield
        finally:
            self._authenticate_after("inf")

    def _authenticate_after(self, num_requests):
        httpx.post(f"{self.endpoint}/moto-api/reset-auth", content=num_requests).raise_for_status()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def running_store():
    """The server, for as long as the block lasts."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port, server)
            yield ObjectStore(port)
        finally:
            server.terminate()


def wait_for(port, server, *, seconds=30):
    for _ in range(seconds * 20):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert server.poll() is None, "moto's server ended at once"
        time.sleep(0.05)
    pytest.fail("moto's server did not start")


def set_credentials(monkeypatch):
    """Put those of ``KEY`` into the environment, and no others."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@contextlib.contextmanager
def breaking_line(port, *, after_bytes):
    """A port that passes everything on to ``port``, and hangs up on a connection once so many bytes came back over it."""
    with socket.create_server(("127.0.0.1", 0)) as front:
        threading.Thread(target=_accept, args=(front, port, after_bytes), daemon=True).start()
        yield front.getsockname()[1]
        front.shutdown(socket.SHUT_RDWR)


def _accept(front, port, after_bytes):
    with contextlib.suppress(OSError):
        while True:
            caller, _ = front.accept()
            callee = socket.create_connection(("127.0.0.1", port))
            for source, target, limit in ((caller, callee, None), (callee, caller, after_bytes)):
                threading.Thread(target=_pass_on, args=(source, target, limit), daemon=True).start()


def _pass_on(source, target, limit):
    passed = 0
    with contextlib.suppress(OSError):
        while (piece := source.recv(4096)) and (limit is None or passed < limit):
            target.sendall(piece)
            passed += len(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
