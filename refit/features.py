"""What builders receive: one Keras graph from raw columns to encoded tensors, so that what serves is what was trained.

Statistics are constants in the layers (``refit.feature_plans``). Layers compute in float32 whatever the policy is: raw numbers
would lose their last digits in bfloat16.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import tensorflow as tf

from refit.config import CategoryFeature, ImageFeature, NumericFeature, TargetKind, TextFeature, TimestampFeature
from refit.layers import AverageTokens, ClipColumns, DecodeImages, FillMissing, SignedLog, TimeParts
from refit.records import CrossPlan, FeaturePlan, TargetPlan
from refit.schema import MISSING_INTEGER, check_names, is_encoded, is_whole, raw_input, signature_name, time_parts
from refit.shaping import TargetScale, Unscale

_MAX_DIMENSION = 64
_DEVIATIONS = (1e-6, 1e18)  # Normalization takes a deviation below 1e-7 for 1e-7; the square of one above 1.8e19 is infinite in float32
_SEQUENCE_DIMENSION = 64
_OUTPUT, _UNSCALED = "refit->output", "refit->unscaled"  # no column has such a name
_PUNCTUATION = "lower_and_strip_punctuation"
# Source: keras.layers.TextVectorization, whose pattern has no public name.
_PUNCTUATION_PATTERN = r'[!"#$%&()\*\+,-\./:;<=>?@\[\\\]^_`{|}~\']'


@dataclass(frozen=True)
class Features:
    """Inputs of the graph and what refit made of them.

    Attributes:
        inputs: raw columns by name, as ``keras.Input``; pass them whole to ``keras.Model``.
        numeric: numbers, vectors and moments side by side, scaled: ``[batch, n]`` float32, or None.
        categories: encodings of categories, bins and crosses by name: ``[batch, d]``; of a one-hot encoding position 0 is missing, 1
            unseen.
        images: images by name, scaled: ``[batch, height, width, channels]`` in the policy's dtype.
        texts: bags of tokens by name: ``[batch, tokens]`` float32; position 0 is unseen.
        sequences: numbers of tokens by name: ``[batch, length]`` int64; 0 is padding, 1 unseen.
        indices: the number of each category's token by name: ``[batch]`` int64, for layers that encode it themselves.
        num_tokens: how many numbers there are in each of ``indices`` and ``sequences``.
    """

    inputs: dict[str, Any]
    numeric: Any | None
    categories: dict[str, Any]
    images: dict[str, Any]
    texts: dict[str, Any] = field(default_factory=dict)
    sequences: dict[str, Any] = field(default_factory=dict)
    indices: dict[str, Any] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def has_others(self) -> bool:
        """Whether there is anything but images."""
        return self.numeric is not None or bool(self.categories or self.texts or self.sequences)

    def encodings(self) -> dict[str, Any]:
        """Whatever is neither a number nor an image by name, ``[batch, d]``: categories, texts, the mean of a sequence's embeddings."""
        averages = {name: _average(name, tokens, self.num_tokens[name]) for name, tokens in self.sequences.items()}
        return {**self.categories, **self.texts, **averages}

    def vector(self) -> Any:  # noqa: ANN401 -- a Keras tensor
        """All features that are no images, side by side; of a sequence the mean of its tokens' embeddings.

        Returns:
            A Keras tensor ``[batch, n]`` float32; images are flattened into it where there is nothing else.
        """
        parts = [*([self.numeric] if self.numeric is not None else []), *self.encodings().values()]
        parts = parts or [keras.layers.Flatten()(image) for image in self.images.values()]
        return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)


def _average(name: str, tokens: Any, num_tokens: int) -> Any:  # noqa: ANN401 -- Keras tensors
    embedded = keras.layers.Embedding(num_tokens, _SEQUENCE_DIMENSION, name=_named(name, "embedding"))(tokens)
    return AverageTokens(name=_named(name, "average"))([embedded, tokens])


def _named(column: str, part: str) -> str:
    """Name of a layer, which no column has; TensorFlow takes no other signs.

    Source: https://www.tensorflow.org/api_docs/python/tf/Graph#name_scope
    """
    return f"{signature_name(column)}>{part}"


