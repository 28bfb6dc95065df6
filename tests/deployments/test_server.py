"""A server of ours serves, and ends with its parent, however that ends."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.server import HOST, ChildServer, find_free_port, require_free, start_child
from refit.errors import RefitError, RequestError
from tests.deployments.processes import clean_environment, descendants, end, running, wait_until

FLOW = """
import sys, time
from deployments.environment import prepare_environment
from deployments.server import prepare_server

prepare_environment()
wait = prepare_server()
from prefect import flow


@flow
def sleepy() -> None:
    print("body", flush=True)
    time.sleep(float(sys.argv[1]))


wait()
sleepy()
"""


def states(prefect_home: Path) -> list[str]:
    """The states of all flow runs of a home, read from its database."""
    with sqlite3.connect(prefect_home / "prefect.db") as database:
        return [row[0] for row in database.execute("select state_name from flow_run")]


def has_begun(log: Path) -> bool:
    """Whether the body of ``FLOW`` runs."""
    return "body" in log.read_text().splitlines()


def test_a_flow_runs_without_a_configured_server_and_leaves_no_process(prefect_home: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FLOW, "0"], env=clean_environment(prefect_home), cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 0
    assert states(prefect_home) == ["Completed"]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, "Crashed"), (signal.SIGKILL, "Running")])
def test_the_server_ends_with_its_parent_and_not_before(number: signal.Signals, expected: str, prefect_home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(["-c", FLOW, "60"], clean_environment(prefect_home), log, cwd=tmp_path) as process:
        wait_until(lambda: has_begun(log), seconds=120, what="the flow's body runs")
        servers = descendants(process.pid)
        assert len(servers) == 1
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal: to the whole group
        process.wait(15)  # with Prefect's own temporary server, 74 s after Ctrl-C
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers), seconds=20, what="the server is gone")
    assert states(prefect_home) == [expected]


@pytest.mark.slow
def test_two_that_start_at_once_on_a_new_home_both_run(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path / "new")
    with (
        running(["-c", FLOW, "0"], environment, tmp_path / "a", cwd=tmp_path) as first,
        running(["-c", FLOW, "0"], environment, tmp_path / "b", cwd=tmp_path) as second,
    ):
        assert (first.wait(240), second.wait(240)) == (0, 0)
    assert states(tmp_path / "new") == ["Completed", "Completed"]


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as output:
        process = start_child(["-c", "raise SystemExit('no room')"], environment={}, output=output)
        server = ChildServer(port=find_free_port(), process=process, output=output)
        with pytest.raises(RefitError, match=r"ended at once, status 1\..*no room"):
            server.wait(30)
        server.stop()


def test_a_server_that_never_answers_is_told(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as output:
        process = start_child(["-c", "import time; time.sleep(60)"], environment={}, output=output)
        try:
            with pytest.raises(RefitError, match="did not answer within 0 s"):
                ChildServer(port=find_free_port(), process=process, output=output).wait(0.5)
        finally:
            end(process)


def test_a_taken_port_is_named_with_a_way_out() -> None:
    with socket.socket() as occupant:
        occupant.bind((HOST, 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port}.*another program.*PREFECT_SERVER_API_PORT={port + 1}"):
            require_free(port)
    require_free(find_free_port())
