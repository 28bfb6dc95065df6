"""Server, schedules and runs in one process: the way to begin, and enough for one machine.

Each run is a process of its own. Where no API is configured a server is started too; it ends with this process.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from deployments.environment import API_URL, CHECKOUT, is_api_configured
from deployments.server import ChildServer, start_whole_server
from refit.jobfile import Deployment, read_deployments
from refit.layout import HOME_VARIABLE

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment

DEFAULT_PORT = 4200
PORT_VARIABLE = "PREFECT_SERVER_API_PORT"
CTRL_C_SECONDS = 5.0
GRACE_SECONDS = 30.0  # what Prefect gives a run that is cancelled


def serve_files(paths: list[Path]) -> None:
    """Serve every deployment of the files until Ctrl-C or SIGTERM. Call before Prefect is imported.

    Raises:
        RequestError: a file is wrong, the port is taken, or the configured server does not answer.
    """
    found = [deployment for path in paths for deployment in read_deployments(path)]
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError), _server() as server, _in_checkout():
        _serve(found, server)


@contextlib.contextmanager
def _server() -> Iterator[ChildServer | None]:
    if is_api_configured():
        yield None
        return
    console = Console(stderr=True)
    server = start_whole_server(int(os.environ.get(PORT_VARIABLE) or DEFAULT_PORT))
    try:
        with console.status("Starting Prefect's server"):
            server.wait()
        os.environ[API_URL] = server.api_url
        console.print(f"Prefect: {server.api_url.removesuffix('/api')}  (Ctrl-C ends it)", soft_wrap=True)
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _in_checkout() -> Iterator[None]:
    """Runs start where the server's workers would start them: in the checkout, which entrypoints and data paths are relative to."""
    if home := os.environ.get(HOME_VARIABLE):
        os.environ[HOME_VARIABLE] = str(Path(home).absolute())
    with contextlib.chdir(CHECKOUT):
        yield


def _serve(found: list[Deployment], server: ChildServer | None) -> None:
    from deployments.deploy import install_automation, reach_server

    with reach_server() as client:
        install_automation(client)
    asyncio.run(_run_until_signal(found, server))


async def _run_until_signal(found: list[Deployment], server: ChildServer | None) -> None:
    from prefect.runner import Runner

    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    class StoppableRunner(Runner):
        """Lets runs end by themselves. Prefect's own answer to a signal is to kill them, which leaves them Running (3.8.8)."""

        def handle_sigterm(self, *_args: object, **_kwargs: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C waits for nothing
            _end_runs(server)
            if task:
                loop.call_soon_threadsafe(task.cancel)

    runner = StoppableRunner()
    for deployment in found:
        await runner.aadd_deployment(await _to_deployment(deployment))
    signal.signal(signal.SIGINT, runner.handle_sigterm)
    await runner.start()


def _end_runs(server: ChildServer | None) -> None:
    """Let running runs save their state and say so, as a cancellation does: SIGTERM, then time to end."""
    Console(stderr=True).print("Ending runs")
    runs = _children() - ({server.process.pid} if server else set())
    # Ctrl-C in a terminal has reached them too: whoever is ending already is not disturbed.
    for patience_seconds in (CTRL_C_SECONDS, GRACE_SECONDS):
        _wait_for(runs, patience_seconds)
        for pid in _alive(runs):
            os.kill(pid, signal.SIGTERM)


def _children() -> set[int]:
    """Process ids of this process's children. Source: proc(5), /proc/pid/task/tid/children."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def _wait_for(pids: set[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)


def _alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    """Whether a child runs; one that has ended is left for Prefect to collect, or was collected already."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    except ChildProcessError:
        return False


async def _to_deployment(deployment: Deployment) -> "RunnerDeployment":
    from prefect.flows import load_flow_from_entrypoint

    from deployments.deploy import CONCURRENCY_LIMIT, fill_in_variables, read_schedule

    raw = fill_in_variables(deployment)
    given = {key: raw[key] for key in ("description", "tags", "version", "paused", "enforce_parameter_schema") if key in raw}
    flow: Flow[..., Any] = load_flow_from_entrypoint(raw["entrypoint"])
    return await flow.ato_deployment(
        name=raw["name"],
        parameters=raw["parameters"],
        schedules=[read_schedule(item) for item in raw.get("schedules") or []],
        concurrency_limit=_concurrency_limit(raw.get("concurrency_limit", CONCURRENCY_LIMIT)),
        **given,
    )


def _concurrency_limit(given: int | Mapping[str, Any] | None) -> "int | ConcurrencyLimitConfig | None":
    from prefect.client.schemas.objects import ConcurrencyLimitConfig

    return ConcurrencyLimitConfig.model_validate(given) if isinstance(given, Mapping) else given
