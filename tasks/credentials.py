"""Credentials for the job's sources: from Prefect's Secret blocks into the environment, for as long as they are needed.

No task: what a task takes and returns is seen by Prefect, and these values are for the libraries that read the sources only.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import ValidationError

from refit.config import Job
from refit.errors import RequestError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@contextlib.contextmanager
def credentials(job: Job) -> Iterator[None]:
    """Set the variables of the blocks that ``data.secrets`` names; at the end the environment is as it was.

    Where two blocks set one variable, the later block counts. The environment belongs to the whole process: two jobs with
    different credentials cannot be within this at the same time.

    Raises:
        RequestError: there is no such block, or its value is no mapping from variables to strings; the value is not told.
    """
    if not job.data.secrets:
        yield
        return
    variables: dict[str, str] = {}
    for name in job.data.secrets:
        variables |= _read_block(name)
    before = {variable: os.environ.get(variable) for variable in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for variable, value in before.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


def _read_block(name: str) -> dict[str, str]:
    from prefect.blocks.system import Secret

    try:
        value = cast("Secret[Any]", Secret.load(name)).get()
    except (ValueError, RuntimeError) as error:
        if str(error).startswith("Unable to find block document"):
            raise _refused(name, "does not exist") from None
        if isinstance(error, ValidationError) or isinstance(error.__cause__, ValidationError):
            raise _refused(name, "cannot be read") from None  # pydantic's text repeats the value
        raise
    if not isinstance(value, dict):
        raise _refused(name, "holds no mapping")
    wrong = sorted(variable for variable, text in value.items() if not _is_settable(variable, text))
    if wrong:
        raise _refused(name, f"has entries that cannot be set: {', '.join(map(repr, wrong))}")
    return value


def _is_settable(variable: str, text: object) -> bool:
    return bool(_VARIABLE.fullmatch(variable)) and isinstance(text, str) and "\0" not in text


def _refused(name: str, what: str) -> RequestError:
    return RequestError(
        f'the Secret block "{name}" {what}.',
        where="data.secrets",
        expected='a JSON object from names of environment variables to strings, such as {"AWS_ACCESS_KEY_ID": "…"}',
        remedy="Make or mend it in Prefect's UI under Blocks, as a Secret of this name.",
    )
