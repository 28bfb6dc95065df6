"""The job: everything that a run needs to know, as one frozen tree without I/O.

It stands under ``parameters.job`` of a deployment file, is the parameter of the flow (Prefect draws its form from the
descriptions), and is kept whole in every run's record. Reading it from a file is ``refit.jobfile``'s work.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from refit.errors import JobError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
CodeReference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
ColumnType = Literal["boolean", "int8", "int16", "int32", "int64", "float32", "float64", "string", "date", "timestamp"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Scalar = bool | int | float | str | None

RESERVED_PREFIX = "_"


class Section(BaseModel):
    """A part of the job: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---- data


class CsvSource(Section):
    """Delimited text. Gzip and zstd are recognised by the file's ending."""

    kind: Literal["csv"] = Field(description="Delimited text files.")
    path: str = Field(min_length=1, description="A file or a glob, relative to the working directory.")
    delimiter: str = Field(",", min_length=1, max_length=4, description="What separates the columns.")
    header: bool = Field(True, description="Whether the first line holds the names of the columns.")
    names: list[str] | None = Field(None, min_length=1, description="Names of the columns where there is no header.")
    null_values: list[str] = Field([""], description="Strings that stand for a missing value.")

    @model_validator(mode="after")
    def _names_or_header(self) -> Self:
        if self.header and self.names:
            raise ValueError("names are for files without a header; set header: false, or leave names out")
        return self


class ParquetSource(Section):
    """Parquet files."""

    kind: Literal["parquet"] = Field(description="Parquet files.")
    path: str = Field(min_length=1, description="A file or a glob, relative to the working directory.")


class JsonSource(Section):
    """JSON files: one object a line, or one array of objects."""

    kind: Literal["json"] = Field(description="JSON files: an object a line, or one array of objects.")
    path: str = Field(min_length=1, description="A file or a glob, relative to the working directory.")


class PythonSource(Section):
    """A function of the repository that yields Arrow record batches."""

    kind: Literal["python"] = Field(description="A function that yields Arrow record batches.")
    read: CodeReference = Field(description='The function, as "module:attribute".')
    options: dict[str, Any] = Field({}, description="Keyword arguments for the function.")


Source = Annotated[CsvSource | ParquetSource | JsonSource | PythonSource, Field(discriminator="kind")]


class DataConfig(Section):
    """Where rows come from and what a row is."""

    name: Name | None = Field(None, description="Name of the data set on disk; by default the job's name.")
    sources: list[Source] = Field(min_length=1, description="Where rows come from, in order.")
    columns: dict[str, ColumnType] = Field({}, description="Types of columns; what is left out is inferred over the whole input.")
    derive: dict[str, str] = Field({}, description="New columns as SQL expressions over the source's columns.")
    where: str | None = Field(None, description="SQL condition; rows for which it does not hold are filtered out.")
    key: list[str] = Field([], description="Columns that identify a row; without them rows are never de-duplicated.")
    max_rejected_fraction: float = Field(0.01, ge=0, le=1, description="A larger share of unreadable rows fails the ingest.")


# ---- features and target


class NumericFeature(Section):
    """A number, standardised with the train split's mean and deviation; a missing value becomes the mean, and says so."""

    kind: Literal["numeric"] = Field(description="A number; standardised.")


class CategoryFeature(Section):
    """One of a set of strings or integers, one-hot encoded; rare and unseen values share a token, missing has its own."""

    kind: Literal["category"] = Field(description="One of a set of strings or integers.")
    max_tokens: int = Field(1000, ge=1, description="At most so many values, by frequency in the train split; the rest are unseen.")


class ImageFeature(Section):
    """An image of fixed shape."""

    kind: Literal["image"] = Field(description="An image of fixed shape [height, width, channels].")
    scale: float | None = Field(None, gt=0, description="Factor applied to every value; by default 1/255 for bytes and 1 for floats.")


Feature = Annotated[NumericFeature | CategoryFeature | ImageFeature, Field(discriminator="kind")]
TargetKind = Literal["binary", "classes", "regression"]