@dataclass(frozen=True)
class Target:
    """What a builder needs to know of the target, and the layer that ends its graph."""

    name: str
    kind: TargetKind
    num_classes: int
    scale: TargetScale | None = None

    @property
    def units(self) -> int:
        """Width of the output: classes or labels, or 1."""
        return self.num_classes if self.kind in ("classes", "multilabel") else 1

    @property
    def activation(self) -> str:
        """What turns logits into predictions."""
        return {"binary": "sigmoid", "classes": "softmax", "multilabel": "sigmoid", "regression": "linear"}[self.kind]

    def head(self, x: Any) -> Any:  # noqa: ANN401 -- a Keras tensor
        """The output layer over ``[batch, n]``: probabilities ``[batch, units]``, or a value ``[batch, 1]`` in its unit; float32."""
        return self._unscaled(keras.layers.Dense(self.units, activation=self.activation, dtype="float32", name=_OUTPUT)(x))

    def finish(self, logits: Any) -> Any:  # noqa: ANN401 -- Keras tensors
        """Predictions, as of ``head``, from logits ``[batch, units]``; for builders that make their own last layer."""
        return self._unscaled(keras.layers.Activation(self.activation, dtype="float32", name=_OUTPUT)(logits))

    def _unscaled(self, x: Any) -> Any:  # noqa: ANN401 -- Keras tensors
        return x if self.scale is None else Unscale(**asdict(self.scale), dtype="float32", name=_UNSCALED)(x)


def build_target(plan: TargetPlan) -> Target:
    """The target as builders see it."""
    scale = None if plan.mean is None or plan.deviation is None else TargetScale(plan.mean, plan.deviation, plan.log)
    return Target(name=plan.name, kind=plan.kind, num_classes=len(plan.classes or ()), scale=scale)


def build_inputs(plans: Sequence[FeaturePlan], crosses: Sequence[CrossPlan] = ()) -> Features:
    """Raw inputs and their encodings.

    Raises:
        DataError: two features have nearly the same name.
    """
    check_names([*(plan.name for plan in plans), *(cross.name for cross in crosses)])
    inputs = {plan.name: _input(plan) for plan in plans}
    parts = [*_scaled(plans, inputs), *_vectors(plans, inputs), *_moments(plans, inputs)]
    indices = {plan.name: _index(plan, inputs[plan.name]) for plan in plans if plan.kind == "category"}
    num_tokens = {plan.name: count_tokens(plan) for plan in plans if plan.name in indices or _is_sequence(plan)}
    texts = {plan.name: _vectorize(plan)(inputs[plan.name]) for plan in plans if plan.kind == "text"}
    sequences = {plan.name for plan in plans if _is_sequence(plan)}
    return Features(
        inputs=inputs,
        numeric=_join(parts, "refit->numeric"),
        categories={
            **{plan.name: _encode(plan, indices[plan.name], num_tokens[plan.name]) for plan in plans if plan.kind == "category"},
            **{plan.name: _bins(plan, inputs) for plan in plans if _is_binned(plan)},
            **{cross.name: _cross(cross, inputs) for cross in crosses},
        },
        images={plan.name: _image(plan, inputs[plan.name]) for plan in plans if plan.kind == "image"},
        texts={name: keras.ops.cast(tokens, "float32") for name, tokens in texts.items() if name not in sequences},
        sequences={name: tokens for name, tokens in texts.items() if name in sequences},
        indices=indices,
        num_tokens=num_tokens,
    )


def _input(plan: FeaturePlan) -> Any:  # noqa: ANN401 -- a Keras tensor
    dtype, shape = raw_input(plan)
    return keras.Input(shape=shape, dtype=dtype, name=plan.name)


def _join(parts: Sequence[Any], name: str) -> Any | None:  # noqa: ANN401 -- Keras tensors
    if len(parts) < 2:
        return parts[0] if parts else None
    return keras.layers.Concatenate(name=name, dtype="float32")(parts)


# ---- numbers


def _said(plan: FeaturePlan) -> NumericFeature:
    return plan.feature if isinstance(plan.feature, NumericFeature) else NumericFeature(kind="numeric")


def _is_binned(plan: FeaturePlan) -> bool:
    return plan.kind == "numeric" and _said(plan).scale == "bins"


def _column(plan: FeaturePlan, inputs: dict[str, Any]) -> Any:  # noqa: ANN401 -- Keras tensors
    return keras.layers.Reshape((1,), dtype="float32", name=_named(plan.name, "column"))(inputs[plan.name])


