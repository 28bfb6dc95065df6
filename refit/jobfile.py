"""Deployment files: Prefect's own YAML, of which refit reads ``parameters.job``; faults are named by line and column."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from refit.config import Job, apply_overrides, dotted, find_faults, nearest
from refit.errors import CodeError, JobError, RequestError

# Keys of one deployment. Source: prefect.cli.deploy._core, https://docs.prefect.io/v3/how-to-guides/deployments/prefect-yaml
DEPLOYMENT_KEYS = frozenset(
    [
        *("name", "version", "version_type", "tags", "description", "schedule", "schedules", "paused", "concurrency_limit", "flow_name"),
        *("entrypoint", "parameters", "enforce_parameter_schema", "work_pool", "build", "push", "pull", "triggers", "sla"),
    ]
)
PARAMETER_KEYS = frozenset({"job", "overrides", "force", "fresh"})

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Deployment:
    """One deployment of a file: its validated job, and the mapping as it stands."""

    path: Path
    name: str
    entrypoint: str
    job: Job
    raw: dict[str, Any]


@dataclass(frozen=True)
class _Document:
    path: Path
    tree: Any
    places: Mapping[KeyPath, tuple[int, int]]

    def where(self, path: KeyPath) -> str:
        """``line 12, column 7, parameters.job.fit`` of the innermost key that stands in the file."""
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.places), ())
        line, column = self.places.get(known, (1, 1))
        return f"line {line}, column {column}, {dotted(path)}"


def read_deployments(path: Path) -> list[Deployment]:
    """Read every deployment of a file.

    Raises:
        JobError: with all faults of the file, each with its line, column and key.
    """
    document = _parse(path)
    faults = list(_faults(document))
    if faults:
        raise JobError(_listing(faults), where=str(path))
    found = document.tree["deployments"]
    return [
        Deployment(path=path, name=raw["name"], entrypoint=raw["entrypoint"], job=Job.model_validate(_with_overrides(raw)), raw=raw)
        for raw in found
    ]


def read_job(path: Path, overrides: Mapping[str, Any] | None = None, *, deployment: str | None = None) -> Job:
    """Read the job of one deployment, with values set by dotted keys.

    Args:
        path: the file.
        overrides: dotted key to value.
        deployment: which one; may be left out where the file has one.

    Raises:
        JobError: faults of the file or of the overrides.
    """
    chosen = _choose(read_deployments(path), deployment, path)
    if not overrides:
        return chosen.job
    tree = apply_overrides(_with_overrides(chosen.raw), overrides)
    faults = [f"{_origin(fault.path, overrides)}: {fault.message}" for fault in find_faults(tree)]
    if faults:
        raise JobError(_listing(faults), where=f"{path} with overrides")
    return Job.model_validate(tree)


@contextlib.contextmanager
def telling_place(path: Path, deployment: str | None, overrides: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Say of code that a job names, and that cannot be used, where in the file it is named.

    Args:
        path: the file.
        deployment: which one; may be left out where the file has one.
        overrides: a value that comes from one is told as such.

    Raises:
        CodeError: with file, line, column and key.
    """
    try:
        yield
    except CodeError as error:
        key, colon, rest = error.where.partition(": ")
        inner = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        origin = _origin(inner, overrides or {})
        told = origin if origin != key else _parse(path).where((*_job_path(path, deployment), *inner))
        error.where = f"{path}: {told}{colon}{rest}"
        raise