class TargetConfig(Section):
    """What is predicted."""

    column: str = Field(min_length=1, description="The column that is predicted.")
    kind: TargetKind | None = Field(None, description="binary, classes or regression; by default inferred from the column.")


# ---- split


class SplitConfig(Section):
    """How rows are divided. A row never changes sides, however much data is appended."""

    by: Literal["hash", "group"] = Field("hash", description="hash: of the key; group: of one column, so that a group stays together.")
    group: str | None = Field(None, description="The column whose values stay together (by: group).")
    validation: Fraction = Field(0.15, description="Share of the rows for early stopping and choices.")
    test: Fraction = Field(0.2, description="Share of the rows that only the gate sees.")

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test must leave rows to train on, they add up to {self.validation + self.test:g}")
        if (self.by == "group") != (self.group is not None):
            raise ValueError('"group" names the column for "by: group"; give both or neither')
        return self


# ---- model and fit


class ModelConfig(Section):
    """The function that builds the model."""

    build: CodeReference | None = Field(None, description='"module:attribute" of the builder; by default chosen by the features.')
    options: dict[str, Any] = Field({}, description="Keyword arguments of the builder, checked against its signature.")


_OPTIMIZER_ONLY: dict[str, tuple[str, ...]] = {"momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",)}


class OptimizerConfig(Section):
    """A Keras optimizer by name. Fields left out keep Keras's defaults."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("adam", description="The optimizer.")
    learning_rate: float = Field(0.001, gt=0, description="The rate before any decay.")
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum (sgd, rmsprop).")
    nesterov: bool | None = Field(None, description="Nesterov momentum (sgd).")
    weight_decay: float | None = Field(None, ge=0, description="Decoupled weight decay a step.")
    clipnorm: float | None = Field(None, gt=0, description="Each gradient is clipped to this norm.")

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        wrong = [f for f, names in _OPTIMIZER_ONLY.items() if getattr(self, f) is not None and self.name not in names]
        if wrong:
            raise ValueError(f"{self.name} takes no {' and no '.join(wrong)}; {wrong[0]} is for {' and '.join(_OPTIMIZER_ONLY[wrong[0]])}")
        return self


class ConstantDecay(Section):
    """The rate stays."""

    kind: Literal["constant"] = Field(description="The rate stays as it is.")


class StepDecay(Section):
    """The rate is multiplied by ``factor`` every so many epochs."""

    kind: Literal["step"] = Field(description="The rate drops by a factor every so many epochs.")
    every_epochs: int = Field(ge=1, description="Epochs between drops.")
    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by at each drop.")


class ExponentialDecay(Section):
    """The rate shrinks smoothly: multiplied by ``factor`` once an epoch, a little at every step."""

    kind: Literal["exponential"] = Field(description="The rate shrinks a little at every step.")
    factor: float = Field(0.95, gt=0, lt=1, description="What the rate is multiplied by over an epoch.")


class CosineDecay(Section):
    """Linear warm-up from 0, then half a cosine down to ``final_fraction`` of the rate at the last planned step."""

    kind: Literal["cosine"] = Field(description="Warm-up, then half a cosine down to the last step.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    final_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the rate that is left at the end.")


class PlateauDecay(Section):
    """The rate drops when the monitored value stops improving."""

    kind: Literal["plateau"] = Field(description="The rate drops when the monitored value stops improving.")
    monitor: str = Field("val_loss", description="The value watched.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate is multiplied by at each drop.")
    patience: int = Field(3, ge=0, description="Epochs without improvement before a drop.")


Decay = Annotated[ConstantDecay | StepDecay | ExponentialDecay | CosineDecay | PlateauDecay, Field(discriminator="kind")]


class EarlyStoppingConfig(Section):
    """Stop when the monitored value no longer improves, and keep the best weights."""

    monitor: str = Field("val_loss", description="The value watched.")
    patience: int = Field(5, ge=0, description="Epochs without improvement before the fit ends.")
    min_delta: float = Field(0.0, ge=0, description="A smaller change is no improvement.")


class CheckpointConfig(Section):
    """Complete training states on disk, written at the end of epochs."""

    every_epochs: int = Field(1, ge=1, description="Epochs between checkpoints.")
    keep: int = Field(2, ge=1, description="So many of the newest are kept while the fit runs.")


class FitConfig(Section):
    """How the model is fitted."""

    epochs: int = Field(30, ge=1, description="At most so many passes over the train split.")
    batch_size: int = Field(32, ge=1, description="Rows a step.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The optimizer.")
    decay: Decay = Field(ConstantDecay(kind="constant"), description="How the learning rate changes.")
    early_stopping: EarlyStoppingConfig | None = Field(EarlyStoppingConfig(), description="When to stop early; null: never.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="When training state is saved.")
    validation_freq: int = Field(1, ge=1, description="Epochs between validations.")

    @model_validator(mode="after")
    def _is_validated_before_the_end(self) -> Self:
        if self.validation_freq > self.epochs:
            raise ValueError(f"validation_freq {self.validation_freq} is above epochs {self.epochs}: nothing would be validated")
        return self


# ---- gate and export


class Bound(Section):
    """Limits of a metric."""

    at_least: float | None = Field(None, description="The smallest value that passes.")
    at_most: float | None = Field(None, description="The largest value that passes.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a requirement needs at_least or at_most")
        return self


class ChampionRule(Section):
    """What the candidate must prove against the champion."""

    metric: str | None = Field(None, description="The metric compared; by default accuracy, auc (binary) or rmse (regression).")
    must: Literal["be_better", "not_be_worse", "prove_not_worse"] = Field("not_be_worse", description="What must be shown.")
    margin: float = Field(0.0, ge=0, description="Differences within the margin do not count.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Two-sided confidence of the interval of the difference.")


class GateConfig(Section):
    """What a candidate must prove before it is published."""

    require: dict[str, Bound] = Field({}, description="Limits on the candidate's metrics on the test split.")
    champion: ChampionRule = Field(ChampionRule(), description="The comparison with the champion.")
    latency_p99_ms: float | None = Field(None, gt=0, description="Limit on the 99th percentile of one-row predictions, milliseconds.")


class ExportConfig(Section):
    """What is kept of published models."""

    keep_versions: int = Field(10, ge=2, description="So many of the newest versions stay on disk.")


# ---- the whole


class Job(Section):
    """One model, its data, and what it must prove."""

    name: Name = Field(description="Name of the job and of the model that it publishes.")
    data: DataConfig = Field(description="Where rows come from.")
    features: dict[str, Feature] | None = Field(
        None, description="Inputs of the model by column; by default every column but target and key."
    )
    target: TargetConfig = Field(description="What is predicted.")
    split: SplitConfig = Field(SplitConfig(), description="How rows are divided into train, validation and test.")
    model: ModelConfig = Field(ModelConfig(), description="What is fitted.")
    fit: FitConfig = Field(FitConfig(), description="How it is fitted.")
    gate: GateConfig = Field(GateConfig(), description="What it must prove.")
    export: ExportConfig = Field(ExportConfig(), description="What is kept.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, dropout and the order of rows.")

    @property
    def dataset(self) -> str:
        """Name of the data set on disk."""
        return self.data.name or self.name

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        faults = list(_column_faults(self))
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _column_faults(job: Job) -> Iterable[str]:
    if job.features is not None and not job.features:
        yield "features must name at least one column, or be left out"
    if job.features and job.target.column in job.features:
        yield f'the target "{job.target.column}" cannot be a feature of itself'
    if job.target.column in job.data.key:
        yield f'the target "{job.target.column}" cannot be part of the key: a corrected label would be another row'
    named = [*job.data.columns, *job.data.derive, *(job.features or {}), job.target.column]
    for column in dict.fromkeys(c for c in named if c.startswith(RESERVED_PREFIX)):
        yield f'"{column}": names that begin with "_" are kept for refit\'s own columns'


def digest(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``: keys sorted, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def job_digest(job: Job) -> str:
    """Digest of everything that the job says."""
    return digest(job.model_dump(mode="json"))


# ---- overrides and faults


def apply_overrides(job: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``job`` with values set by dotted keys (``fit.epochs``, ``data.sources.0.path``); ``job`` is not changed.

    Raises:
        JobError: a key leads through something that is no mapping or list.
    """
    tree: dict[str, Any] = copy.deepcopy(dict(job))
    for dotted, value in overrides.items():
        _set(tree, dotted, value)
    return tree


