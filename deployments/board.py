"""TensorBoard over all runs."""

import importlib.util
from pathlib import Path

from rich.console import Console

from deployments.server import HOST, end_child, find_free_port, require_free, start_child
from refit.errors import RefitError, RequestError

DEFAULT_PORT = 6006


def open_board(runs_dir: Path, *, port: int | None = None, host: str = HOST) -> int:
    """Show the curves of every run under ``runs_dir`` until Ctrl-C.

    Args:
        runs_dir: the folder of all runs.
        port: where to listen; by default 6006, or any free port where that is taken.
        host: address to bind.

    Returns:
        The exit status, 0.

    Raises:
        RequestError: there is no run yet, or the port is taken.
        RefitError: TensorBoard ended by itself.
    """
    _require_runs(runs_dir)
    port = _choose_port(port)
    Console(stderr=True).print(f"TensorBoard over {runs_dir}: http://{host}:{port}/?smoothing=0  (Ctrl-C ends it)", soft_wrap=True)
    board = start_child(_arguments(runs_dir, host, port), environment={"TF_CPP_MIN_LOG_LEVEL": "3"})
    try:
        status = board.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        end_child(board)
    raise RefitError(f"TensorBoard ended with status {status}.", where=f"{host}:{port}", remedy="Its own message stands above.")


def _require_runs(runs_dir: Path) -> None:
    if not any(runs_dir.glob("*/*/")):
        raise RequestError("there is no run yet.", where=str(runs_dir), remedy="Make one: refit run deployments/digits.yaml")


def _choose_port(port: int | None) -> int:
    try:
        require_free(DEFAULT_PORT if port is None else port)
    except RequestError as error:
        if port is None:
            return find_free_port()
        raise RequestError(error.what, received=error.received, remedy="Choose another one with --port.") from error
    return DEFAULT_PORT if port is None else port


def _arguments(runs_dir: Path, host: str, port: int) -> list[str]:
    arguments = ["-m", "tensorboard.main", "--logdir", str(runs_dir), "--host", host, "--port", str(port)]
    # The fast reader is a program of its own, which not every platform has.
    return arguments if importlib.util.find_spec("tensorboard_data_server") else [*arguments, "--load_fast", "false"]
