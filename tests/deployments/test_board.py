"""TensorBoard opens over the runs and ends at Ctrl-C."""

import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deployments.board import open_board
from deployments.server import HOST, find_free_port
from refit.errors import RequestError
from tests.deployments.processes import descendants, running, wait_until

BOARD = """
import sys
from pathlib import Path
from deployments.board import open_board
sys.exit(open_board(Path(sys.argv[1]), port=int(sys.argv[2])))
"""


def test_without_runs_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no run yet\. Make one: refit run"):
        open_board(tmp_path / "runs")


def test_it_shows_runs_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "runs" / "digits" / "20260101").mkdir(parents=True)
    port = find_free_port()
    with running(["-c", BOARD, str(tmp_path / "runs"), str(port)], dict(os.environ), tmp_path / "log") as process:
        wait_until(lambda: is_open(port), seconds=60, what="TensorBoard answers")
        below = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), seconds=10, what="TensorBoard is gone")
    assert f"http://{HOST}:{port}/?smoothing=0" in (tmp_path / "log").read_text()


def is_open(port: int) -> bool:
    """Whether TensorBoard answers."""
    try:
        return bool(urllib.request.urlopen(f"http://{HOST}:{port}/data/runs", timeout=5).status == 200)
    except (urllib.error.URLError, OSError):
        return False