def _scaled(plans: Iterable[FeaturePlan], inputs: dict[str, Any]) -> Iterator[Any]:
    """All numbers that are not binned, in a few layers over ``[batch, n]``; an indicator for each that has missing ones."""
    numbers = [plan for plan in plans if plan.kind == "numeric" and not _is_binned(plan)]
    if not numbers:
        return
    x = _join([_column(plan, inputs) for plan in numbers], "refit->numbers")
    marked = [position for position, plan in enumerate(numbers) if plan.num_missing]
    fills = [plan.mean or 0.0 if plan.fill is None else plan.fill for plan in numbers]
    x = FillMissing(fills, marked, dtype="float32", name="refit->filled")(x)
    logged = [position for position, plan in enumerate(numbers) if _said(plan).log]
    if logged:
        x = SignedLog(logged, dtype="float32", name="refit->log")(x)
    mean = [plan.mean or 0.0 for plan in numbers] + [0.0] * len(marked)
    variance = [plan.variance or 1.0 for plan in numbers] + [1.0] * len(marked)
    x = _normalize(x, mean, variance, "refit->scaled")
    limits = {position: clip for position, plan in enumerate(numbers) if (clip := _said(plan).clip)}
    yield ClipColumns(limits, dtype="float32", name="refit->clipped")(x) if limits else x


def _normalize(x: Any, means: Sequence[float], variances: Sequence[float], name: str) -> Any:  # noqa: ANN401 -- Keras tensors
    """Columns by mean and deviation; those of deviations that Keras's layer cannot divide by are multiplied before, by powers of two."""
    deviations = [math.sqrt(variance) for variance in variances]
    low, high = _DEVIATIONS
    factors = [1.0 if low < deviation < high else 2.0 ** -math.frexp(deviation)[1] for deviation in deviations]
    if any(factor != 1 for factor in factors):
        x = keras.layers.Rescaling(factors, dtype="float32", name=f"{name}_first")(x)
    means = [mean * factor for mean, factor in zip(means, factors, strict=True)]
    variances = [(deviation * factor) ** 2 for deviation, factor in zip(deviations, factors, strict=True)]
    return keras.layers.Normalization(mean=means, variance=variances, dtype="float32", name=name)(x)


def _bins(plan: FeaturePlan, inputs: dict[str, Any]) -> Any:  # noqa: ANN401 -- Keras tensors
    """One-hot ``[batch, 1 + bins]``; position 0 is missing."""
    boundaries = list(plan.boundaries or ())
    x = FillMissing([plan.fill or 0.0], [0], dtype="float32", name=_named(plan.name, "filled"))(_column(plan, inputs))
    if _said(plan).log:
        x = SignedLog([0], dtype="float32", name=_named(plan.name, "log"))(x)
    number = keras.layers.Discretization(boundaries, name=_named(plan.name, "bin"))(x[:, 0])
    number = keras.ops.where(x[:, 1] > 0, 0, number + 1)
    return _one_hot(plan.name, number, len(boundaries) + 2)


def _vectors(plans: Iterable[FeaturePlan], inputs: dict[str, Any]) -> Iterator[Any]:
    for plan in plans:
        if plan.kind == "vector":
            (size,) = plan.column.shape or (0,)
            means, variances = plan.means or [0.0] * size, plan.variances or [1.0] * size
            yield _normalize(inputs[plan.name], means, variances, _named(plan.name, "scaled"))


def _moments(plans: Iterable[FeaturePlan], inputs: dict[str, Any]) -> Iterator[Any]:
    for plan in plans:
        if plan.kind == "timestamp":
            said = plan.feature if isinstance(plan.feature, TimestampFeature) else TimestampFeature(kind="timestamp")
            elapsed = (plan.mean or 0.0, (plan.variance or 1.0) ** 0.5) if said.elapsed else None
            parts, is_marked = time_parts(plan.column, said), bool(plan.num_missing)
            yield TimeParts(parts, elapsed, is_marked=is_marked, dtype="float32", name=_named(plan.name, "parts"))(inputs[plan.name])


# ---- categories


def count_tokens(plan: FeaturePlan) -> int:
    """How many numbers a category's or a sequence's tokens have, missing and unseen among them."""
    if isinstance(plan.feature, CategoryFeature) and plan.feature.hash_bins:
        return plan.feature.hash_bins + 1
    return len(plan.vocabulary or ()) + 2


def _index(plan: FeaturePlan, column: Any) -> Any:  # noqa: ANN401 -- Keras tensors
    """The number of the token ``[batch]``: 0 is missing, 1 unseen (hashed values begin at 1)."""
    name, missing = _named(plan.name, "index"), MISSING_INTEGER if is_whole(plan.column) else ""
    if isinstance(plan.feature, CategoryFeature) and plan.feature.hash_bins:
        return keras.layers.Hashing(plan.feature.hash_bins + 1, mask_value=missing, name=name)(column)
    vocabulary = list(plan.vocabulary or ())
    if is_whole(plan.column):
        lookup = keras.layers.IntegerLookup(vocabulary=vocabulary, mask_token=missing, oov_token=MISSING_INTEGER + 1, name=name)
    else:
        lookup = keras.layers.StringLookup(vocabulary=vocabulary, mask_token=missing, name=name)
    return lookup(column)