def _job_path(path: Path, deployment: str | None) -> KeyPath:
    found = read_deployments(path)
    return "deployments", found.index(_choose(found, deployment, path)), "parameters", "job"


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` words into a mapping; values are read as YAML (``3``, ``0.1``, ``true``, ``[64, 32]``, text).

    Raises:
        RequestError: a word has no ``=`` or its value is no YAML.
    """
    return dict(_assignment(word) for word in assignments)


def _assignment(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise RequestError("--set needs a key and a value.", expected="KEY=VALUE, such as fit.epochs=3", received=repr(word))
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"the value of --set {key} is no YAML.", received=repr(text), remedy="Quote it.") from error


def _choose(deployments: list[Deployment], name: str | None, path: Path) -> Deployment:
    names = [d.name for d in deployments]
    if name is None and len(deployments) == 1:
        return deployments[0]
    if name is None:
        raise RequestError(
            f"the file has {len(names)} deployments: {', '.join(names)}.", where=str(path), remedy="Name one with --deployment."
        )
    if name not in names:
        raise RequestError(f'the file has no deployment "{name}".{nearest(name, names)}', where=str(path))
    return deployments[names.index(name)]


def _origin(path: KeyPath, overrides: Mapping[str, Any]) -> str:
    key = dotted(path) or "job"  # what concerns several keys
    named = next((o for o in overrides if key == o or key.startswith(f"{o}.") or o.startswith(f"{key}.")), None)
    return key if named is None else f"override {named}" + ("" if named == key else f" ({key})")


def _with_overrides(raw: Mapping[str, Any]) -> dict[str, Any]:
    parameters = raw["parameters"]
    return apply_overrides(parameters["job"], parameters.get("overrides") or {})


def _listing(faults: list[str]) -> str:
    return faults[0] if len(faults) == 1 else "\n".join([f"{len(faults)} faults:", *(f"  - {fault}" for fault in faults)])


# ---- reading with places


def _parse(path: Path) -> _Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError("there is no such file.", where=str(path), remedy=f"Give a deployment file.{_files_nearby(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"the file cannot be read: {error}.", where=str(path), remedy="Give a deployment file in YAML, UTF-8.") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise JobError(f"this is no YAML: {getattr(error, 'problem', None) or error}.", where=f"{path}{place}") from error
    places: dict[KeyPath, tuple[int, int]] = {}
    twice = list(_places(node, (), places)) if node else []
    if twice:
        raise JobError(_listing(twice), where=str(path))
    return _Document(path, tree, places)


def _files_nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("deployments")
    names = sorted(str(p) for p in folder.glob("*.yaml"))
    return nearest(str(path), names) if names else ""


def _places(node: yaml.Node, path: KeyPath, places: dict[KeyPath, tuple[int, int]]) -> Iterator[str]:
    """Fill ``places`` with the position of every key; yield a fault for each key that stands twice."""
    places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            place = (key.start_mark.line + 1, key.start_mark.column + 1)
            if inner in places:
                yield f"line {place[0]}, column {place[1]}, {dotted(inner)}: this key stands in line {places[inner][0]} already."
            places[inner] = place
            yield from _places(value, inner, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _places(value, (*path, index), places)


def _faults(document: _Document) -> Iterator[str]:
    tree = document.tree
    found = tree.get("deployments") if isinstance(tree, dict) else None
    if not isinstance(found, list) or not found:
        yield (
            f"{document.where(('deployments',) if isinstance(tree, dict) and 'deployments' in tree else ())}: a deployment file has a list "
            'under "deployments", each with name, entrypoint and parameters.job; see deployments/digits.yaml'
        )
        return
    for index, raw in enumerate(found):
        path: KeyPath = ("deployments", index)
        for inner, message in _deployment_faults(raw):
            yield f"{document.where((*path, *inner))}: {message}"


def _deployment_faults(raw: object) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(raw, dict):
        yield (), "a deployment is a mapping."
        return
    unknown = [key for key in raw if key not in DEPLOYMENT_KEYS]
    yield from (((key,), f"unknown key of a deployment.{nearest(str(key), DEPLOYMENT_KEYS)}") for key in unknown)
    lost = [key for key in ("name", "entrypoint") if not isinstance(raw.get(key), str) or not raw[key]]
    yield from (((key,) if key in raw else (), f'a deployment needs "{key}".') for key in lost)
    yield from _parameter_faults(raw.get("parameters"))


def _parameter_faults(parameters: object) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(parameters, dict) or not isinstance(parameters.get("job"), dict):
        yield ("parameters",), 'a deployment needs a mapping under "parameters.job".'
        return
    unknown = [key for key in parameters if key not in PARAMETER_KEYS]
    overrides = parameters.get("overrides")
    if overrides is not None and not isinstance(overrides, dict):
        yield ("parameters", "overrides"), f"overrides is a mapping of dotted keys to values. Received: {overrides!r}."
        return
    yield from ((("parameters", key), f"the flow has no such parameter.{nearest(str(key), PARAMETER_KEYS)}") for key in unknown)
    yield from ((("parameters", "job", *fault.path), fault.message) for fault in find_faults(_with_overrides({"parameters": parameters})))
