"""Real servers, workers and flows in processes of their own, each ended by its process id."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.environment import CHECKOUT, read_settings
from deployments.server import HOST

START_SECONDS = 120.0
STOP_SECONDS = 40.0


def wait_until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Poll until ``condition`` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    pytest.fail(f"after {seconds:.0f} s still not: {what}")


def clean_environment(prefect_home: Path, **more: str) -> dict[str, str]:
    """This process's environment without Prefect's variables, but for those of refit."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_"))}
    settings = read_settings(CHECKOUT / "prefect.toml")
    return {**kept, **settings, "DO_NOT_TRACK": "1", "PREFECT_HOME": str(prefect_home), **more}


@contextlib.contextmanager
def running(arguments: list[str], environment: dict[str, str], log: Path, *, cwd: Path = CHECKOUT) -> Iterator[subprocess.Popen[bytes]]:
    """``python arguments`` in a session of its own, ended on the way out."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=cwd, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to the process and to what it started; harmless when it has ended."""
    if process.poll() is None:
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Server:
    """A Prefect server and the environment in which commands find it."""

    port: int
    environment: dict[str, str]
    refit_home: Path

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a POST to the API."""
        return httpx.post(f"http://{HOST}:{self.port}/api{path}", json=body or {}, timeout=30).raise_for_status().json()

    def get(self, path: str) -> Any:
        """The answer to a GET from the API."""
        return httpx.get(f"http://{HOST}:{self.port}/api{path}", timeout=30).raise_for_status().json()

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment of the flow, by name."""
        found: dict[str, Any] = self.get(f"/deployments/name/retrain/{name}")
        return found

    def runs_of(self, deployment_id: str, *, scheduled: bool) -> list[dict[str, Any]]:
        """The runs of a deployment, newest first: those that its schedules made, or those that people asked for."""
        wanted = {"deployments": {"id": {"any_": [deployment_id]}}, "sort": "START_TIME_DESC"}
        return [run for run in self.post("/flow_runs/filter", wanted) if run["auto_scheduled"] is scheduled]

    def refit(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The command, as people type it."""
        return self._run("-c", "from deployments.command import main; main()", *arguments, **variables)

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Prefect's command."""
        return self._run("-m", "prefect", "--no-prompt", *arguments)

    def _run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "COLUMNS": "400", **variables}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False
        )


def descendants(pid: int) -> set[int]:
    """Processes below ``pid``. Source: proc(5)."""
    children: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children |= {int(child) for child in path.read_text().split()}
    return children.union(*(descendants(child) for child in children))