def _set(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, dotted)
    if isinstance(node, list):
        node[_position(node, last, dotted)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise JobError(f'the override "{dotted}" leads into a plain value.', received=repr(node), remedy="Shorten the key.")


def _child(node: Any, part: str, dotted: str) -> Any:  # noqa: ANN401 -- a node of a JSON tree
    if isinstance(node, list):
        return node[_position(node, part, dotted)]
    if not isinstance(node, dict):
        raise JobError(
            f'the override "{dotted}" leads through "{part}", under a plain value.', received=repr(node), remedy="Shorten the key."
        )
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _position(node: list[Any], part: str, dotted: str) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    raise JobError(f'the override "{dotted}" points outside a list.', expected=f"a number below {len(node)}", received=part)


class Fault(Section):
    """One thing that is wrong with a job: where (a path of keys) and what."""

    path: tuple[str | int, ...]
    message: str


def find_faults(job: Mapping[str, Any]) -> list[Fault]:
    """All faults of a job at once; an empty list means that ``Job.model_validate`` accepts it."""
    try:
        Job.model_validate(job)
    except ValidationError as error:
        return [_fault(detail) for detail in error.errors(include_url=False)]
    return []


def parse_job(job: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Job:
    """Validate a job with its overrides.

    Raises:
        JobError: with every fault, one a line.
    """
    tree = apply_overrides(job, overrides or {})
    faults = find_faults(tree)
    if faults:
        lines = [f"{dotted(fault.path) or 'job'}: {fault.message}" for fault in faults]
        raise JobError(lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} faults in the job:", *(f"  - {line}" for line in lines)]))
    return Job.model_validate(tree)


def dotted(path: Iterable[str | int]) -> str:
    """A path of keys as people write it: ``data.sources.0.path``."""
    return ".".join(str(part) for part in path)


def _fault(detail: Any) -> Fault:  # noqa: ANN401 -- pydantic's ErrorDetails
    path, fields = _walk(detail["loc"])
    kind, received = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return Fault(path=path, message=f"unknown key.{nearest(str(path[-1]), fields)}")
    if kind == "missing":
        return Fault(path=path, message="this key is required.")
    message = detail["msg"].removeprefix("Value error, ")
    return Fault(path=path, message=message if kind == "value_error" else f"{message}. Received: {_brief(received)}.")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean "x"?`` where a known word is close, else the list of known words; with a leading space."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(words)}." if words else ""


def _walk(location: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], list[str]]:
    """Strip pydantic's union tags from an error's location; also return the keys known where its last part stands."""
    path: list[str | int] = []
    here: Any = Job
    fields: list[str] = []
    for part in location:
        choices = _models(here)
        tagged = [m for m in choices if m.model_fields.get("kind") and part in get_args(m.model_fields["kind"].annotation)]
        if len(choices) > 1 and tagged:
            here = tagged[0]
            continue
        path.append(part)
        fields = [name for model in choices for name in model.model_fields]
        here = _annotation(here, choices, part)
    return tuple(path), fields


def _annotation(here: Any, choices: list[type[BaseModel]], part: str | int) -> Any:  # noqa: ANN401 -- a type form
    for model in choices:
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation
    return next((get_args(form)[-1] for form in _forms(here) if get_origin(form) in (dict, list)), None)


def _forms(annotation: Any) -> list[Any]:  # noqa: ANN401 -- a type form
    """The members of a union, through ``Annotated`` and ``Optional``."""
    origin = get_origin(annotation)
    if origin in (dict, list) or not get_args(annotation):
        return [annotation]
    arguments = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return [form for argument in arguments for form in _forms(argument)]


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 -- a type form
    return [form for form in _forms(annotation) if isinstance(form, type) and issubclass(form, BaseModel)]
