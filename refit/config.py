"""The job: everything that a run needs to know, as one frozen tree without I/O.

It stands under ``parameters.job`` of a deployment file, is the parameter of the flow (Prefect draws its form from the
descriptions), and is kept whole in every run's record. Reading it from a file is ``refit.jobfile``'s work.
"""

import copy
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

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


VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^${}]*))?\}")


def _check_variables(path: str) -> str:
    if "${" in VARIABLE.sub("", path):
        raise ValueError("an environment variable is written ${NAME}, or ${NAME:-default} with a default that holds no other")
    return path


Place = Annotated[str, Field(min_length=1), AfterValidator(_check_variables)]


class Located(Section):
    """Files at a place: a path or glob, local or in an object store. Its variables are replaced when the files are looked for."""

    path: Place = Field(
        description="A file or a glob, relative to the working directory; or s3://bucket/…, gs://bucket/…. ${NAME} and ${NAME:-default} "
        "stand for environment variables."
    )
    endpoint: str | None = Field(None, description="Address of an S3-speaking server other than Amazon's, such as http://127.0.0.1:9000.")
    region: str | None = Field(None, description="Region of the bucket (s3).")

    @field_validator("path", "endpoint")
    @classmethod
    def _holds_no_secret(cls, address: str | None) -> str | None:
        if address and re.match(r"\w+://[^/]*@", address):
            raise ValueError("credentials do not belong into a job; set them in the environment, or name a Secret block in data.secrets")
        return address


class CsvSource(Located):
    """Delimited or fixed-width text. Gzip, zstd and zip are recognised by the file's content, UTF-16 by its byte-order mark."""

    kind: Literal["csv"] = Field(description="Delimited or fixed-width text files.")
    delimiter: str = Field(",", min_length=1, max_length=4, description="What separates the columns.")
    quote: str = Field('"', max_length=1, description="What encloses a value; empty: quotes are ordinary characters.")
    escape: str | None = Field(
        None, min_length=1, max_length=1, description="What precedes a quote within quotes; by default the quote itself."
    )
    header: bool = Field(True, description="Whether the first line holds the names of the columns.")
    names: list[str] | None = Field(None, min_length=1, description="Names of the columns where there is no header, in their order.")
    widths: list[int] | None = Field(None, min_length=1, description="Characters of each column of fixed-width text; needs names.")
    skip_lines: int = Field(0, ge=0, description="Lines before the header, or before the first row, that are passed over.")
    null_values: list[str] = Field([""], description="Strings that stand for a missing value; spaces around a value do not count.")
    member: str | None = Field(None, min_length=1, description="The file within a zip archive that holds several.")
    encoding: str = Field(
        "utf-8", min_length=1, description="How characters are encoded, by Python's names: utf-8, latin-1, utf-16, cp1252."
    )

    @model_validator(mode="after")
    def _names_or_header(self) -> Self:
        if self.header and self.names:
            raise ValueError("names are for files without a header; set header: false, or leave names out")
        if self.widths and len(self.widths) != len(self.names or []):
            raise ValueError("widths are for fixed-width text without a header and need one name each; set header: false and names")
        if self.widths and min(self.widths) < 1:
            raise ValueError("a width is a number of characters, 1 at least")
        return self

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        marks = self.quote + (self.escape or "")
        if not marks.isascii() or set(marks + self.delimiter) & set("\r\n\0") or len(self.delimiter.encode()) > 4:
            raise ValueError("a delimiter has at most 4 bytes; quote and escape are ASCII; none of them is a line end")
        if set(marks) & set(self.delimiter):
            raise ValueError("the delimiter cannot hold the quote or the escape")
        return self

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:  # of base64 and such, too
            raise ValueError(f'no encoding is called "{encoding}"; Python knows utf-8, utf-16, latin-1, cp1252 and others') from None
        return encoding


class ParquetSource(Located):
    """Parquet files."""

    kind: Literal["parquet"] = Field(description="Parquet files.")


class JsonSource(Located):
    """JSON files: one object a line, or one array of objects."""

    kind: Literal["json"] = Field(description="JSON files: an object a line, or one array of objects.")


class ImagesSource(Located):
    """Image files: class folders, or a table that names a file and its columns a row.

    Columns: ``path`` (relative), ``image``, and ``label`` (the name of the folder) or those of the manifest.
    """

    kind: Literal["images"] = Field(description="Image files: JPEG, PNG, GIF, BMP.")
    path: Place = Field(description="The folder that the images lie in; or s3://bucket/…, gs://bucket/….")
    manifest: Place | None = Field(None, description="A CSV or Parquet table; without one the folders in path are the classes.")
    file_column: str = Field("path", description="The manifest's column of file names, relative to path.")
    shape: tuple[PositiveInt, PositiveInt, Literal[1, 3, 4]] | None = Field(
        None, description="Height, width and channels; an image of another size or mode is rejected, unless it is resized."
    )
    resize: bool = Field(False, description="Resize every image to shape (bilinear, aspect not kept) and convert its mode.")
    store: Literal["decoded", "encoded"] = Field(
        "decoded", description="decoded: fixed shape, uint8; encoded: the file's bytes as they are."
    )

    @model_validator(mode="after")
    def _shape_is_known(self) -> Self:
        if self.shape is None and (self.store == "decoded" or self.resize):
            raise ValueError("decoded images have one shape: give shape: [height, width, channels], or store: encoded")
        if self.resize and self.store == "encoded":
            raise ValueError("encoded images are stored as they are; leave resize out, or store: decoded")
        return self


class IdxSource(Located):
    """The MNIST family's format: a file of images and one of labels, gzipped or not.

    Columns: ``image`` (uint8, fixed shape) and ``label``.
    """

    kind: Literal["idx"] = Field(description="IDX files, as of MNIST.")
    labels: Place | None = Field(None, description="The file of labels, or a glob that matches one for each file of images.")


class SqlSource(Section):
    """Rows of a database: SQLite, or PostgreSQL through ADBC."""

    kind: Literal["sql"] = Field(description="A query to a database: SQLite or PostgreSQL.")
    database: str = Field(
        min_length=1,
        description='A SQLite file, postgresql://host/name without a password, or "env:NAME": a variable that holds the address.',
    )
    query: str = Field(min_length=1, description="A SELECT statement.")
    incremental: str | None = Field(
        None, min_length=1, description="A column that only grows (an id, a time of change): rows above the greatest value seen are read."
    )

    @field_validator("database")
    @classmethod
    def _holds_no_secret(cls, database: str) -> str:
        if re.match(r"\w+://[^/@]*:[^/@]+@", database) or re.search(r"[?&]password=", database):
            raise ValueError("a password does not belong into a job; use env:NAME, or PGPASSWORD")
        return database


