"""What refit's jobs are compared with: the script that most people write in Keras, and scikit-learn, one function for each kind of data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refit.layout import Layout
from refit.metrics import compute_metrics
from refit.records import BatchesRecord, Side, SnapshotRecord
from refit.runs import read_run
from refit.schema import MISSING_INTEGER, to_numpy
from refit.splits import read_rows
from refit.stages import read_stage
from refit.targets import encode_labels

SIDES: tuple[Side, ...] = ("train", "validation", "test")
TEXT = "text"
SMALL = 10_000


@dataclass(frozen=True)
class Task:
    """Rows of a run by side: what is known of each, and labels: numbers of classes, or values."""

    plan: BatchesRecord
    inputs: dict[Side, dict[str, np.ndarray]]
    labels: dict[Side, np.ndarray]

    @property
    def is_regression(self) -> bool:
        """Whether the target is a value."""
        return self.plan.target.kind == "regression"

    @property
    def batch_size(self) -> int:
        """Rows a step of the plain script."""
        return 32 if len(self.labels["train"]) < SMALL else 256


def read_task(home: str, job: str, run: str, kind: str, *, derived: bool) -> Task:
    """The very rows that a run learned from and was measured on; of their columns the run's features.

    Without ``derived`` columns that the job derives are left out, but for moments: who writes the usual script takes the data's own.
    """
    layout = Layout(Path(home))
    paths = layout.run(job, run)
    plan, snapshot = read_stage(paths, "convert", BatchesRecord), read_stage(paths, "ingest", SnapshotRecord)
    if plan is None or snapshot is None:
        raise SystemExit(f"{job}/{run} is not complete")
    made = () if derived else read_run(layout, job, run).parameters.data.derive
    features = () if kind == TEXT else tuple(f for f in plan.features if f.name not in made or f.kind == "timestamp")
    names = [TEXT] if kind == TEXT else [feature.name for feature in features]
    inputs: dict[Side, dict[str, np.ndarray]] = {}
    labels: dict[Side, np.ndarray] = {}
    for side in SIDES:
        table = read_rows(snapshot, layout, paths, side, list(dict.fromkeys([*names, plan.target.name]))).table
        inputs[side] = {feature.name: to_numpy(table[feature.name], feature) for feature in features}
        inputs[side] |= {TEXT: np.array(table[TEXT].to_pylist(), dtype=object)} if kind == TEXT else {}
        labels[side] = encode_labels(table[plan.target.name], plan.target)
    return Task(plan.model_copy(update={"features": features}), inputs, labels)


def measure(task: Task, predictions: np.ndarray) -> dict[str, float]:
    """Metrics on the test rows. ``predictions``: ``[rows, classes]``, ``[rows, 1]`` of the positive class, or values ``[rows]``."""
    if task.plan.target.kind == "binary" and predictions.shape[1] == 1:
        predictions = np.concatenate([1 - predictions, predictions], axis=1)
    return compute_metrics(task.plan.target.kind, task.labels["test"], predictions)


# ---- Keras


def _fit(task: Task, model: Any, inputs: dict[Side, np.ndarray]) -> np.ndarray:  # noqa: ANN401 -- a Keras model
    """Adam, early stopping by the validation rows; predictions for the test rows."""
    import keras

    train, losses = task.labels["train"], {"binary": "binary_crossentropy", "classes": "sparse_categorical_crossentropy"}
    mean, deviation = (train.mean(), train.std()) if task.is_regression else (0, 1)
    labels = {side: (values - mean) / deviation if task.is_regression else values for side, values in task.labels.items()}
    model.compile("adam", losses.get(task.plan.target.kind, "mse"))
    model.fit(
        inputs["train"],
        labels["train"],
        validation_data=(inputs["validation"], labels["validation"]),
        batch_size=task.batch_size,
        epochs=100,
        callbacks=[keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)],
        verbose=0,
    )
    predictions = model.predict(inputs["test"], batch_size=1024, verbose=0)
    return np.asarray(predictions[:, 0] * deviation + mean if task.is_regression else predictions)


def _output(task: Task) -> Any:  # noqa: ANN401 -- a Keras layer
    import keras

    kind = task.plan.target.kind
    units = len(task.plan.target.classes or ()) if kind == "classes" else 1
    return keras.layers.Dense(units, activation={"binary": "sigmoid", "classes": "softmax"}.get(kind))


def plain_table(task: Task) -> np.ndarray:
    """Scaled numbers and one-hot categories into a perceptron."""
    import keras
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    split = {side: _numbers_and_words(task, side) for side in SIDES}
    scaler = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(split["train"][0])
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(split["train"][1])
    inputs = {side: np.hstack([scaler.transform(numbers), one_hot.transform(words)]) for side, (numbers, words) in split.items()}
    layers = [keras.layers.Dense(128, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.2)]
    return _fit(task, keras.Sequential([*layers, _output(task)]), inputs)


def plain_text(task: Task) -> np.ndarray:
    """Tf-idf of words and pairs of words into a perceptron."""
    import keras

    vectorize = keras.layers.TextVectorization(max_tokens=20_000, ngrams=2, output_mode="tf_idf")
    vectorize.adapt(task.inputs["train"][TEXT].astype(str))
    inputs = {side: np.asarray(vectorize(task.inputs[side][TEXT].astype(str))) for side in SIDES}
    return _fit(task, keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.5), _output(task)]), inputs)


def plain_images(task: Task) -> np.ndarray:
    """Two convolutions with pooling, as in the first example of Keras's site."""
    import keras

    inputs = {side: _pixels(task, side) for side in SIDES}
    layers = [
        *(keras.layers.Conv2D(32, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()),
        *(keras.layers.Conv2D(64, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()),
        *(keras.layers.Flatten(), keras.layers.Dropout(0.5)),
    ]
    return _fit(task, keras.Sequential([*layers, _output(task)]), inputs)


# ---- scikit-learn


def classic_table(task: Task, seed: int) -> np.ndarray:
    """Boosted trees, stopped early by the validation rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    split = {side: _numbers_and_words(task, side) for side in SIDES}
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan).fit(split["train"][1])
    inputs = {side: np.hstack([numbers, codes.transform(words)]) for side, (numbers, words) in split.items()}
    is_word = np.arange(inputs["train"].shape[1]) >= split["train"][0].shape[1]
    trees = (HistGradientBoostingRegressor if task.is_regression else HistGradientBoostingClassifier)(
        max_iter=1000, early_stopping=True, n_iter_no_change=20, categorical_features=is_word, random_state=seed
    )
    trees.fit(inputs["train"], task.labels["train"], X_val=inputs["validation"], y_val=task.labels["validation"])
    return np.asarray(trees.predict(inputs["test"]) if task.is_regression else trees.predict_proba(inputs["test"]))


def classic_text(task: Task, seed: int) -> np.ndarray:
    """Tf-idf and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000, random_state=seed))
    return np.asarray(model.fit(task.inputs["train"][TEXT], task.labels["train"]).predict_proba(task.inputs["test"][TEXT]))


