"""The optimizer and the schedule of its learning rate: Keras's own, built from what the job says."""

from collections.abc import Callable
from typing import Any

import keras
from keras.optimizers import schedules

from refit.config import (
    OPTIMIZERS,
    CosineDecay,
    CosineRestartsDecay,
    ExponentialDecay,
    FitConfig,
    InverseTimeDecay,
    PiecewiseDecay,
    PolynomialDecay,
    StepDecay,
)


def build_optimizer(config: FitConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer with its schedule; a plateau's drops are a callback's work."""
    rate = build_schedule(config, steps_per_epoch)
    if isinstance(rate, dict):
        rate = schedules.deserialize(rate)
    made = getattr(keras.optimizers, OPTIMIZERS[config.optimizer.name].keras_class)
    return made(learning_rate=rate, **config.optimizer.arguments)


def build_schedule(config: FitConfig, steps_per_epoch: int) -> float | dict[str, Any]:
    """The learning rate, or the serialised Keras schedule that computes it from the number of a step, from 0."""
    build = _SCHEDULES.get(type(config.decay))
    if build is None:
        return config.optimizer.rate
    return dict(schedules.serialize(build(config.decay, config, steps_per_epoch)))


def _step(decay: StepDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    return schedules.ExponentialDecay(config.optimizer.rate, decay.every_epochs * steps, decay.factor, staircase=True)


def _piecewise(decay: PiecewiseDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    """Keras's boundaries are the last steps of the old value; the first step of an epoch is to take the new one."""
    last_steps = [epoch * steps - 1 for epoch in decay.boundaries]
    return schedules.PiecewiseConstantDecay(last_steps, [config.optimizer.rate * factor for factor in decay.factors])


def _exponential(decay: ExponentialDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    return schedules.ExponentialDecay(config.optimizer.rate, steps, decay.factor)


def _inverse_time(decay: InverseTimeDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    return schedules.InverseTimeDecay(config.optimizer.rate, decay.every_epochs * steps, decay.decay_rate, staircase=decay.staircase)


def _polynomial(decay: PolynomialDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    rate = config.optimizer.rate
    return schedules.PolynomialDecay(
        rate, (decay.decay_epochs or config.epochs) * steps, rate * decay.final_fraction, power=decay.power, cycle=decay.cycle
    )


def _cosine(decay: CosineDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    rate, all_steps = config.optimizer.rate, config.epochs * steps
    warmup_steps = decay.warmup_steps or round(decay.warmup_epochs * steps)
    if not warmup_steps:
        return schedules.CosineDecay(rate, all_steps, alpha=decay.final_fraction)
    rest = max(all_steps - warmup_steps, 1)
    return schedules.CosineDecay(0.0, rest, alpha=decay.final_fraction, warmup_target=rate, warmup_steps=warmup_steps)


def _cosine_restarts(decay: CosineRestartsDecay, config: FitConfig, steps: int) -> schedules.LearningRateSchedule:
    return schedules.CosineDecayRestarts(
        config.optimizer.rate, decay.first_epochs * steps, t_mul=decay.t_mul, m_mul=decay.m_mul, alpha=decay.final_fraction
    )


_SCHEDULES: dict[type, Callable[[Any, FitConfig, int], schedules.LearningRateSchedule]] = {
    StepDecay: _step,
    PiecewiseDecay: _piecewise,
    ExponentialDecay: _exponential,
    InverseTimeDecay: _inverse_time,
    PolynomialDecay: _polynomial,
    CosineDecay: _cosine,
    CosineRestartsDecay: _cosine_restarts,
}