class PythonSource(Section):
    """A function of the repository that yields Arrow record batches."""

    kind: Literal["python"] = Field(description="A function that yields Arrow record batches.")
    read: CodeReference = Field(description='The function, as "module:attribute".')
    options: dict[str, Any] = Field({}, description="Keyword arguments for the function.")


Source = Annotated[
    CsvSource | ParquetSource | JsonSource | ImagesSource | IdxSource | SqlSource | PythonSource, Field(discriminator="kind")
]


class Expectation(Section):
    """What must hold for a column; every check is optional. A missing value fails only not_null and max_missing_fraction."""

    not_null: bool = Field(False, description="No value is missing.")
    max_missing_fraction: float | None = Field(None, ge=0, le=1, description="At most this share of the values is missing.")
    min: float | str | None = Field(None, description="The smallest value allowed; dates and times as text.")
    max: float | str | None = Field(None, description="The largest value allowed.")
    one_of: list[Scalar] | None = Field(None, min_length=1, description="The values allowed.")
    max_other_fraction: float = Field(0.0, ge=0, le=1, description="At most this share of the values may be outside one_of.")
    matches: str | None = Field(None, min_length=1, description="A regular expression (RE2) that each whole value matches.")
    unique: bool = Field(False, description="No value stands twice.")
    otherwise: Literal["fail", "warn"] = Field("fail", description="What happens where it does not hold.")


class DataConfig(Section):
    """Where rows come from and what a row is."""

    name: Name | None = Field(None, description="Name of the data set on disk; by default the job's name.")
    sources: list[Source] = Field(min_length=1, description="Where rows come from, in order.")
    columns: dict[str, ColumnType] = Field({}, description="Types of columns; what is left out is inferred over the whole input.")
    optional: list[str] = Field([], description="Columns that a later input may lack; their values are missing then.")
    derive: dict[str, str] = Field({}, description="New columns as SQL expressions over the source's columns.")
    select: list[str] = Field([], description="What is stored, as SQL expressions over source and derived columns; by default all columns.")
    where: str | None = Field(None, description="SQL condition; rows for which it does not hold are filtered out.")
    key: list[str] = Field(
        [], description="Columns that identify a row, of which the newest counts; without it rows are never de-duplicated."
    )
    time: str | None = Field(None, description="The column that says when a row came to be: a timestamp or a date.")
    max_rejected_fraction: float = Field(0.01, ge=0, le=1, description="A larger share of unreadable rows fails the ingest.")
    refused: Literal["skip", "fail"] = Field(
        "skip", description="An input that cannot be read at all: go on without it, or fail the ingest."
    )
    vanished: Literal["keep", "drop"] = Field("keep", description="The rows of an input that is no longer there: keep or drop them.")
    expect: dict[str, Expectation] = Field({}, description="What must hold for columns.")
    secrets: list[str] = Field(
        [], description="Names of Prefect Secret blocks with credentials: each maps environment variables to values."
    )


class DriftConfig(Section):
    """How far new rows may differ from those that the champion was trained on."""

    policy: Literal["report", "warn", "fail"] = Field("report", description="What follows where a column has drifted.")
    columns: list[str] = Field([], description="Only these columns; by default all.")
    false_discovery_rate: float = Field(0.05, gt=0, lt=1, description="Share of false alarms among the alarms, over all columns together.")
    min_psi: float = Field(0.1, ge=0, description="A smaller population stability index is no drift, however certain.")


# ---- features and target


def _default(section: Section, name: str) -> Any:  # noqa: ANN401 -- whatever the field has
    return type(section).model_fields[name].default


class NumericFeature(Section):
    """A number, scaled by statistics of the train split; a missing value becomes a usual one, and says so."""

    kind: Literal["numeric"] = Field(description="A number.")
    scale: Literal["standard", "robust", "bins", "none"] = Field(
        "standard",
        description="standard: by mean and deviation; robust: by median and quartiles; bins: one-hot, as many rows in each; none: as is.",
    )
    log: bool = Field(False, description="Take sign(x) log(1 + |x|) first: for amounts with a long tail.")
    clip: float | None = Field(None, gt=0, description="Scaled values beyond it, on either side, become it.")
    bins: int = Field(16, ge=2, le=1000, description="How many bins, where scale is bins; equal bounds are joined.")
    fill: Literal["mean", "median"] | float | None = Field(
        None, description="What a missing value becomes; by default the mean, or the median where scale is robust or bins."
    )

    @model_validator(mode="after")
    def _options_apply(self) -> Self:
        if self.scale != "bins" and self.bins != _default(self, "bins"):
            raise ValueError("bins is for scale: bins")
        if self.scale == "bins" and self.clip is not None:
            raise ValueError("clip is for scaled numbers, not for bins")
        return self


class CategoryFeature(Section):
    """One of a set of strings or integers; rare and unseen values share a token, missing has its own."""

    kind: Literal["category"] = Field(description="One of a set of strings or integers.")
    max_tokens: int = Field(1000, ge=1, description="At most so many values, by frequency in the train split; the rest are unseen.")
    min_count: int = Field(1, ge=1, description="Values with fewer rows in the train split count as unseen.")
    hash_bins: int | None = Field(None, ge=2, description="Hash values into so many bins in place of a vocabulary: for very many values.")
    encoding: Literal["one_hot", "embedding"] = Field("one_hot", description="How a value becomes numbers; an embedding is learned.")
    dimension: int | None = Field(None, ge=1, description="Width of the embedding; by default 1.6 v^0.56 for v values, at most 64.")

    @model_validator(mode="after")
    def _options_apply(self) -> Self:
        if self.hash_bins and (self.max_tokens, self.min_count) != (_default(self, "max_tokens"), _default(self, "min_count")):
            raise ValueError("hash_bins takes the place of a vocabulary: leave max_tokens and min_count out")
        if self.dimension and self.encoding != "embedding":
            raise ValueError("dimension is for encoding: embedding")
        return self


class ImageFeature(Section):
    """An image of fixed shape."""

    kind: Literal["image"] = Field(description="An image of fixed shape [height, width, channels], or a file's bytes.")
    scale: float | None = Field(None, gt=0, description="Factor applied to every value; by default 1/255 for bytes and 1 for floats.")
    resize: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[height, width] that the model sees; by default the stored ones. Needed where images are stored encoded."
    )
    color: Literal["grey", "rgb"] | None = Field(
        None, description="Channels that the model sees; by default the stored ones, rgb where images are stored encoded."
    )


