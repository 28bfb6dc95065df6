"""Server, schedule and runs in one process, and nothing of it afterwards."""

import signal
import socket
from pathlib import Path

import httpx
import pytest

from deployments.environment import CHECKOUT
from deployments.server import HOST, answers, find_free_port
from tests.deployments.processes import Server, clean_environment, descendants, running, wait_until

DIGITS = CHECKOUT / "deployments" / "digits.yaml"
SERVE = ["-c", "from deployments.command import main; main()", "serve", str(DIGITS)]


def is_ready(server: Server) -> bool:
    """Whether the deployment waits for runs."""
    try:
        return answers(server.port) and server.deployment("digits")["status"] == "READY"
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_serves_until_a_signal_and_leaves_no_process(number: signal.Signals, prefect_home: Path, tmp_path: Path) -> None:
    port = find_free_port()
    environment = clean_environment(prefect_home, PREFECT_SERVER_API_PORT=str(port), REFIT_HOME=str(tmp_path / "refit"))
    server = Server(port=port, environment=environment, refit_home=tmp_path / "refit")
    with running(SERVE, environment, tmp_path / "log", cwd=tmp_path) as process:
        wait_until(lambda: is_ready(server), seconds=120, what="the deployment is served")
        assert f"http://{HOST}:{port}" in (tmp_path / "log").read_text()
        below = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(30) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), seconds=10, what="nothing is left")


@pytest.mark.slow
def test_a_running_run_ends_by_itself_and_says_so(prefect_home: Path, tmp_path: Path) -> None:
    port = find_free_port()
    environment = clean_environment(prefect_home, PREFECT_SERVER_API_PORT=str(port), REFIT_HOME=str(tmp_path / "refit"))
    server = Server(port=port, environment=environment, refit_home=tmp_path / "refit")
    with running(SERVE, environment, tmp_path / "log", cwd=tmp_path) as process:
        wait_until(lambda: is_ready(server), seconds=120, what="the deployment is served")
        deployed = server.deployment("digits")
        endless = {**deployed["parameters"], "overrides": {"fit.epochs": 1_000_000, "fit.early_stopping": None}}
        begun = server.post(f"/deployments/{deployed['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}, "parameters": endless})["id"]
        wait_until(lambda: server.get(f"/flow_runs/{begun}")["state"]["name"] == "Running", seconds=120, what="the run runs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with running(["-m", "prefect", "server", "start", "--port", str(port)], environment, tmp_path / "again"):
        wait_until(lambda: answers(port), seconds=60, what="the server answers again")
        assert server.get(f"/flow_runs/{begun}")["state"]["type"] in ("CRASHED", "CANCELLED")


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as occupant:
        occupant.bind((HOST, 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        environment = clean_environment(tmp_path, PREFECT_SERVER_API_PORT=str(port))
        with running(SERVE, environment, tmp_path / "log", cwd=tmp_path) as process:
            assert process.wait(60) == 2
    assert f"port {port} on {HOST} is taken" in (tmp_path / "log").read_text()
