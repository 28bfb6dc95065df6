"""A fit that starts from the version that serves: which of its weights mean the same in the candidate, put aside for the fit.

A variable is taken over where its path and shape are the same, and where the same columns and tokens in the same order reach its layer.
Rows of an embedding belong to tokens and are taken by token. The layers before a target that has changed start afresh. Whatever cannot
be taken is named; where nothing can, the reason is.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from refit.assignments import Hashes
from refit.config import Job, digest
from refit.errors import RefitError
from refit.fitting import assemble_model
from refit.initial_weights import load_initial_weights
from refit.layers import AverageTokens
from refit.layout import Layout, RunLayout
from refit.lineage import trace_learning
from refit.probes import is_same_model
from refit.records import (
    BatchesRecord,
    BuildRecord,
    FeaturePlan,
    RunRecord,
    Side,
    SplitRecord,
    TargetPlan,
    WarmStart,
    opened_atomically,
)
from refit.references import source_digest
from refit.registry import champion_record
from refit.settled import is_among
from refit.snapshots import read_forgotten
from refit.splits import LEARNED, membership_path
from refit.stages import read_stage
from refit.wording import counted

# What changes with the rows that statistics are taken from, or says nothing of what a layer's outputs mean.
_STATISTICS = {"name", "dtype", "trainable", "rate", "seed", "mean", "variance", "values", "bin_boundaries", "elapsed", "idf_weights"}
_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization)
_SHIFTING = {"mean", "variance", "fill", "boundaries", "idf", "means", "variances"}
_EXAM: tuple[Side, ...] = ("validation", "test")


class _AfreshError(Exception):
    """The fit starts afresh; the text says why."""


@dataclass(frozen=True)
class _Champion:
    """The version that serves, with the run that trained it."""

    version: int
    run: str
    job: Job
    plan: BatchesRecord
    paths: RunLayout
    saved_model: Path
    is_same_code: bool


def take_over(job: Job, plan: BatchesRecord, layout: Layout, run: RunLayout) -> WarmStart:
    """Find out what the version that serves has to give, and put the values into the run's folder.

    It gives nothing where it, or a version that it started from in its turn, was trained on test rows of this run, or on rows that are
    forgotten since: then the candidate would know them, too.
    """
    serving = champion_record(layout, job.name)
    told = WarmStart(version=serving.version if serving else None, run=serving.run if serving else None)
    try:
        if serving is None:
            raise _AfreshError("no version serves yet")
        champion = _find_champion(serving.version, serving.run, job, layout)
        num_seen = _check_rows(champion, job, layout, run)
        return _take(champion, job, plan, run).model_copy(update={"num_seen_validation": num_seen})
    except _AfreshError as error:
        return told.model_copy(update={"why_not": str(error)})


def _find_champion(version: int, run: str | None, job: Job, layout: Layout) -> _Champion:
    if run is None:
        raise _AfreshError(f"version {version} was not trained by a run")
    paths = layout.run(job.name, run)
    try:
        its_job = RunRecord.read(paths.record).parameters
        plan, build = read_stage(paths, "convert", BatchesRecord), read_stage(paths, "build", BuildRecord)
    except (RefitError, OSError) as error:
        raise _AfreshError(f"the run that trained version {version} is not there, or cannot be read") from error
    if plan is None or build is None or not paths.weights.is_file():
        raise _AfreshError(f"the weights of version {version} are not there")
    try:
        is_same_code = source_digest(build.build) == build.builder_sha256
    except (RefitError, OSError) as error:
        raise _AfreshError(f"the builder of version {version} is not there") from error
    return _Champion(version, run, its_job, plan, paths, layout.model(job.name).version(version), is_same_code)


# ---- a fair exam


def _check_rows(champion: _Champion, job: Job, layout: Layout, run: RunLayout) -> int:
    """See that nothing which the weights have learned from is a test row or forgotten; returns how many validation rows are."""
    forgotten = read_forgotten(layout.dataset(job.dataset))
    own = {side: cast(Hashes, np.load(membership_path(run, side))) for side in _EXAM}
    seen = {side: np.zeros(len(own[side]), bool) for side in _EXAM}
    for trained in trace_learning(layout, job.name, champion.run):
        for side, hashes in _learned(trained).items():
            if is_among(forgotten, hashes).any():
                raise _AfreshError(f"run {trained.root.name} was trained on rows that are forgotten since")
            seen["test"] |= is_among(own["test"], hashes)
            if side == "train":  # of the others it learned no more than when to stop
                seen["validation"] |= is_among(own["validation"], hashes)
    if seen["test"].any():
        rows = counted(int(seen["test"].sum()), "test row")
        raise _AfreshError(f"version {champion.version}, or one that it started from, was trained on {rows} of this run")
    return int(seen["validation"].sum())


def _learned(trained: RunLayout) -> dict[Side, Hashes]:
    """Hashes of the rows that a fit has seen; those that it learned from as train."""
    split, files = read_stage(trained, "split", SplitRecord), {side: membership_path(trained, side) for side in LEARNED}
    if split is None or not all(path.is_file() for path in files.values()):
        raise _AfreshError(f"which rows run {trained.root.name} was trained on is not known any more")
    hashes = {side: cast(Hashes, np.load(path)) for side, path in files.items()}
    return hashes if split.learns_from == "train" else {"train": np.sort(np.concatenate([*hashes.values()]))}


# ---- what means the same


@dataclass(frozen=True)
class _Variable:
    """A variable of a model. ``tokens`` are what its rows stand for; ``reached_by`` is a digest of what reaches its layer."""

    values: np.ndarray
    reached_by: str | None
    tokens: tuple[str, ...] | None


@dataclass(frozen=True)
class _Taken:
    """The values that a variable starts from; ``num_known`` counts the tokens among its rows that the champion knew."""

    values: np.ndarray
    num_known: int | None = None

    @property
    def num_parameters(self) -> int:
        return int(self.values.size if self.num_known is None else self.num_known * self.values[0].size)


def _take(champion: _Champion, job: Job, plan: BatchesRecord, run: RunLayout) -> WarmStart:
    try:
        model = assemble_model(champion.job, champion.plan)
        load_initial_weights(model, champion.paths.weights)
    except RefitError as error:
        raise _AfreshError(f"the model of version {champion.version} cannot be built again: {error.what.rstrip('.')}") from error
    if not champion.is_same_code and not is_same_model(model, champion.plan, champion.saved_model):
        raise _AfreshError(f"the code of builders has changed, and what it builds now is another model than version {champion.version}")
    old = _describe(model, champion.plan)
    new = _describe(assemble_model(job, plan), plan)
    taken = {path: found for path, variable in new.items() if (found := _match(old.get(path), variable))}
    if not taken:
        raise _AfreshError(f"no weight of version {champion.version} fits the model")
    with opened_atomically(run.start_weights) as file:
        np.savez(file, **{path: found.values for path, found in taken.items()})  # type: ignore[arg-type]
    with champion.paths.weights.open("rb") as file:
        weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WarmStart(
        version=champion.version,
        run=champion.run,
        weights_sha256=weights_sha256,
        num_taken=len(taken),
        num_taken_parameters=sum(found.num_parameters for found in taken.values()),
        num_parameters=sum(variable.values.size for variable in new.values()),
        fresh=tuple(path for path in new if path not in taken),
        tokens={path: (found.num_known, len(found.values)) for path, found in taken.items() if found.num_known is not None},
        shifted=_shifted(champion.plan, plan),
    )


def _match(old: _Variable | None, new: _Variable) -> _Taken | None:
    """What to take of a variable; None where nothing means the same."""
    if old is None or new.reached_by is None or old.reached_by != new.reached_by:
        return None
    if old.tokens == new.tokens:
        return _Taken(old.values) if old.values.shape == new.values.shape else None
    if old.tokens is None or new.tokens is None or old.values.shape[1:] != new.values.shape[1:]:
        return None
    rows = {token: row for row, token in enumerate(old.tokens)}
    known = [row for row, token in enumerate(new.tokens) if token in rows]
    values = new.values.copy()
    values[known] = old.values[[rows[new.tokens[row]] for row in known]]
    return _Taken(values, len(known))


def _shifted(old: BatchesRecord, new: BatchesRecord) -> tuple[str, ...]:
    """Features, and the target, whose statistics are others than they were."""
    before, after = ({part.name: part.model_dump(include=_SHIFTING) for part in _parts(plan)} for plan in (old, new))
    return tuple(name for name, statistics in after.items() if name in before and before[name] != statistics)


def _parts(plan: BatchesRecord) -> tuple[FeaturePlan | TargetPlan, ...]:
    return (*plan.features, plan.target)


def _describe(model: keras.Model, plan: BatchesRecord) -> dict[str, _Variable]:
    """The model's variables by path. Of those that share a path, or that no layer of the graph holds, nothing is known."""
    if not hasattr(model, "operations"):
        raise _AfreshError("the model is no graph of layers that can be told apart")
    target = plan.target.model_dump(mode="json", exclude=_SHIFTING)
    graph, last = _Graph(), set(map(id, _last_layers(model)))
    meanings: dict[int, tuple[str | None, tuple[str, ...] | None]] = {}
    for operation in model.operations:  # parents first
        reached_by = graph.reached_by(operation)
        if id(operation) in last:
            reached_by = digest([reached_by, target])
        if not isinstance(operation, _LOOKUPS):  # what those hold are statistics
            meanings |= {id(variable): (reached_by, _tokens(operation)) for variable in getattr(operation, "weights", ())}
    num_of = Counter(variable.path for variable in model.weights)
    found = {}
    for variable in model.weights:
        meaning = meanings.get(id(variable), (None, None)) if num_of[variable.path] == 1 else (None, None)
        found[variable.path] = _Variable(keras.ops.convert_to_numpy(variable), *meaning)
    return found