class TextFeature(Section):
    """Words or characters of a text, by a vocabulary of the train split."""

    kind: Literal["text"] = Field(description="A text.")
    encoding: Literal["tf_idf", "binary", "count", "sequence"] = Field(
        "tf_idf", description="A bag of tokens with a weight each, or the sequence of their numbers."
    )
    split: Literal["words", "characters"] = Field("words", description="What a token is.")
    ngrams: int = Field(2, ge=1, le=5, description="Runs of so many tokens count as tokens too; not for sequences.")
    max_tokens: int = Field(20_000, ge=2, description="At most so many tokens, by frequency in the train split.")
    min_count: int = Field(2, ge=1, description="Tokens that occur less often in the train split are unseen.")
    length: int = Field(200, ge=1, description="Tokens of a sequence; longer texts are cut.")

    @model_validator(mode="after")
    def _options_apply(self) -> Self:
        if self.encoding == "sequence" and self.ngrams != _default(self, "ngrams"):
            raise ValueError("ngrams is not for sequences")
        if self.encoding != "sequence" and self.length != _default(self, "length"):
            raise ValueError("length is for encoding: sequence")
        return self


class VectorFeature(Section):
    """Numbers of a fixed count a row."""

    kind: Literal["vector"] = Field(description="A tensor column of one dimension.")
    scale: Literal["standard", "none"] = Field("standard", description="standard: each by its mean and deviation; none: as they are.")


TimePart = Literal["minute", "hour", "weekday", "day", "month", "year_day"]


