"""The devices of a fit: one, or several that share each batch, with the result of one.

Several are TensorFlow's ``MirroredStrategy``: each device computes the gradients of its rows, their sum steps the weights of all. What
Keras leaves out of that is here: rows are shared out so that no device is left without, a device's part of the loss counts as many rows
as it has, and gradients are summed before they are clipped or accumulated.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from refit.config import Job
from refit.errors import JobError
from refit.slicing import count_steps


@dataclass(frozen=True)
class Devices:
    """Names of the devices that take part, such as ``GPU:0``, and the strategy where there are several."""

    names: tuple[str, ...]
    strategy: tf.distribute.Strategy | None = None

    @property
    def how(self) -> Literal["mirrored"] | None:
        """The strategy's name in records."""
        return None if self.strategy is None else "mirrored"

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """Within it a model, its optimizer and their variables are made; nothing of it stays behind."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def share(self, batches: tf.data.Dataset | None, num_steps: int | None = None) -> Any:  # noqa: ANN401 -- TensorFlow's
        """Batches as ``fit`` takes them: each is cut into as many parts as there are devices, in order, as even as can be.

        Strings stay on the host, and with them all of their batch.

        Args:
            batches: of the whole fit; one device gets them as they are.
            num_steps: how many batches there are; by default without end.
        """
        if self.strategy is None or batches is None:
            return batches
        count = self.strategy.num_replicas_in_sync
        cardinality = tf.data.INFINITE_CARDINALITY if num_steps is None else num_steps * count
        parts = batches.flat_map(lambda *batch: _cut(batch, count)).apply(tf.data.experimental.assert_cardinality(cardinality))
        has_strings = any(spec.dtype == tf.string for spec in tf.nest.flatten(batches.element_spec))
        options = tf.distribute.InputOptions(experimental_fetch_to_device=not has_strings)
        return self.strategy.distribute_datasets_from_function(lambda _: parts, options)


ONE_DEVICE = Devices(())


def choose_devices(job: Job, num_rows: int) -> Devices:
    """One GPU, else the CPU; or all GPUs, else all logical CPUs.

    GPUs take memory as they need it and, where the job wants that, compute the same twice.

    Args:
        job: ``fit.devices`` and what goes with it.
        num_rows: of an epoch.

    Raises:
        JobError: a batch has fewer rows than there are devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus and job.fit.deterministic:
        tf.config.experimental.enable_op_determinism()
    kind = "GPU" if gpus else "CPU"
    found = tf.config.list_logical_devices(kind) if job.fit.devices == "all" else ()
    if len(found) < 2:
        return Devices((f"{kind}:0",))
    _check_rows(job, num_rows, len(found))
    names = tuple(f"{kind}:{number}" for number in range(len(found)))
    # Sums on the first device, in one order. TensorFlow's own choice, collectives, remembers the shapes of the process's fits before.
    sums = tf.distribute.ReductionToOneDevice()
    return Devices(names, tf.distribute.MirroredStrategy([device.name for device in found], sums))


def _check_rows(job: Job, num_rows: int, num_devices: int) -> None:
    """See that each device has a row of each batch: statistics of none, such as batch norm's, are no numbers."""
    size, drop_remainder = job.fit.batch_size, job.batches.drop_remainder
    last = num_rows - (count_steps(num_rows, size, drop_remainder=drop_remainder) - 1) * size
    smallest = min(size, last)
    if smallest < num_devices:
        raise JobError(
            f"{'the last batch of an epoch' if last < size else 'a batch'} is too small to be shared.",
            where="fit.devices",
            expected=f"a row for each of {num_devices} devices",
            received=str(smallest),
            remedy="Set batches.drop_remainder: true, another fit.batch_size, or fit.devices: auto.",
        )


