"""A server and a worker for the tests of a module, and a database for all servers."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.environment import CHECKOUT
from deployments.server import HOST, answers, find_free_port
from tests.deployments.processes import START_SECONDS, Server, clean_environment, running, wait_until


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME whose database is made; to be copied."""
    home = tmp_path_factory.mktemp("migrated")
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=clean_environment(home), cwd=CHECKOUT, check=True, capture_output=True, timeout=300)
    return home


@pytest.fixture
def prefect_home(migrated_home: Path, tmp_path: Path) -> Path:
    """A PREFECT_HOME of the test's own."""
    return shutil.copytree(migrated_home, tmp_path / "prefect")


@pytest.fixture(scope="module")
def server(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server, with schedules and automations."""
    folder = tmp_path_factory.mktemp("server")
    home = shutil.copytree(migrated_home, folder / "prefect")
    port = find_free_port()
    environment = clean_environment(
        home,
        PREFECT_API_URL=f"http://{HOST}:{port}/api",
        PREFECT_SERVER_API_PORT=str(port),
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5",
        PREFECT_WORKER_QUERY_SECONDS="1",
        REFIT_HOME=str(folder / "refit"),
    )
    arguments = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with running(arguments, environment, folder / "server.log"):
        wait_until(lambda: answers(port), seconds=START_SECONDS, what="the server answers")
        yield Server(port=port, environment=environment, refit_home=folder / "refit")


@pytest.fixture(scope="module")
def worker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A process worker of the pool ``refit``."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with running(["-m", "prefect", "worker", "start", "--pool", "refit", "--type", "process"], server.environment, log) as process:
        yield process
