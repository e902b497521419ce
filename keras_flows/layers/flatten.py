import math

import keras
from keras import ops

from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class Flatten(Bijection):
    """Flattens all but the first axis; log_det = 0. Shapes: (batch, ...) -> (batch, D).

    Example:

    ```python
    layer = keras_flows.layers.Flatten()
    z = layer(np.zeros((2, 4, 4, 3)))
    z.shape                                      # (2, 48)
    layer.inverse(z)                             # (2, 4, 4, 3)
    ```
    """

    def compute_output_shape(self, input_shape):
        return (input_shape[0], math.prod(input_shape[1:]))

    def forward_and_log_det(self, x, condition=None, training=False):
        return ops.reshape(x, (-1, *self.latent_shape)), constant_log_det(0, x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return ops.reshape(z, (-1, *self.event_shape)), constant_log_det(0, z)
