"""A Prefect server as a child process, for people who have none running; and the question whether one answers.

``refit run`` takes a temporary one without UI and schedules, ``refit serve`` a whole one. Both end with their parent, however that ends.
Prefect's own temporary server is not used. Measured with 3.8.8: it starts only after the client has imported the server's code (3 s
later); Ctrl-C reaches it too, so that the flow waits 74 s for a server that is gone, and its run stays Running; after ``kill -9`` it lives
on. Source: prefect.server.api.server.SubprocessASGIServer.

Imports nothing heavy and no Prefect: a server starts while the rest is still being imported.
"""

import atexit
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, NoReturn

from filelock import BaseFileLock, FileLock

from deployments.environment import API_URL, is_api_configured, prefect_home
from refit.errors import RefitError, RequestError

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 15.0
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # Source: prctl(2)

# How Prefect's own temporary server is told what it is. Source: prefect.server.api.server.SubprocessASGIServer
# Block types are not registered: 2 s of a fresh database's start. Nor is it remembered as done, or a later server would believe it.
_TEMPORARY = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
_TEMPORARY_COMMAND = ("-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error")


@dataclass
class ChildServer:
    """A server of ours. ``wait`` before its first use, ``stop`` at the end; what it writes goes to ``output``."""

    port: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    start_lock: BaseFileLock | None = field(default=None)

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL is to be."""
        return f"http://{HOST}:{self.port}/api"

    def wait(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Return when the server answers.

        Raises:
            RefitError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not answers(self.port):
            if self.process.poll() is not None:
                raise RefitError(f"Prefect's server ended at once, status {self.process.returncode}.", received=self._last_words())
            if time.monotonic() > deadline:
                raise RefitError(f"Prefect's server did not answer within {timeout_seconds:.0f} s.", received=self._last_words())
            time.sleep(_POLL_SECONDS)
        self._let_others_start()

    def stop(self) -> None:
        """End the server; killed where it does not end by itself. Harmless when it has ended."""
        end_child(self.process)
        self.output.close()
        self._let_others_start()

    def _let_others_start(self) -> None:
        if self.start_lock is not None:
            self.start_lock.release()

    def _last_words(self) -> str:
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").split("\n")
        return "\n".join(line for line in lines if line.strip())[-1000:] or "nothing on its output"


def prepare_server() -> Callable[[], None]:
    """Start a temporary server where no API is configured, and point this process to it. Call before Prefect is imported.

    Returns:
        Waits until flows can be run; call it before the first. Where an API is configured it does nothing.
    """
    if is_api_configured():
        return _nothing
    server = start_temporary_server()
    # Registered before Prefect registers what it sends at exit, so run after it.
    atexit.register(server.stop)
    os.environ[API_URL] = server.api_url
    os.environ.setdefault("PREFECT_UI_URL", "")  # no UI: Prefect would log links that lead nowhere
    return server.wait


def _nothing() -> None:
    return None


def start_temporary_server() -> ChildServer:
    """Start a server without UI and schedules on a free port; it shares the database under PREFECT_HOME.

    Starts take turns until they answer: two that make a fresh database at once fail both.
    """
    lock = _lock_start()
    port = find_free_port()
    return _start([*_TEMPORARY_COMMAND, "--host", HOST, "--port", str(port)], port, environment=_TEMPORARY, start_lock=lock)


def start_whole_server(port: int) -> ChildServer:
    """Start a server with UI and schedules.

    Raises:
        RequestError: the port is taken.
    """
    require_free(port)
    command = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    # The UI calls the port of this setting, whatever --port says.
    return _start(command, port, environment={"PREFECT_SERVER_API_PORT": str(port)})


def answers(port: int, *, timeout_seconds: float = 2.0) -> bool:
    """Whether a Prefect server answers on this machine's ``port``."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def require_free(port: int) -> None:
    """Raise unless ``port`` can be bound on this machine.

    Raises:
        RequestError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            is_server = answers(port)
            occupant = "a Prefect server" if is_server else "another program"
            remedy = _way_out(port, is_server=is_server)
            raise RequestError(f"port {port} on {HOST} is taken.", received=occupant, remedy=remedy) from error


def _way_out(port: int, *, is_server: bool) -> str:
    use = f"Use that server: {API_URL}=http://{HOST}:{port}/api. Or take" if is_server else "Take"
    return f"{use} another port: PREFECT_SERVER_API_PORT={port + 1}."


def _lock_start() -> BaseFileLock:
    home = prefect_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / "refit-server-start.lock")
        lock.acquire(timeout=START_TIMEOUT_SECONDS)
    except OSError as error:
        remedy = "Set PREFECT_HOME to a folder that you may write."
        raise RequestError("Prefect's folder cannot be used.", where=str(home), received=str(error), remedy=remedy) from error
    return lock


def find_free_port() -> int:
    """A port of this machine on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _start(arguments: list[str], port: int, *, environment: Mapping[str, str], start_lock: BaseFileLock | None = None) -> ChildServer:
    output = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by ChildServer.stop
    process = start_child(arguments, environment=environment, output=output)
    return ChildServer(port=port, process=process, output=output, start_lock=start_lock)


def start_child(arguments: list[str], *, environment: Mapping[str, str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start ``python arguments`` as a process that ends with this one, however this one ends, and that Ctrl-C in the terminal spares.

    Args:
        arguments: what follows ``python`` on the command line.
        environment: variables on top of this process's own.
        output: takes what the child writes; by default it goes where this process writes.
    """
    return subprocess.Popen(  # noqa: S603 -- this interpreter, with our arguments
        [sys.executable, "-m", "deployments.server", str(os.getpid()), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,  # the parent has states to report first
    )


def end_child(process: subprocess.Popen[bytes]) -> None:
    """Terminate a child; kill it where it does not end by itself. Harmless when it has ended."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _become(parent_pid: int, arguments: list[str]) -> NoReturn:
    """Turn this process into ``python arguments``, to be terminated by the kernel when the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit(0)
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 -- this interpreter, with our arguments


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
