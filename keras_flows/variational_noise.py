"""Variational dequantisation: noise that goes where in its bin an image is likeliest."""

import math

import keras
from keras import ops

from keras_flows import layers
from keras_flows.arguments import require
from keras_flows.networks import ConvNet

DEPTH, WIDTH = 4, 32
# The sigmoid of 1.702 times a normal number is uniform to a hundredth: as noise is at the start.
STEEPNESS = 1.702


class VariationalNoise(keras.layers.Layer):
    """Noise u in (0, 1) of images x, and how likely it is, log q(u | x).

    log P(x) >= E[log p(x + u) - log q(u | x)], u drawn from any q: Flow++ (Ho et al. 2019,
    arXiv:1902.00275), section 3.1. Here q is a small flow from u to normal numbers: a logit, a
    squeeze, and steps of a 1x1 convolution and an affine coupling that sees what a network makes
    of x.
    """

    def __init__(self, input_shape, bits, policy, **kwargs):
        super().__init__(dtype=policy.variable_dtype, **kwargs)
        height, width, _ = input_shape
        require(
            height % 2 == width % 2 == 0,
            "Argument `dequantization`='variational' is for images of even height and width",
            input_shape=tuple(input_shape),
        )
        self._bins = 2**bits
        exact = {"dtype": policy.variable_dtype}
        self._squeeze = layers.Squeeze(**exact)
        space = self._squeeze.compute_output_shape((None, *input_shape))[1:3]
        self._features = ConvNet(WIDTH, dtype=policy)
        step = layers.Chain(
            [
                layers.InvertibleConv1x1(**exact),
                layers.AffineCoupling(
                    ConvNet(WIDTH, dtype=policy),
                    scale="tanh",
                    condition_shape=(*space, WIDTH),
                    **exact,
                ),
            ],
            **exact,
        )
        self.bijection = layers.Chain(
            [
                layers.Logit(0.0, **exact),
                layers.Rescale(1 / STEEPNESS, **exact),
                layers.Squeeze(**exact),
                layers.Repeat(step, DEPTH, **exact),
                layers.Flatten(**exact),
            ],
            **exact,
        )

    def build(self, input_shape):
        self._features.build(self._squeeze.compute_output_shape(input_shape))
        self.bijection.build(input_shape)

    def call(self, bins, normal, training=False):
        """(u, log q(u | x)) of bins (batch, height, width, channels) and normals (batch, D)."""
        features = self.features_of(bins, training)
        u, log_det = self.bijection.inverse_and_log_det(normal, features, training)
        return u, ops.sum(_log_normal(normal), axis=-1) - log_det

    def features_of(self, bins, training=False):
        """What the couplings see of an image, (batch, height / 2, width / 2, features)."""
        squeezed, _ = self._squeeze.forward_and_log_det(bins / self._bins - 0.5)
        return ops.cast(self._features(squeezed, training=training), self.compute_dtype)


def _log_normal(x):
    return -0.5 * (ops.square(x) + math.log(2 * math.pi))
