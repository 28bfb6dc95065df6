"""Runs in a process of its own, as a script: loads a SavedModel with TensorFlow alone and says what it predicts.

It must not import refit or the builders: what serves has neither. (TensorFlow imports Keras by itself; nothing here uses it.)
Requests come as one JSON object a line on stdin (``saved_model``, ``inputs``, ``outputs``: paths; ``batch_sizes``;
``latency_calls``), answers go to stdout likewise.
"""

import importlib.abc
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORBIDDEN = frozenset({"refit", "models", "tasks", "flows", "deployments"})


class _Refuse(importlib.abc.MetaPathFinder):
    """Makes every import of what a server does not have fail."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{fullname} is not there where the model serves")
        return None


def answer(request: dict[str, Any], predict: Callable[..., Any]) -> dict[str, Any]:
    """Predict every row at each batch size, write the outputs of the first, and time single rows.

    Returns:
        ``batch_differences``: largest between batch sizes, as of ``measure_difference``; ``latency_p50_ms`` and ``latency_p99_ms``.
    """
    import numpy as np
    import tensorflow as tf

    with np.load(request["inputs"], allow_pickle=False) as stored:
        inputs = {name.removeprefix("of "): _without_last_sign(stored[name]) for name in stored.files}

    def call(start: int, size: int) -> dict[str, Any]:
        return dict(predict(**{name: tf.constant(values[start : start + size]) for name, values in inputs.items()}))

    rows = len(next(iter(inputs.values())))
    by_size = []
    for size in request["batch_sizes"]:
        parts = [call(start, size) for start in range(0, rows, size)]
        by_size.append({name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]})
    outputs = {name: values.astype("S") if values.dtype == object else values for name, values in by_size[0].items()}
    np.savez(request["outputs"], **outputs)  # type: ignore[arg-type]
    numeric = [name for name, values in outputs.items() if values.dtype.kind == "f"]
    apart = max((measure_difference(other[name], outputs[name]) for other in by_size[1:] for name in numeric), default=0.0)
    return {"batch_differences": apart, **_time_calls(lambda n: call(n % rows, 1), request["latency_calls"])}


def measure_difference(found: Any, expected: Any) -> float:  # noqa: ANN401 -- NumPy arrays
    """Largest difference of two numbers, as a share of the expected one, or of the usual one, where these are above 1.

    A small value of a quantity may be the difference of large ones, such as a mean and what the net subtracts: it is as exact as they are.
    """
    import numpy as np

    sizes = np.abs(expected)
    return float((np.abs(found - expected) / np.maximum(sizes, max(1, np.median(sizes)))).max())


def _without_last_sign(values: Any) -> Any:  # noqa: ANN401 -- a NumPy array
    """Strings without the sign that keeps zero bytes at their ends; other arrays as they are."""
    if values.dtype.kind != "S":
        return values
    strings = values.astype(object)
    strings[:] = [value[:-1] for value in values.tolist()]
    return strings


def _time_calls(call: Callable[[int], Any], count: int) -> dict[str, float]:
    for n in range(20):
        call(n)
    seconds = []
    for n in range(count):
        started = time.perf_counter()
        call(n)
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    return {"latency_p50_ms": seconds[count // 2] * 1e3, "latency_p99_ms": seconds[min(int(count * 0.99), count - 1)] * 1e3}


def serve() -> None:
    """Answer requests until stdin ends."""
    sys.meta_path.insert(0, _Refuse())
    import tensorflow as tf

    for line in sys.stdin:
        request = json.loads(line)
        try:
            model = tf.saved_model.load(request["saved_model"])
            reply = answer(request, model.signatures["serving_default"])
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
