"""A real PostgreSQL server for the tests, ended by its process id."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import adbc_driver_postgresql.dbapi as postgresql
import pytest

USER = "refit"
PASSWORD = "correct-horse/battery"
START_SECONDS = 30.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Postgres:
    """A server that asks for ``PASSWORD``."""

    port: int
    connection: postgresql.Connection

    @property
    def host(self) -> str:
        """Host, port and database, as they stand in an address."""
        return f"127.0.0.1:{self.port}/postgres"

    def address(self, password: str | None = None) -> str:
        """The whole address; a ``password`` other than the right one stands in it as it is given."""
        return _address(self.port, password or quote(PASSWORD, safe=""))

    def execute(self, *statements: str) -> None:
        """Run statements, all or none of them."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        self.connection.commit()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests."""
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        pytest.skip("postgres and initdb are not on the PATH")
    with tempfile.TemporaryDirectory(prefix="refit-postgres-", ignore_cleanup_errors=True) as folder, started(Path(folder)) as server:
        yield server


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Postgres]:
    """A server whose files lie in ``folder``."""
    password, data, log, port = folder / "password", folder / "data", folder / "log", _free_port()
    password.write_text(PASSWORD)
    owner = _owner(folder, password)
    initdb = ["initdb", "-D", str(data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(password), "-E", "UTF8", "--no-locale", "-N"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "timezone=America/New_York"]
    command = ["postgres", "-D", str(data), "-p", str(port), *(word for option in options for word in ("-c", option))]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, start_new_session=True, **owner)
    try:
        with _connect(port, process, log) as connection:
            yield Postgres(port, connection)
    finally:
        process.send_signal(2)  # SIGINT: fast shutdown, sessions are ended
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _owner(*paths: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: hand the files to a user without rights, and run as that."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in paths:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _connect(port: int, process: subprocess.Popen[bytes], log: Path) -> postgresql.Connection:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(postgresql.Error):
            return postgresql.connect(_address(port, quote(PASSWORD, safe="")))
        time.sleep(0.05)
    pytest.fail(f"PostgreSQL does not start: {log.read_text()}")


def _address(port: int, password: str) -> str:
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