def classic_images(task: Task, seed: int) -> np.ndarray:
    """Logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression

    flat = {side: _pixels(task, side).reshape(len(task.labels[side]), -1) for side in SIDES}
    return np.asarray(
        LogisticRegression(max_iter=200, random_state=seed).fit(flat["train"], task.labels["train"]).predict_proba(flat["test"])
    )


# ---- rows as both take them


def _pixels(task: Task, side: Side) -> np.ndarray:
    """Of the only image, from 0 to 1."""
    (pixels,) = task.inputs[side].values()
    (train,) = task.inputs["train"].values()
    return pixels.astype("float32") / float(train.max())


def _numbers_and_words(task: Task, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and parts of moments ``[rows, n]`` with NaN for missing, categories ``[rows, m]`` as text."""
    numbers, words = [], []
    for feature in task.plan.features:
        values = task.inputs[side][feature.name]
        if feature.kind == "category":
            words.append(values.astype(str))
        elif feature.kind == "timestamp":
            numbers += _parts_of(values)
        else:
            numbers.append(values.astype("float64"))
    rows = len(task.labels[side])
    return np.array(numbers).T.reshape(rows, -1), np.array(words, dtype=object).T.reshape(rows, -1)


def _parts_of(moments: np.ndarray) -> list[np.ndarray]:
    """The day since 1970, hour, weekday and day of the year of microseconds since 1970."""
    moment = np.where(moments == MISSING_INTEGER, np.datetime64("NaT"), moments.astype("datetime64[us]"))
    day = moment.astype("datetime64[D]")
    parts = [day - np.datetime64(0, "D"), (moment - day) // np.timedelta64(1, "h"), day - day.astype("datetime64[Y]")]
    elapsed, hour, year_day = (np.where(np.isnat(moment), np.nan, part.astype("int64")) for part in parts)
    return [elapsed, hour, (elapsed + 4) % 7, year_day]


PLAIN: dict[str, Callable[[Task], np.ndarray]] = {"table": plain_table, TEXT: plain_text, "images": plain_images}
CLASSIC: dict[str, Callable[[Task, int], np.ndarray]] = {"table": classic_table, TEXT: classic_text, "images": classic_images}


def compete(name: str, kind: str, home: str, job: str, run: str, seed: int, derived: bool) -> dict[str, float]:
    """Test metrics of one rival on a run's rows."""
    task = read_task(home, job, run, kind, derived=derived)
    if name == "scikit-learn":
        return measure(task, CLASSIC[kind](task, seed))
    import keras

    keras.utils.set_random_seed(seed)
    return measure(task, PLAIN[kind](task))
