"""Linear maps of the last axis."""

import keras
from keras import ops


def by_rows(dense, x):
    """`dense(x)` of (batch, ..., channels), as of one long list of rows.

    Where the batch is unknown, Keras' `Dense` of three axes or more takes a general product, whose
    gradient XLA does not compile.
    """
    if len(x.shape) == 2:
        return dense(x)
    rows = dense(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(rows, (-1, *x.shape[1:-1], rows.shape[-1]))


def torch_dense(units_in, units, **options):
    """A `Dense` layer that starts as PyTorch's, whose weights are uniform within 1 / sqrt(n)."""
    limit = units_in**-0.5

    def uniform():  # one for each weight: called twice, an initializer repeats itself
        return keras.initializers.RandomUniform(-limit, limit)

    options = {"kernel_initializer": uniform(), "bias_initializer": uniform(), **options}
    return keras.layers.Dense(units, **options)