def _encode(plan: FeaturePlan, index: Any, num_tokens: int) -> Any:  # noqa: ANN401 -- Keras tensors
    said = plan.feature
    if not isinstance(said, CategoryFeature) or said.encoding == "one_hot":
        return _one_hot(plan.name, index, num_tokens)
    return keras.layers.Embedding(num_tokens, said.dimension or choose_dimension(num_tokens), name=_named(plan.name, "embedding"))(index)


def choose_dimension(num_tokens: int) -> int:
    """Width of an embedding of so many tokens.

    Source: the rule of thumb of fast.ai's tabular models, https://docs.fast.ai/tabular.model.html#emb_sz_rule
    """
    return max(2, min(_MAX_DIMENSION, round(1.6 * math.pow(num_tokens, 0.56))))


def _one_hot(name: str, index: Any, num_tokens: int) -> Any:  # noqa: ANN401 -- Keras tensors
    return keras.layers.CategoryEncoding(num_tokens=num_tokens, output_mode="one_hot", name=_named(name, "one_hot"))(index)


def _cross(cross: CrossPlan, inputs: dict[str, Any]) -> Any:  # noqa: ANN401 -- Keras tensors
    columns = tuple(inputs[name] for name in cross.of)
    return keras.layers.HashedCrossing(cross.bins, output_mode="one_hot", name=_named(cross.name, "cross"))(columns)


# ---- images and texts


def _image(plan: FeaturePlan, image: Any) -> Any:  # noqa: ANN401 -- Keras tensors
    said = plan.feature if isinstance(plan.feature, ImageFeature) else ImageFeature(kind="image")
    if is_encoded(plan.column):
        height, width = said.resize or (1, 1)
        image = DecodeImages(height, width, 1 if said.color == "grey" else 3, name=_named(plan.name, "decoded"))(image)
    x = keras.layers.Rescaling(plan.scale or 1.0, name=_named(plan.name, "scaled"))(image)
    if said.resize and not is_encoded(plan.column):
        x = keras.layers.Resizing(*said.resize, name=_named(plan.name, "resized"))(x)
    if said.color == "grey" and x.shape[-1] == 3:
        x = keras.ops.image.rgb_to_grayscale(x)
    if said.color == "rgb" and x.shape[-1] == 1:
        x = keras.layers.Concatenate(name=_named(plan.name, "rgb"))([x, x, x])
    return x


def _is_sequence(plan: FeaturePlan) -> bool:
    return isinstance(plan.feature, TextFeature) and plan.feature.encoding == "sequence"


def _vectorize(plan: FeaturePlan) -> keras.layers.Layer:
    said = plan.feature if isinstance(plan.feature, TextFeature) else TextFeature(kind="text")
    common = {
        "vocabulary": list(plan.vocabulary or ()),
        "standardize": _PUNCTUATION,
        "split": "whitespace" if said.split == "words" else "character",
        "name": _named(plan.name, "tokens"),
    }
    if said.encoding == "sequence":
        return keras.layers.TextVectorization(output_mode="int", output_sequence_length=said.length, **common)
    mode = {"tf_idf": "tf_idf", "binary": "multi_hot", "count": "count"}[said.encoding]
    weights = {"idf_weights": list(plan.idf or ())} if mode == "tf_idf" else {}
    return keras.layers.TextVectorization(output_mode=mode, ngrams=said.ngrams, **weights, **common)


def split_text(texts: Sequence[str], said: TextFeature) -> tf.RaggedTensor:
    """Tokens of texts, ``[texts, (tokens)]`` bytes, as the layer that ``build_inputs`` makes splits them."""
    plain = tf.strings.regex_replace(tf.strings.lower(tf.constant(list(texts), tf.string)), _PUNCTUATION_PATTERN, "")
    tokens = tf.strings.split(plain) if said.split == "words" else tf.strings.unicode_split(plain, "UTF-8")
    if said.encoding == "sequence" or said.ngrams == 1:
        return tokens
    return tf.strings.ngrams(tokens, ngram_width=tuple(range(1, said.ngrams + 1)), separator=" ")
