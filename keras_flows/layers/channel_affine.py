"""Bijections that mix the channels of each cell by weights alone, and runs of them as one."""

import functools
import math
from typing import NamedTuple

import tensorflow as tf
from keras import ops

from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.repeatable import Repeatable


class Affine(NamedTuple):
    """y = x matrix + bias for a row x of channels, with log |det matrix|."""

    matrix: tf.Tensor
    bias: tf.Tensor
    log_det: tf.Tensor

    def then(self, other):
        """This map, and `other` after it."""
        return Affine(
            ops.matmul(self.matrix, other.matrix),
            tf.linalg.matvec(other.matrix, self.bias, transpose_a=True) + other.bias,
            self.log_det + other.log_det,
        )

    def __call__(self, x):
        """(y, log_det) for x of shape (batch, ..., channels)."""
        y = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), self.matrix)
        y = ops.reshape(tf.nn.bias_add(y, self.bias), (-1, *x.shape[1:]))
        return y, constant_log_det(math.prod(x.shape[1:-1]) * self.log_det, x)


class AffineMap(Repeatable):
    """Computes both directions by an `Affine` made of the weights alone."""

    def affine(self, inverse):
        """The map of each cell, or its inverse, as an `Affine`."""
        raise NotImplementedError

    def precompute(self, inverse):
        return self.affine(inverse)

    def precomputed_weights(self):
        return self.variables

    def forward_and_log_det(self, x, condition=None, training=False):
        return self.precomputed(inverse=False)(x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return self.precomputed(inverse=True)(z)


class ChannelAffine(AffineMap, Bijection):
    """A bijection that is one affine map of the channels, the same in each cell.

    A subclass writes `affine`. A `Chain` computes a run of such layers as a single map.
    """


class Run(AffineMap):
    """Consecutive `ChannelAffine` layers as the one affine map that they amount to."""

    def __init__(self, layers):
        self.layers = layers
        self.variables = [variable for layer in layers for variable in layer.variables]

    def affine(self, inverse):
        layers = reversed(self.layers) if inverse else self.layers
        return functools.reduce(Affine.then, [layer.affine(inverse) for layer in layers])


def join_runs(layers):
    """The layers, with each run of two or more `ChannelAffine` as a `Run`."""
    joined = []
    for layer in layers:
        if isinstance(layer, ChannelAffine) and joined and isinstance(joined[-1], Run):
            joined[-1] = Run([*joined[-1].layers, layer])
        elif isinstance(layer, ChannelAffine):
            joined.append(Run([layer]))
        else:
            joined.append(layer)
    return [j.layers[0] if isinstance(j, Run) and len(j.layers) == 1 else j for j in joined]
