"""What all stages share: no caching by Prefect (a stage's own record is its cache), and retries for what may pass."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from refit.errors import RefitError

STAGE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def may_pass(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: a disk or network that hiccups, not a wrong job or bad data."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and not isinstance(error, RefitError)
