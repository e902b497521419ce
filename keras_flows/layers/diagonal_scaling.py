import keras
from keras import ops

from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class DiagonalScaling(Bijection):
    """A learned factor for each element: z = x exp(log_scale); log_det = sum(log_scale).

    NICE, section 3.3. The identity at the start. Shapes: any (batch, ...), unchanged.

    Example:

    ```python
    layer = keras_flows.layers.DiagonalScaling()
    layer(np.ones((2, 3)))                       # (2, 3)
    layer.log_scale.shape                        # (3,)
    ```
    """

    def build(self, input_shape):
        self.log_scale = self.add_weight(
            name="log_scale", shape=input_shape[1:], initializer="zeros"
        )

    def forward_and_log_det(self, x, condition=None, training=False):
        return x * ops.exp(self.log_scale), constant_log_det(ops.sum(self.log_scale), x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return z * ops.exp(-self.log_scale), constant_log_det(-ops.sum(self.log_scale), z)
