import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.bijection import Bijection, check_bijections


@keras.saving.register_keras_serializable(package="keras_flows")
class MultiScale(Bijection):
    """Levels, after each of which half of the channels leave for the latent.

    RealNVP, section 3.6. After each level but the last, the first half of the channels goes on and
    the second half is factored out. The latent, of shape (batch, D), is what was factored out,
    level by level, and at last the whole output of the last level, each flattened. log_det is the
    sum of the levels'.

    A prior of the factored-out half that is learned and depends on the other half (Glow) is an
    `AffineCoupling` at the end of a level; a learned prior of the last level is a `LearnedPrior`.

    Args:
        levels: list of bijections that keep the rank of their input.

    Attributes:
        latent_sizes: how many dimensions of the latent each level has, once it is built.

    Raises:
        ValueError: if the output of a level cannot be divided in two.

    Example:

    ```python
    def level():
        coupling = keras_flows.layers.AffineCoupling(keras_flows.networks.ConvNet(16))
        return keras_flows.layers.Chain([keras_flows.layers.Squeeze(), coupling])

    layer = keras_flows.layers.MultiScale([level(), level()])
    layer(np.zeros((2, 8, 8, 3)))                # (2, 192)
    ```
    """

    def __init__(self, levels, **kwargs):
        super().__init__(**kwargs)
        self.levels = check_bijections(levels=levels)

    @property
    def layers(self):
        """The levels, where Keras' `summary(expand_nested=True)` looks for them."""
        return self.levels

    def build(self, input_shape):
        self._shapes = []  # of each level's output, without the batch
        for level in self.levels:
            level.build_or_check(input_shape)
            *_, channels = shape = tuple(level.compute_output_shape(input_shape))
            self._shapes.append(shape[1:])
            if channels % 2 and level is not self.levels[-1]:
                raise ValueError(
                    f"Half of the channels of each level but the last are factored out, so their "
                    f"number must be even. Received: shape {shape} after level {level.name!r}"
                )
            input_shape = (*shape[:-1], channels // 2)
        *factored_out, last = [int(np.prod(shape)) for shape in self._shapes]
        self.latent_sizes = [*(size // 2 for size in factored_out), last]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], int(np.prod(input_shape[1:])))

    def forward_and_log_det(self, x, condition=None, training=False):
        latents, total = [], 0.0
        for level in self.levels:
            x, log_det = level.forward_and_log_det(x, condition, training)
            total = total + log_det
            if level is not self.levels[-1]:
                x, latent = ops.split(x, 2, axis=-1)
                latents.append(_flatten(latent))
        return ops.concatenate([*latents, _flatten(x)], axis=-1), total

    def inverse_and_log_det(self, z, condition=None, training=False):
        *latents, x = tf.split(z, self.latent_sizes, axis=-1)
        x, total = ops.reshape(x, (-1, *self._shapes[-1])), 0.0
        for level, shape in zip(reversed(self.levels), reversed(self._shapes), strict=True):
            if level is not self.levels[-1]:
                half = (-1, *shape[:-1], shape[-1] // 2)
                x = ops.concatenate([x, ops.reshape(latents.pop(), half)], axis=-1)
            x, log_det = level.inverse_and_log_det(x, condition, training)
            total = total + log_det
        return x, total


def _flatten(x):
    return ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))
