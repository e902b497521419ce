import keras
import numpy as np
from keras import ops

from keras_flows.arguments import require
from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class Permute(Bijection):
    """A fixed permutation of the channels (last axis): z[..., i] = x[..., permutation[i]].

    log_det = 0. Shapes: (batch, D), (batch, tokens, channels) or (batch, height, width, channels),
    unchanged.

    Args:
        permutation: the indices 0, ..., channels - 1 in their new order; None reverses.

    Raises:
        ValueError: if it is not a permutation, or not of the input's channels.

    Example:

    ```python
    layer = keras_flows.layers.Permute([2, 0, 1])
    layer(np.array([[1.0, 2.0, 3.0]])).numpy().tolist()              # [[3.0, 1.0, 2.0]]
    ```
    """

    def __init__(self, permutation=None, **kwargs):
        super().__init__(**kwargs)
        if permutation is not None:
            permutation = [int(i) for i in permutation]
            require(
                sorted(permutation) == list(range(len(permutation))),
                "Argument `permutation` must hold each index from 0 once",
                permutation=permutation,
            )
        self.permutation = permutation

    def build(self, input_shape):
        if self.permutation is not None and len(self.permutation) != input_shape[-1]:
            raise ValueError(
                f"Argument `permutation` must have one index for each of {input_shape[-1]} "
                f"channels. Received: {len(self.permutation)} indices"
            )

    def forward_and_log_det(self, x, condition=None, training=False):
        return self._take(x, self.permutation), constant_log_det(0, x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        inverse = None if self.permutation is None else np.argsort(self.permutation)
        return self._take(z, inverse), constant_log_det(0, z)

    def _take(self, x, indices):
        if indices is None:
            return ops.flip(x, axis=-1)
        return ops.take(x, np.asarray(indices), axis=-1)
