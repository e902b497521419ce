import keras
from keras import ops

from keras_flows.arguments import check_integers, check_one_of
from keras_flows.bijection import Bijection, constant_log_det

ORDERS = ("cell", "channel")


@keras.saving.register_keras_serializable(package="keras_flows")
class Patchify(Bijection):
    """Turns patches of size x size cells into tokens, row by row; log_det = 0.

    Shapes: (batch, height, width, c) -> (batch, height width / size^2, c size^2).

    Args:
        size: of a patch, at least 1.
        order: of a token's channels. "cell": all channels of the top left cell
            first, then of the one to its right, row by row (Jet, arXiv:2412.15129). "channel": all
            cells of the first channel first (TarFlow, arXiv:2412.06329).

    Raises:
        ValueError: if `size` does not divide height and width.

    Example:

    ```python
    layer = keras_flows.layers.Patchify(4)
    layer(np.zeros((2, 8, 16, 3)))               # (2, 8, 48)
    ```
    """

    def __init__(self, size, *, order="cell", **kwargs):
        super().__init__(**kwargs)
        check_integers(1, size=size)
        check_one_of(ORDERS, order=order)
        self.size = int(size)  # Keras takes no integers of NumPy
        self.order = order

    def build(self, input_shape):
        self.compute_output_shape(input_shape)  # refuses what it cannot divide

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape
        if len(shape) != 3 or shape[0] % self.size or shape[1] % self.size:
            raise ValueError(
                "Patchify needs images (batch, height, width, channels) of height and width that "
                f"{self.size} divides. Received: shape {tuple(input_shape)}"
            )
        height, width, channels = shape
        return (batch, height * width // self.size**2, channels * self.size**2)

    def forward_and_log_det(self, x, condition=None, training=False):
        rows, columns, channels = self._grid()
        z = ops.reshape(x, (-1, rows, self.size, columns, self.size, channels))
        z = ops.transpose(z, (0, 1, 3, 2, 4, 5) if self.order == "cell" else (0, 1, 3, 5, 2, 4))
        return ops.reshape(z, (-1, *self.latent_shape)), constant_log_det(0, x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        rows, columns, channels = self._grid()
        if self.order == "cell":
            x = ops.reshape(z, (-1, rows, columns, self.size, self.size, channels))
            x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        else:
            x = ops.reshape(z, (-1, rows, columns, channels, self.size, self.size))
            x = ops.transpose(x, (0, 1, 4, 2, 5, 3))
        return ops.reshape(x, (-1, *self.event_shape)), constant_log_det(0, z)

    def _grid(self):
        height, width, channels = self.event_shape
        return height // self.size, width // self.size, channels
