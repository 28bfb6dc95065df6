"""A linear model: the baseline that every other model must beat."""

import keras

from models.layers import PlainDense
from models.options import check_not_negative
from refit.features import Features, Target


def build_model(features: Features, target: Target, *, l1: float = 0.0, l2: float = 0.0) -> keras.Model:
    """Build a linear or logistic regression over the vector of all features.

    Args:
        features: any.
        target: gives the width and the activation of the output.
        l1: factor of the absolute weights in the loss.
        l2: factor of the squared weights in the loss.
    """
    check_not_negative(l1=l1, l2=l2)
    regularizer = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
    # Float32 under any precision: nothing is saved on one layer. Convex, so it may begin with zeros.
    logits = PlainDense(target.units, kernel_initializer="zeros", kernel_regularizer=regularizer, dtype="float32", name="logits")
    return keras.Model(features.inputs, target.finish(logits(features.vector())), name="linear")
