import math

import keras

from keras_flows.arguments import check_in, require
from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class Rescale(Bijection):
    """A fixed affine map: z = x * scale + offset; log_det = D log|scale|.

    The arguments are those of `keras.layers.Rescaling`. Shapes: any (batch, ...), unchanged.

    Raises:
        ValueError: if `scale` is zero, or one of the two not finite.

    Example:

    ```python
    layer = keras_flows.layers.Rescale(1 / 256, -0.5)
    layer(np.array([[0.0, 128.0]])).numpy().tolist()                 # [[-0.5, 0.0]]
    ```
    """

    def __init__(self, scale, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        check_in("(-inf, inf)", scale=scale, offset=offset)
        require(scale != 0, "Argument `scale` must not be zero", scale=scale)
        self.scale = scale
        self.offset = offset

    def forward_and_log_det(self, x, condition=None, training=False):
        return x * self.scale + self.offset, constant_log_det(self._log_det(x), x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return (z - self.offset) / self.scale, constant_log_det(-self._log_det(z), z)

    def _log_det(self, x):
        return math.prod(x.shape[1:]) * math.log(abs(self.scale))
