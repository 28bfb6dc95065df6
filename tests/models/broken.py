"""Builders that break the contract, each in one way."""

import keras
import numpy as np
import tensorflow as tf


class Changed(keras.layers.Layer):
    """What a rule makes of the input."""

    def __init__(self, rule, **kwargs):
        super().__init__(**kwargs)
        self.rule = rule
        self.factor = 1.0
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=None):
        return self.rule(self, inputs, training)


def built(features, target, rule):
    return keras.Model(features.inputs, target.head(Changed(rule)(features.vector())))


def build_half(features, target):
    return keras.Model(features.inputs, keras.layers.Dense(target.units, activation="softmax", dtype="float16")(features.vector()))


def build_logits(features, target):
    return keras.Model(features.inputs, keras.layers.Dense(target.units)(features.vector()))


def build_nan(features, target):
    return built(features, target, lambda _layer, x, _training: x * np.float32("nan"))


def build_drawing(features, target):
    return built(features, target, lambda _layer, x, _training: x + tf.random.normal(tf.shape(x)))


def build_counting(features, target):
    def count(layer, x, training):
        layer.count.assign_add(1.0)
        return x

    return built(features, target, count)


def build_centred(features, target):
    return built(features, target, lambda _layer, x, _training: x - keras.ops.mean(x, axis=0, keepdims=True))


def build_stuck(features, target):
    model = built(features, target, lambda _layer, x, _training: x)
    output = Changed(lambda _layer, x, _training: keras.ops.stop_gradient(x) + 0 * x)(model.output)
    return keras.Model(features.inputs, output)


def build_eager(features, target):
    return built(features, target, lambda _layer, x, training: x * float(x.numpy().max()) if training else x)


def build_with_state(features, target):
    def grow(layer, x, training):
        if training:
            layer.factor *= 2
        return x * layer.factor

    return built(features, target, grow)


def build_lambda(features, target):
    return keras.Model(features.inputs, target.head(keras.layers.Lambda(lambda x: 2 * x)(features.vector())))


class TwoParts(keras.Model):
    """Its step forgets that rows may have weights."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x, y))


def build_for_two_parts(features, target):
    return TwoParts(features.inputs, target.head(features.vector()))


def make_no_callback():
    """What fails before there is a callback."""
    raise TypeError("no")