def _cut(batch: Any, count: int) -> tf.data.Dataset:  # noqa: ANN401 -- tensors
    num_rows = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.int64)

    def part(number: Any) -> Any:  # noqa: ANN401 -- tensors
        rows = slice(number * num_rows // count, (number + 1) * num_rows // count)
        return tf.nest.map_structure(lambda values: values[rows], batch)

    return tf.data.Dataset.range(count).map(part)


@contextlib.contextmanager
def releasing(model: keras.Model) -> Iterator[None]:
    """After the block the memory of a model's variables, its optimizer's and its metrics' is free; nothing can be done with it then.

    Functions that TensorFlow has traced keep their variables for as long as the process lives, model or not.

    Source: https://github.com/keras-team/tf-keras/issues/286
    """
    try:
        yield
    finally:
        for variable in (*model.variables, *model.optimizer.variables, *model.metrics_variables):
            for held in getattr(variable.value, "values", [variable.value]):  # one on each device
                tf.raw_ops.AssignVariableOp(resource=held.handle, value=tf.zeros([0], held.dtype), validate_shape=False)


# ---- what is shared


def shared_loss(loss: keras.losses.Loss) -> Callable[[Any, Any], Any]:
    """A loss whose gradient counts each row of a batch alike, however many a device has; its values stay as they are.

    Keras takes the mean over a device's rows, and then over devices.
    """

    def shared(y_true: Any, y_pred: Any) -> Any:  # noqa: ANN401 -- tensors
        values = loss.call(y_true, y_pred)
        context = tf.distribute.get_replica_context()
        return values if context is None else _weigh_gradient(values, _share_of_rows(context, values))

    return shared


def _share_of_rows(context: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow's
    """A device's rows by those that it would have if all had as many."""
    num_rows = tf.cast(tf.shape(values)[0], values.dtype)
    return num_rows * context.num_replicas_in_sync / context.all_reduce(tf.distribute.ReduceOp.SUM, num_rows)


@tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow is untyped
def _weigh_gradient(values: Any, weight: Any) -> Any:  # noqa: ANN401 -- tensors
    return values, lambda upstream: (upstream * weight, None)


class _Summing:
    """An optimizer that sums gradients over devices first: Keras clips and accumulates each device's own, and sums what that gives."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:  # noqa: ANN401 -- Keras's signature
        context = tf.distribute.get_replica_context()
        if context is not None:
            known = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, [grad for grad in grads if grad is not None]))
            grads = [None if grad is None else next(known) for grad in grads]
        super().apply(grads, trainable_variables)  # type: ignore[misc]  # an optimizer's

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:  # noqa: ANN401 -- Keras's; it would sum them again
        return grads_and_vars


def summing_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The same optimizer for several devices. Source: keras.src.backend.tensorflow.optimizer, Keras 3.15."""
    kind = type(optimizer)
    made: Any = type(kind.__name__, (_Summing, kind), {})
    return made.from_config(optimizer.get_config())


def build_metric_variables(model: keras.Model, element_spec: Any) -> None:  # noqa: ANN401 -- TensorFlow's
    """Make the variables of a model's metrics; Keras would take the mean of a batch over devices for that, which strings do not have.

    Source: keras.src.backend.tensorflow.trainer, Keras 3.15.

    Args:
        model: compiled under a strategy.
        element_spec: of a whole batch.
    """
    model._maybe_symbolic_build(data_batch=element_spec)
    model._maybe_symbolic_build = lambda **_: None


def copies(strategy: tf.distribute.Strategy, variables: Iterable[Any]) -> list[Any]:
    """What each device holds of variables, where that may differ: seeds, batch norm's statistics, what metrics have counted."""
    return [copy for variable in variables for copy in _copies(strategy, variable)]


def _copies(strategy: tf.distribute.Strategy, variable: Any) -> tuple[Any, ...]:  # noqa: ANN401 -- Keras's variable
    is_same = variable.trainable or strategy.num_replicas_in_sync == 1
    return (variable,) if is_same else tuple(strategy.experimental_local_results(variable.value))