def _last_layers(model: keras.Model) -> Iterator[Any]:
    """The layers whose outputs are the model's, or become them with none in between that mixes positions."""
    waiting, seen = [tensor._keras_history.operation for tensor in model.outputs], set()
    while waiting:
        operation = waiting.pop()
        if id(operation) not in seen:
            seen.add(id(operation))
            yield operation
            waiting += [] if _is_mixing(operation) else _parents(operation)


# ---- what reaches a layer


class _Graph:
    """Digests of what reaches layers: columns, tokens and their order, through everything that is not learned or keeps positions apart."""

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}

    def reached_by(self, operation: Any) -> str:  # noqa: ANN401 -- a Keras operation
        """What the inputs of a layer mean; of an embedding without the tokens, which are its rows."""
        if id(operation) not in self._digests:
            self._digests[id(operation)] = digest(self._inputs(operation))
        return self._digests[id(operation)]

    def _inputs(self, operation: Any) -> object:  # noqa: ANN401 -- a Keras operation
        parents = _parents(operation)
        if _tokens(operation) is not None:
            return [_tell(parents[0], {"vocabulary", "vocabulary_size"}), self.reached_by(parents[0])]
        if isinstance(operation, AverageTokens):
            parents = parents[:1]  # the embedding; of the tokens' numbers only those of padding count
        arguments = [_plain([node.arguments.args, node.arguments.kwargs]) for node in operation._inbound_nodes]
        return [arguments, [self._outputs(parent) for parent in parents]]

    def _outputs(self, operation: Any) -> object:  # noqa: ANN401 -- a Keras operation
        if _is_mixing(operation):
            return ["mixed", operation.name]
        is_learned = bool(getattr(operation, "weights", ())) and not isinstance(operation, _LOOKUPS)
        if is_learned:
            return [operation.name, type(operation).__qualname__, self.reached_by(operation)]
        name = operation.name if isinstance(operation, keras.layers.InputLayer) else None
        return [name, _tell(operation, set()), self.reached_by(operation)]