class TimestampFeature(Section):
    """A date or a moment."""

    kind: Literal["timestamp"] = Field(description="A date or a moment.")
    parts: list[TimePart] | None = Field(
        None, description="Each as a point on a circle: its sine and cosine; by default weekday and year_day, of a moment also hour."
    )
    elapsed: bool = Field(False, description="Also the time itself, standardised; what is later than the train split lies outside.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.parts is not None and (len(set(self.parts)) < len(self.parts) or not (self.parts or self.elapsed)):
            raise ValueError("parts names each part once, and at least one unless elapsed is true")
        return self


class CrossFeature(Section):
    """Combinations of categories, hashed and one-hot encoded."""

    kind: Literal["cross"] = Field(description="Combinations of categories.")
    of: list[str] = Field(min_length=2, max_length=4, description="Features of kind category.")
    bins: int = Field(1024, ge=2, description="How many bins the combinations are hashed into.")


Feature = Annotated[
    NumericFeature | CategoryFeature | ImageFeature | TextFeature | VectorFeature | TimestampFeature | CrossFeature,
    Field(discriminator="kind"),
]
TargetKind = Literal["binary", "classes", "multilabel", "regression"]


_TARGET_ONLY = {"positive": "binary", "threshold": "binary", "separator": "multilabel", "scale": "regression", "log": "regression"}


ThresholdName = Literal["half", "accuracy", "balanced_accuracy", "f1"]
LimitName = Literal["recall_at_least", "precision_at_least"]


class ThresholdLimit(Section):
    """The threshold that keeps one of recall and precision at a limit, and the other as high as can be."""

    recall_at_least: float | None = Field(None, gt=0, le=1, description="Share of the positive rows that are found.")
    precision_at_least: float | None = Field(None, gt=0, le=1, description="Share of the rows told positive that are.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.recall_at_least is None) == (self.precision_at_least is None):
            raise ValueError("a threshold keeps either recall_at_least or precision_at_least: give one of them")
        return self


class TargetConfig(Section):
    """What is predicted."""

    column: str = Field(min_length=1, description="The column that is predicted.")
    kind: TargetKind | None = Field(
        None, description="binary, classes, multilabel or regression; by default inferred from the column, but for multilabel."
    )
    positive: str | int | None = Field(
        None, description="The value that score is the probability of (binary); by default the second in order."
    )
    threshold: ThresholdName | ThresholdLimit = Field(
        "half", description="Above which score the label is positive (binary): 0.5, or what is best by this metric on the validation rows."
    )
    separator: str = Field("|", min_length=1, description="What stands between a row's labels (multilabel); a row without any is empty.")
    scale: Literal["standard", "none"] = Field(
        "standard", description="The loss sees the value by its mean and deviation in the train split, or as it is (regression)."
    )
    log: bool = Field(False, description="The loss sees sign(y) log(1 + |y|), scaled then: for amounts with a long tail (regression).")

    @property
    def rule(self) -> ThresholdName | dict[LimitName, float]:
        """The threshold's rule by its name, or by the limit alone."""
        return self.threshold if isinstance(self.threshold, str) else self.threshold.model_dump(exclude_none=True)  # type: ignore[return-value]

    @model_validator(mode="after")
    def _belongs_to_its_kind(self) -> Self:
        for name, kind in _TARGET_ONLY.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.kind != kind:
                raise ValueError(f"{name} is for kind: {kind} only, which must be said")
        return self


# ---- split


_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_DURATION = re.compile(rf"([1-9][0-9]{{0,8}}) ({'|'.join(_SECONDS)})s?")
_SPLIT_ONLY = {"group": "group", "stratify": "stratified", "gap": "time", "column": "column", "values": "column"}


def duration_seconds(duration: str) -> int:
    """Seconds of a duration such as ``7 days``.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(
            f'a duration is a number of {", ".join(f"{unit}s" for unit in _SECONDS)}, such as "7 days". Received: {duration!r}.'
        )
    return int(match[1]) * _SECONDS[match[2]]


def _check_duration(value: object) -> object:
    if value is not None:
        duration_seconds(value if isinstance(value, str) else repr(value))
    return value


def _check_share(value: object) -> object:
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return value
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = -1.0
    if not 0 < share < 1:
        units = ", ".join(f"{unit}s" for unit in _SECONDS)
        what = f'a share of the rows lies between 0 and 1, such as 0.2; by time it may be a window, such as "7 days" ({units})'
        raise ValueError(f"{what}. Received: {_brief(value)}.")
    return share


Duration = Annotated[str, BeforeValidator(_check_duration)]
Share = Annotated[float | str, BeforeValidator(_check_share)]


class KFoldConfig(Section):
    """Estimates with spread: the rows that are not tested are cut into folds, and each fold validates a fit on the others."""

    folds: int = Field(5, ge=2, le=100, description="Number of folds.")


class SplitConfig(Section):
    """How rows are divided. A row never comes into the test split after it was trained on, however much data is appended."""

    by: Literal["hash", "group", "stratified", "time", "column"] = Field(
        "hash",
        description="hash: of the key; group: of one column, so that a group stays together; stratified: the same shares of every class; "
        "time: the newest rows are the test split, those before them validation (data.time); column: the data say it.",
    )
    group: str | None = Field(None, description="The column whose values stay together (by: group).")
    stratify: str | None = Field(None, description="The column whose values are spread evenly (by: stratified); by default the target.")
    column: str | None = Field(None, description="The column that says train, validation or test (by: column).")
    values: dict[str, Literal["train", "validation", "test"]] = Field(
        {}, description="What the column's values mean, where they are other words (by: column)."
    )
    validation: Share = Field(
        0.15, description='Share of the rows for early stopping and choices; by time also a window, such as "7 days".'
    )
    test: Share = Field(0.2, description='Share of the rows that only the gate sees; by time also a window: "2 weeks".')
    gap: Duration | None = Field(None, description='Rows so shortly before a later window take no part, such as "1 day" (by: time).')
    where: str | None = Field(None, description="SQL condition; rows for which it does not hold are on no side.")
    k_fold: KFoldConfig | None = Field(None, description="Cross-validation on the rows that are not tested.")
    resplit_each_epoch: bool = Field(False, description="Draw train and validation anew from their rows before every epoch.")

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(f"validation + test must leave rows to train on, they add up to {sum(shares):g}")
        if len(shares) < 2 and self.by != "time":
            window = self.validation if isinstance(self.validation, str) else self.test
            raise ValueError(f'"{window}" is a window of time, which is for "by: time"; give validation and test as shares, such as 0.2')
        return self

    @model_validator(mode="after")
    def _modes_fit(self) -> Self:
        wrong = [name for name, mode in _SPLIT_ONLY.items() if getattr(self, name) and self.by != mode]
        if wrong:
            raise ValueError(f'"{wrong[0]}" is for "by: {_SPLIT_ONLY[wrong[0]]}"')
        if self.by in ("group", "column") and not getattr(self, self.by):
            raise ValueError(f'"by: {self.by}" needs "{self.by}", the name of the column')
        if self.k_fold and self.resplit_each_epoch:
            raise ValueError("k_fold and resplit_each_epoch both draw validation rows; choose one")
        if self.by == "time" and (self.k_fold or self.resplit_each_epoch):
            raise ValueError("folds drawn at random would train on what comes after their validation rows; by: time takes none")
        return self

    @property
    def named_columns(self) -> tuple[str, ...]:
        """Columns that only say how rows are divided: none of them is a feature unless the job says so."""
        return tuple(name for name in (self.group, self.column) if name is not None)


# ---- model and fit


class ModelConfig(Section):
    """The function that builds the model."""

    build: CodeReference | None = Field(None, description='"module:attribute" of the builder; by default chosen by the features.')
    options: dict[str, Any] = Field({}, description="Keyword arguments of the builder, checked against its signature.")


class OptimizerKind(NamedTuple):
    """What one of Keras's optimizers is called there, its own learning rate, and the arguments that it takes."""

    keras_class: str
    learning_rate: float
    arguments: tuple[str, ...]


_COMMON_ARGUMENTS = (
    *("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)


def _kind(keras_class: str, own: str, learning_rate: float = 0.001) -> OptimizerKind:
    return OptimizerKind(keras_class, learning_rate, (*own.split(), *_COMMON_ARGUMENTS))


OptimizerName = Literal[
    "sgd",
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adafactor",
    "ftrl",
    "lamb",
    "lion",
    "muon",
    "schedule_free_adamw",
]
# Source: https://keras.io/api/optimizers/; a test compares the table with the signatures of the Keras that is installed.
OPTIMIZERS: Mapping[str, OptimizerKind] = {
    "sgd": _kind("SGD", "momentum nesterov", learning_rate=0.01),
    "adam": _kind("Adam", "beta_1 beta_2 epsilon amsgrad"),
    "adamw": _kind("AdamW", "beta_1 beta_2 epsilon amsgrad"),
    "adamax": _kind("Adamax", "beta_1 beta_2 epsilon"),
    "nadam": _kind("Nadam", "beta_1 beta_2 epsilon"),
    "rmsprop": _kind("RMSprop", "rho momentum epsilon centered"),
    "adagrad": _kind("Adagrad", "initial_accumulator_value epsilon"),
    "adadelta": _kind("Adadelta", "rho epsilon"),
    "adafactor": _kind("Adafactor", "beta_2_decay epsilon_1 epsilon_2 clip_threshold relative_step"),
    "ftrl": _kind(
        "Ftrl",
        "learning_rate_power initial_accumulator_value l1_regularization_strength l2_regularization_strength"
        " l2_shrinkage_regularization_strength beta",
    ),
    "lamb": _kind("Lamb", "beta_1 beta_2 epsilon"),
    "lion": _kind("Lion", "beta_1 beta_2"),
    "muon": _kind(
        "Muon",
        "momentum nesterov ns_steps rms_rate exclude_layers exclude_embeddings epsilon"
        " muon_a muon_b muon_c adam_beta_1 adam_beta_2 adam_weight_decay adam_lr_ratio",
    ),
    "schedule_free_adamw": _kind("ScheduleFreeAdamW", "beta_1 beta_2 epsilon warmup_steps", learning_rate=0.0025),
}


class OptimizerConfig(Section):
    """A Keras optimizer by name. Fields left out keep Keras's defaults; each optimizer takes some of them only."""

    name: OptimizerName = Field("adam", description="The optimizer.")
    learning_rate: float | None = Field(
        None, gt=0, description="The rate before any decay; by default Keras's: 0.001, for sgd 0.01, for schedule_free_adamw 0.0025."
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum (sgd, rmsprop, muon).")
    nesterov: bool | None = Field(None, description="Nesterov momentum (sgd, muon).")
    beta_1: float | None = Field(None, ge=0, lt=1, description="Decay of the mean of gradients (the adam family, lamb, lion).")
    beta_2: float | None = Field(None, ge=0, lt=1, description="Decay of the mean of their squares (the adam family, lamb, lion).")
    epsilon: float | None = Field(None, gt=0, description="What keeps a division from zero (all but sgd, adafactor, ftrl, lion).")
    amsgrad: bool | None = Field(None, description="Keep the greatest mean of squares (adam, adamw).")
    rho: float | None = Field(None, ge=0, lt=1, description="Decay of the mean of squared gradients (rmsprop, adadelta).")
    centered: bool | None = Field(None, description="Divide by the estimated variance of gradients (rmsprop).")
    initial_accumulator_value: float | None = Field(None, ge=0, description="What sums of squared gradients start from (adagrad, ftrl).")
    beta_2_decay: float | None = Field(None, lt=0, description="Exponent of the decay of the mean of squares (adafactor).")
    epsilon_1: float | None = Field(None, gt=0, description="What keeps the denominator from zero (adafactor).")
    epsilon_2: float | None = Field(None, gt=0, description="What keeps a small parameter's rate from zero (adafactor).")
    clip_threshold: float | None = Field(None, gt=0, description="Limit of an update's root mean square (adafactor).")
    relative_step: bool | None = Field(None, description="Let the rate be 1/sqrt(step) at most (adafactor).")
    learning_rate_power: float | None = Field(None, le=0, description="How the rate falls with the sum of squares (ftrl).")
    l1_regularization_strength: float | None = Field(None, ge=0, description="L1 penalty (ftrl).")
    l2_regularization_strength: float | None = Field(None, ge=0, description="L2 penalty (ftrl).")
    l2_shrinkage_regularization_strength: float | None = Field(None, ge=0, description="L2 penalty on the size of weights alone (ftrl).")
    beta: float | None = Field(None, ge=0, description="The paper's beta (ftrl).")
    ns_steps: int | None = Field(None, ge=1, description="Newton-Schulz iterations a step (muon).")
    rms_rate: float | None = Field(None, gt=0, description="Scale of updates, which makes rates like adam's fit (muon).")
    exclude_layers: list[str] | None = Field(
        None, description="Patterns of variables' paths that take AdamW's step, such as \"output\" (muon)."
    )
    exclude_embeddings: bool | None = Field(None, description="Let embeddings take AdamW's step (muon).")
    muon_a: float | None = Field(None, description="First coefficient of the Newton-Schulz iteration (muon).")
    muon_b: float | None = Field(None, description="Second coefficient of the Newton-Schulz iteration (muon).")
    muon_c: float | None = Field(None, description="Third coefficient of the Newton-Schulz iteration (muon).")
    adam_beta_1: float | None = Field(None, ge=0, lt=1, description="beta_1 of what takes AdamW's step (muon).")
    adam_beta_2: float | None = Field(None, ge=0, lt=1, description="beta_2 of what takes AdamW's step (muon).")
    adam_weight_decay: float | None = Field(None, ge=0, description="Weight decay of what takes AdamW's step (muon).")
    adam_lr_ratio: float | None = Field(None, gt=0, description="Rate of AdamW's step as a multiple of the learning rate (muon).")
    warmup_steps: int | None = Field(None, ge=0, description="Steps over which the rate grows from 0 (schedule_free_adamw).")
    weight_decay: float | None = Field(None, ge=0, description="Decoupled weight decay a step.")
    clipnorm: float | None = Field(None, gt=0, description="Each gradient is clipped to this norm.")
    clipvalue: float | None = Field(None, gt=0, description="Each element of a gradient is clipped to this size.")
    global_clipnorm: float | None = Field(None, gt=0, description="All gradients together are clipped to this norm.")
    use_ema: bool | None = Field(None, description="Keep a moving average of the weights, which replaces them at the end of the fit.")
    ema_momentum: float | None = Field(None, ge=0, lt=1, description="Share of the old average in the new one.")
    ema_overwrite_frequency: int | None = Field(
        None, ge=1, description="Steps after which the average replaces the weights, again and again."
    )
    loss_scale_factor: float | None = Field(None, gt=0, description="What the loss is multiplied by while gradients are computed.")
    gradient_accumulation_steps: int | None = Field(
        None, ge=2, description="Steps whose mean gradient makes one update; schedules count the steps themselves."
    )

    @field_validator("name", mode="before")
    @classmethod
    def _is_known(cls, name: object) -> object:
        if isinstance(name, str) and name not in OPTIMIZERS:
            raise ValueError(f'no optimizer is called "{name}".{_near(name.lower(), OPTIMIZERS)} Known: {", ".join(OPTIMIZERS)}.')
        return name

    @field_validator("exclude_layers")
    @classmethod
    def _are_patterns(cls, patterns: list[str] | None) -> list[str] | None:
        for pattern in patterns or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'"{pattern}" is no regular expression: {error}') from None
        return patterns

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        faults = [*_foreign_arguments(self), *_clashing_arguments(self)]
        if faults:
            raise ValueError(" ".join(faults))
        return self

    @property
    def rate(self) -> float:
        """The learning rate before any decay."""
        return OPTIMIZERS[self.name].learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def arguments(self) -> dict[str, Any]:
        """What was said besides name and rate, by the names of Keras's arguments."""
        return self.model_dump(exclude={"name", "learning_rate"}, exclude_none=True)


def _foreign_arguments(config: OptimizerConfig) -> Iterable[str]:
    taken = OPTIMIZERS[config.name].arguments
    foreign = [argument for argument in config.arguments if argument not in taken]
    for argument in foreign:
        others = [name for name, kind in OPTIMIZERS.items() if argument in kind.arguments]
        yield f"{config.name} takes no {argument}, which is for {', '.join(others)}.{_near(argument, taken)}"
    if foreign:
        yield f"{config.name} takes learning_rate, {', '.join(taken)}."


def _clashing_arguments(config: OptimizerConfig) -> Iterable[str]:
    said = config.arguments
    clips = [argument for argument in ("clipnorm", "clipvalue", "global_clipnorm") if argument in said]
    if len(clips) > 1:
        yield f"only one of {' and '.join(clips)} can be set."
    averaging = [argument for argument in ("ema_momentum", "ema_overwrite_frequency") if argument in said]
    if averaging and not config.use_ema:
        yield f"{' and '.join(averaging)} {'is' if len(averaging) == 1 else 'are'} for use_ema: true."
    if config.beta_1 == 0 and config.name in ("lion", "schedule_free_adamw"):
        yield f"{config.name} needs a beta_1 above 0."


def _near(word: str, known: Iterable[str]) -> str:
    """`` Did you mean "x"?`` where a known word is close, else nothing."""
    return nearest(word, known).partition(" Known:")[0]


class ConstantDecay(Section):
    """The rate stays."""

    kind: Literal["constant"] = Field(description="The rate stays as it is.")


class StepDecay(Section):
    """The rate is multiplied by ``factor`` every so many epochs."""

    kind: Literal["step"] = Field(description="The rate drops by a factor every so many epochs.")
    every_epochs: int = Field(ge=1, description="Epochs between drops.")
    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by at each drop.")


class PiecewiseDecay(Section):
    """The rate has one value up to each boundary, and one after the last."""

    kind: Literal["piecewise"] = Field(description="The rate has one value between each two boundaries.")
    boundaries: list[PositiveInt] = Field(min_length=1, description="Epochs after which the value changes, rising.")
    factors: list[Annotated[float, Field(gt=0)]] = Field(
        description="The values, as multiples of the learning rate: one more than boundaries."
    )

    @model_validator(mode="after")
    def _has_a_value_for_each_piece(self) -> Self:
        if any(later <= earlier for earlier, later in itertools.pairwise(self.boundaries)):
            raise ValueError(f"boundaries must rise. Received: {self.boundaries}")
        if len(self.factors) != len(self.boundaries) + 1:
            raise ValueError(f"{len(self.boundaries)} boundaries need {len(self.boundaries) + 1} factors. Received: {len(self.factors)}")
        return self


class ExponentialDecay(Section):
    """The rate shrinks smoothly: multiplied by ``factor`` once an epoch, a little at every step."""

    kind: Literal["exponential"] = Field(description="The rate shrinks a little at every step.")
    factor: float = Field(0.95, gt=0, lt=1, description="What the rate is multiplied by over an epoch.")


class InverseTimeDecay(Section):
    """The rate is divided by ``1 + decay_rate * epochs / every_epochs``, a little more at every step."""

    kind: Literal["inverse_time"] = Field(description="The rate is divided by a number that grows with time.")
    decay_rate: float = Field(1.0, gt=0, description="How much the divisor, at first 1, grows over every_epochs.")
    every_epochs: int = Field(1, ge=1, description="Epochs over which the divisor grows by decay_rate.")
    staircase: bool = Field(False, description="Change the rate at the end of every_epochs only, not at every step.")


class PolynomialDecay(Section):
    """The rate falls to ``final_fraction`` as ``(1 - time) ** power``."""

    kind: Literal["polynomial"] = Field(description="The rate falls to its end along a line or a power of it.")
    final_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the rate that is left at the end.")
    power: float = Field(1.0, gt=0, description="1: along a line; above: faster at first.")
    decay_epochs: int | None = Field(None, ge=1, description="Epochs until the end is reached; by default all of the fit's.")
    cycle: bool = Field(False, description="Rise again after decay_epochs, towards an end that lies decay_epochs further each time.")

    @model_validator(mode="after")
    def _has_something_to_repeat(self) -> Self:
        if self.cycle and self.decay_epochs is None:
            raise ValueError("cycle needs decay_epochs: after all of the fit's epochs there is nothing to repeat")
        return self


class CosineDecay(Section):
    """Linear warm-up from 0, then half a cosine down to ``final_fraction`` of the rate at the last planned step."""

    kind: Literal["cosine"] = Field(description="Warm-up, then half a cosine down to the last step.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    warmup_epochs: float = Field(0.0, ge=0, description="The same in epochs, or in parts of one.")
    final_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the rate that is left at the end.")

    @model_validator(mode="after")
    def _warms_up_once(self) -> Self:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return self


class CosineRestartsDecay(Section):
    """Half a cosine down, and again from the top, each longer than the one before.

    Source: Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983
    """

    kind: Literal["cosine_restarts"] = Field(description="Half a cosine down, and again from the top.")
    first_epochs: int = Field(ge=1, description="Epochs of the first descent.")
    t_mul: float = Field(2.0, ge=1, description="Length of each descent as a multiple of the one before.")
    m_mul: float = Field(1.0, gt=0, description="The rate that a descent starts from as a multiple of the one before.")
    final_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the rate that is left at the end of a descent.")


class PlateauDecay(Section):
    """The rate drops when the monitored value stops improving."""

    kind: Literal["plateau"] = Field(description="The rate drops when the monitored value stops improving.")
    monitor: str = Field("val_loss", description="The value watched.")
    mode: Literal["auto", "min", "max"] = Field("auto", description="Whether less or more is better; auto: as the metric says.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate is multiplied by at each drop.")
    patience: int = Field(3, ge=0, description="Epochs without improvement before a drop.")
    min_delta: float = Field(0.0001, ge=0, description="A smaller change is no improvement.")
    cooldown: int = Field(0, ge=0, description="Epochs after a drop in which nothing is counted.")
    min_rate: float = Field(0.0, ge=0, description="The rate does not drop below this.")


Decay = Annotated[
    ConstantDecay
    | StepDecay
    | PiecewiseDecay
    | ExponentialDecay
    | InverseTimeDecay
    | PolynomialDecay
    | CosineDecay
    | CosineRestartsDecay
    | PlateauDecay,
    Field(discriminator="kind"),
]


class EarlyStoppingConfig(Section):
    """Stop when the monitored value no longer improves, and keep the best weights."""

    monitor: str = Field("val_loss", description="The value watched.")
    mode: Literal["auto", "min", "max"] = Field("auto", description="Whether less or more is better; auto: as the metric says.")
    patience: int = Field(5, ge=0, description="Epochs without improvement before the fit ends.")
    min_delta: float = Field(0.0, ge=0, description="A smaller change is no improvement.")
    start_from_epoch: int = Field(0, ge=0, description="Epochs at the start that are not watched.")
    restore_best: bool = Field(True, description="Keep the weights of the best epoch; false: those of the last.")


class CheckpointConfig(Section):
    """Complete training states on disk; whichever interval is over first counts. The best epoch so far is always saved."""

    every_steps: int | None = Field(None, ge=1, description="Steps between checkpoints; null: they are not counted.")
    every_seconds: float | None = Field(60.0, gt=0, description="Seconds between checkpoints; null: they are not counted.")
    every_epochs: int | None = Field(1, ge=1, description="Epochs between checkpoints at ends of epochs; null: they are not counted.")
    keep: int = Field(2, ge=1, description="So many of the newest are kept while the fit runs, and the best epoch's.")


class DivergenceConfig(Section):
    """A fit whose loss is no longer finite goes back to its last good checkpoint and on with a lower learning rate."""

    restarts: int = Field(2, ge=1, description="So often; then the fit fails.")
    factor: float = Field(0.5, gt=0, lt=1, description="By what the learning rate is multiplied each time, its whole schedule with it.")


class CallbackConfig(Section):
    """A Keras callback of the repository's own."""

    use: CodeReference = Field(description='The class, or a function that returns a callback, as "module:attribute".')
    options: dict[str, Any] = Field({}, description="Keyword arguments, checked against its signature.")


class ObjectiveConfig(Section):
    """A loss or a metric: one of Keras's, or the repository's own."""

    use: CodeReference = Field(description='The class, as "module:attribute", such as "keras.losses:Huber".')
    options: dict[str, Any] = Field({}, description="Keyword arguments.")
    labels: Literal["index", "one_hot"] | None = Field(
        None, description="How it takes the label of a classes target; by default as an index if its name begins with Sparse."
    )


def _short_objective(said: object) -> object:
    return {"use": said} if isinstance(said, str) else said


Objective = Annotated[ObjectiveConfig, BeforeValidator(_short_objective, json_schema_input_type=ObjectiveConfig | CodeReference)]


class FitConfig(Section):
    """How the model is fitted."""

    epochs: int = Field(30, ge=1, description="At most so many passes over the train split.")
    max_minutes: float | None = Field(
        None, gt=0, description="No epoch is begun that would not end within so many minutes of fitting; by default there is no limit."
    )
    batch_size: int = Field(32, ge=1, description="Rows a step.")
    loss: Objective | None = Field(
        None, description='The loss, such as "keras.losses:Huber", or {use, options}; by default that of the target\'s kind.'
    )
    metrics: list[Objective] | None = Field(
        None, description="What is logged at every epoch besides the loss; by default the metrics of the target's kind."
    )
    class_weight: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="Weight of each class in the loss: balanced (inverse to its frequency), or by its label; 1 where none is named."
    )
    sample_weight: str | None = Field(None, description="The column with the weight of each row in the loss and its metrics.")
    initial_weights: str | None = Field(
        None, min_length=1, description="A .weights.h5 or .keras file whose weights the fit starts from; by default they are drawn by seed."
    )
    warm_start: Literal["champion"] | None = Field(
        None,
        description="champion: the fit starts from the weights of the version that serves, as far as they mean the same.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The optimizer.")
    decay: Decay = Field(ConstantDecay(kind="constant"), description="How the learning rate changes.")
    early_stopping: EarlyStoppingConfig | None = Field(EarlyStoppingConfig(), description="When to stop early; null: never.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="When training state is saved.")
    on_divergence: DivergenceConfig | None = Field(None, description="What is done when the loss is not finite; null: the fit fails.")
    callbacks: list[CallbackConfig] = Field([], description="Keras callbacks of the repository's own, called in this order.")
    validation_freq: int = Field(1, ge=1, description="Epochs between validations.")
    steps_per_execution: Literal["auto"] | PositiveInt = Field(
        "auto", description="Steps that are run at once, without a word in between; auto: measured in fits of more than a minute."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "auto", description="What layers compute in; weights are float32 in any case; auto: mixed_bfloat16 on GPUs that are made for it."
    )
    devices: Literal["auto", "all"] = Field(
        "auto", description="auto: one GPU, else the CPU; all: all GPUs, else all logical CPUs, share each batch."
    )
    deterministic: bool = Field(
        True, description="Whether a GPU computes the same each time; false: it may be faster, and a resumed fit ends near the same."
    )
    jit_compile: Literal["auto", True, False] = Field(
        "auto", description="Whether XLA compiles the step; auto: on a GPU, where Keras finds fit."
    )

    @property
    def objectives(self) -> dict[str, ObjectiveConfig]:
        """The loss and the metrics that the job names, by their keys."""
        named = {f"fit.metrics.{number}": said for number, said in enumerate(self.metrics or ())}
        return named if self.loss is None else {"fit.loss": self.loss, **named}

    @field_validator("initial_weights")
    @classmethod
    def _is_a_file_of_weights(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith((".weights.h5", ".keras")):
            raise ValueError(f'"{path}" is no file of weights: its name ends in .weights.h5 or .keras')
        return path

    @model_validator(mode="after")
    def _is_validated_before_the_end(self) -> Self:
        if self.validation_freq > self.epochs:
            raise ValueError(f"validation_freq {self.validation_freq} is above epochs {self.epochs}: nothing would be validated")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        faults = list(_fit_faults(self))
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _fit_faults(fit: FitConfig) -> Iterable[str]:
    optimizer, stopping = fit.optimizer, fit.early_stopping
    if isinstance(fit.decay, CosineDecay) and fit.decay.warmup_epochs > fit.epochs:
        yield f"warmup_epochs {fit.decay.warmup_epochs:g} is above epochs {fit.epochs}: the rate would never be reached"
    if stopping and stopping.start_from_epoch >= fit.epochs:
        yield f"start_from_epoch {stopping.start_from_epoch} leaves none of {fit.epochs} epochs to be watched"
    if fit.warm_start and fit.initial_weights:
        yield "a fit starts from one set of weights: leave initial_weights out, or set warm_start: null"
    if fit.devices == "all":
        yield from _devices_faults(fit)
    if fit.precision == "mixed_float16" and optimizer.loss_scale_factor is not None:
        yield "mixed_float16 finds its own scale of the loss: leave loss_scale_factor out, or choose another precision"
    if optimizer.use_ema and optimizer.ema_overwrite_frequency is None and stopping and stopping.restore_best:
        yield (
            "use_ema puts the average of the weights in their place at the end of the fit, and early_stopping then those of the best"
            " epoch: set ema_overwrite_frequency, or early_stopping.restore_best: false"
        )


def _devices_faults(fit: FitConfig) -> Iterable[str]:
    if fit.steps_per_execution not in ("auto", 1):
        yield "devices: all runs one step at a time: leave steps_per_execution out, or set devices: auto"
    if fit.jit_compile is True:
        yield "devices: all does not go with jit_compile: true: leave it out, or set devices: auto"
    if fit.optimizer.gradient_accumulation_steps is not None or fit.optimizer.ema_overwrite_frequency is not None:
        yield "devices: all goes without gradient_accumulation_steps and ema_overwrite_frequency: leave them out, or set devices: auto"
    if fit.precision == "mixed_float16":
        yield "devices: all does not go with mixed_float16: choose mixed_bfloat16 or float32, or set devices: auto"


# ---- batches


class BatchesConfig(Section):
    """How rows reach the model."""

    engine: Literal["auto", "resident", "streaming"] = Field(
        "auto", description="resident: all rows packed in memory; streaming: row groups in windows; auto: resident where memory allows."
    )
    memory_mb: int | None = Field(
        None, ge=64, description="So much memory may packed rows take before auto streams, MiB; by default half of what is free."
    )
    window_rows: int = Field(524_288, ge=1_024, description="Rows that streaming shuffles at a time.")
    drop_remainder: bool = Field(False, description="Leave the last batch of an epoch out where it is short.")
    sample: Fraction | None = Field(None, description="Train on this share of the train split only, for quick trials.")


# ---- evaluation, gate and export


class EvaluationConfig(Section):
    """What stands beside the candidate in the report."""

    baseline: Literal["linear", "constant"] = Field(
        "linear", description="linear: the most frequent or mean label, and a linear model over all features; constant: the former only."
    )


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

    metric: str | None = Field(None, description="The metric compared; by default accuracy, auc (binary), log_loss (multilabel) or rmse.")
    must: Literal["be_better", "not_be_worse", "prove_not_worse"] = Field("not_be_worse", description="What must be shown.")
    margin: float = Field(0.0, ge=0, description="Differences within the margin do not count.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Two-sided confidence of the interval of the difference.")


class GateConfig(Section):
    """What a candidate must prove before it is published."""

    require: dict[str, Bound] = Field({}, description="Limits on the candidate's metrics on the test split.")
    champion: ChampionRule = Field(ChampionRule(), description="The comparison with the champion.")
    latency_p50_ms: float | None = Field(None, gt=0, description="Limit on the median of one-row predictions, milliseconds.")
    latency_p99_ms: float | None = Field(None, gt=0, description="Limit on the 99th percentile of one-row predictions, milliseconds.")
    max_model_mb: float | None = Field(None, gt=0, description="Limit on the exported model's size on disk, million bytes.")
    max_parameters: int | None = Field(None, ge=1, description="Limit on the model's parameters, trainable or not.")


class ExportConfig(Section):
    """What is kept of published models."""

    keep_versions: int = Field(10, ge=2, description="So many of the newest versions stay on disk.")


# ---- the whole


class Job(Section):
    """One model, its data, and what it must prove."""

    name: Name = Field(description="Name of the job and of the model that it publishes.")
    data: DataConfig = Field(description="Where rows come from.")
    features: dict[str, Feature] | None = Field(
        None, description="Inputs of the model by column, crosses by a name of their own; by default every column but target and key."
    )
    target: TargetConfig = Field(description="What is predicted.")
    drift: DriftConfig = Field(DriftConfig(), description="How far new rows may differ from the champion's.")
    split: SplitConfig = Field(SplitConfig(), description="How rows are divided into train, validation and test.")
    model: ModelConfig = Field(ModelConfig(), description="What is fitted.")
    fit: FitConfig = Field(FitConfig(), description="How it is fitted.")
    batches: BatchesConfig = Field(BatchesConfig(), description="How rows reach the model.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="What it is shown beside.")
    gate: GateConfig = Field(GateConfig(), description="What it must prove.")
    export: ExportConfig = Field(ExportConfig(), description="What is kept.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, dropout and the order of rows.")

    @property
    def feature_columns(self) -> dict[str, Feature]:
        """The features that are columns, where any are declared."""
        return {name: feature for name, feature in (self.features or {}).items() if not isinstance(feature, CrossFeature)}

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
    if job.split.by == "time" and job.data.time is None:
        yield "a split by time needs data.time, the column that says when a row came to be"
    if job.split.k_fold and isinstance(job.fit.decay, PlateauDecay) and job.fit.decay.monitor.startswith("val_"):
        yield f"with k_fold the last fit has no validation rows: fit.decay cannot monitor {job.fit.decay.monitor}; choose loss"
    if job.target.column in (job.split.group, job.split.column):
        yield f'the target "{job.target.column}" cannot say on which side a row is'
    yield from _threshold_faults(job)
    yield from _cross_faults(job)
    named = [*job.data.columns, *job.data.derive, *(job.features or {}), job.target.column]
    for column in dict.fromkeys(c for c in named if c.startswith(RESERVED_PREFIX)):
        yield f'"{column}": names that begin with "_" are kept for refit\'s own columns'


def _threshold_faults(job: Job) -> Iterable[str]:
    if job.target.threshold != "half" and (job.split.k_fold or job.split.resplit_each_epoch):
        yield "target.threshold is found on validation rows that the model was not fitted to: leave k_fold and resplit_each_epoch out"


def _cross_faults(job: Job) -> Iterable[str]:
    features = job.features or {}
    categories = [name for name, feature in features.items() if isinstance(feature, CategoryFeature)]
    for name, feature in features.items():
        if isinstance(feature, CrossFeature):
            wrong = [part for part in feature.of if part not in categories]
            known = ", ".join(categories) or "none"
            if wrong:
                yield f'features.{name}.of names "{wrong[0]}", which is no feature of kind category (those are: {known})'
            elif len(set(feature.of)) < len(feature.of):
                yield f"features.{name}.of names a feature twice"
    if features and not job.feature_columns:
        yield "features must name at least one column: a cross is none"


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
        return _joined([_fault(detail) for detail in error.errors(include_url=False)])
    return []


def _joined(faults: list[Fault]) -> list[Fault]:
    """One fault a key: of a value that may be one thing or another, pydantic says why it is neither."""
    texts: dict[tuple[str | int, ...], list[str]] = {}
    for fault in faults:
        texts.setdefault(fault.path, []).append(fault.message)
    return [Fault(path=path, message=_either(list(dict.fromkeys(messages)))) for path, messages in texts.items()]


def _either(messages: list[str]) -> str:
    return "; or ".join([*(message.partition(". Received: ")[0] for message in messages[:-1]), messages[-1]])


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
    if kind == "union_tag_invalid":
        word, known = detail["ctx"]["tag"], [tag.strip("'") for tag in detail["ctx"]["expected_tags"].split(", ")]
        return Fault(path=(*path, "kind"), message=f'there is no kind "{word}".{_near(word, known)} Known: {", ".join(known)}.')
    if kind == "union_tag_not_found":
        return Fault(path=(*path, "kind"), message="this key is required.")
    message = _MAPPING if kind in _NO_MAPPING else detail["msg"].removeprefix("Value error, ")
    return Fault(path=path, message=message if kind == "value_error" else f"{message}. Received: {_brief(received)}.")


_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")
_MAPPING = "Input should be a mapping of keys to values"
_FORM = re.compile(r"(literal|dict|list)\[.*\]|constrained-\w+")  # how pydantic names a member of a union in an error's location


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
        if _FORM.fullmatch(str(part)):
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