def _parents(operation: Any) -> list[Any]:  # noqa: ANN401 -- Keras operations
    """What comes before it. Source: keras.src.ops.node, Keras 3.15; there are no public names for it."""
    return [tensor._keras_history.operation for node in operation._inbound_nodes for tensor in node.input_tensors]


def _is_mixing(operation: Any) -> bool:  # noqa: ANN401 -- a Keras operation
    """Whether each output depends on a whole vector ``[batch, n]``: beyond it, positions of that vector mean nothing."""
    kernel, tensors = getattr(operation, "kernel", None), operation._inbound_nodes[0].input_tensors
    return kernel is not None and len(kernel.shape) == 2 and all(len(tensor.shape) == 2 for tensor in tensors)


def _tokens(operation: Any) -> tuple[str, ...] | None:  # noqa: ANN401 -- a Keras operation
    """What each row of an embedding stands for, where a lookup gives it the numbers."""
    parents = _parents(operation) if isinstance(operation, keras.layers.Embedding) else []
    if len(parents) != 1 or not isinstance(parents[0], _LOOKUPS):
        return None
    vocabulary = tuple(str(token) for token in parents[0].get_vocabulary())
    return vocabulary if len(vocabulary) == operation.input_dim else None


def _tell(operation: Any, without: set[str]) -> object:  # noqa: ANN401 -- a Keras operation
    """Its class, and what its configuration says of what its outputs mean."""
    try:
        config = operation.get_config()
    except NotImplementedError:
        config = {}
    return [type(operation).__qualname__, {key: _plain(value) for key, value in config.items() if key not in _STATISTICS | without}]


def _plain(value: Any) -> object:  # noqa: ANN401 -- arguments of a call, or a configuration
    """As JSON takes it; the tensors among arguments are a layer's parents."""
    if isinstance(value, keras.KerasTensor):
        return "tensor"
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else repr(value)
