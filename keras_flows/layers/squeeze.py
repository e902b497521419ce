import keras
import numpy as np
from keras import ops

from keras_flows.arguments import check_integers, check_one_of, require
from keras_flows.bijection import Bijection, constant_log_det

ORDERS = ("channel", "cell")
# The order of the cells (dy, dx) of a 2x2 block in RealNVP's ordered squeeze: the first two keep
# the chessboard's one colour, the last two the other.
CELLS = ((0, 0), (1, 1), (0, 1), (1, 0))


def cell_order(channels):
    """Where the channels of `Squeeze(order="cell")` stand in that of order="channel".

    channel-ordered[..., cell_order(channels)] is cell-ordered; `channels` counts those before.
    """
    return [c * 4 + dy * 2 + dx for dy, dx in CELLS for c in range(channels)]


@keras.saving.register_keras_serializable(package="keras_flows")
class Squeeze(Bijection):
    """Turns blocks of size x size cells into channels; log_det = 0.

    RealNVP, section 3.6, where the size is 2. Shapes: (batch, height, width, c) ->
    (batch, height / size, width / size, c size^2).

    Args:
        size: of a block, at least 2.
        order: "channel": cell (dy, dx) of channel c goes to channel (c size + dy) size + dx, as in
            the code of both Glow and RealNVP (and unlike `tf.nn.space_to_depth`). "cell", for
            size 2: all channels of the top left cells first, then of the bottom right, top right,
            bottom left, RealNVP's ordered squeeze.

    Raises:
        ValueError: if `size` does not divide height and width, or does not go with `order`.

    Example:

    ```python
    layer = keras_flows.layers.Squeeze()
    layer(np.zeros((2, 8, 8, 3)))                # (2, 4, 4, 12)
    ```
    """

    def __init__(self, size=2, *, order="channel", **kwargs):
        super().__init__(**kwargs)
        check_integers(2, size=size)
        check_one_of(ORDERS, order=order)
        require(
            order == "channel" or size == 2,
            'Argument `order`="cell" is for blocks of size 2',
            order=order,
            size=size,
        )
        self.size = size
        self.order = order

    def build(self, input_shape):
        self.compute_output_shape(input_shape)  # refuses what it cannot divide

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape
        if len(shape) != 3 or shape[0] % self.size or shape[1] % self.size:
            sizes = "even height and width"
            if self.size > 2:
                sizes = f"height and width that {self.size} divides"
            raise ValueError(
                f"Squeeze needs images (batch, height, width, channels) of {sizes}. "
                f"Received: shape {tuple(input_shape)}"
            )
        height, width, channels = shape
        return (batch, height // self.size, width // self.size, channels * self.size**2)

    def forward_and_log_det(self, x, condition=None, training=False):
        height, width, channels = x.shape[1:]
        z = ops.reshape(
            x, (-1, height // self.size, self.size, width // self.size, self.size, channels)
        )
        z = ops.transpose(z, (0, 1, 3, 5, 2, 4))
        z = ops.reshape(z, (-1, *self.compute_output_shape(x.shape)[1:]))
        if self.order == "cell":
            z = ops.take(z, np.array(cell_order(channels)), axis=-1)
        return z, constant_log_det(0, x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        height, width, channels = z.shape[1:]
        size, channels = self.size, channels // self.size**2
        if self.order == "cell":
            z = ops.take(z, np.argsort(cell_order(channels)), axis=-1)
        x = ops.reshape(z, (-1, height, width, channels, size, size))
        x = ops.transpose(x, (0, 1, 4, 2, 5, 3))
        return ops.reshape(x, (-1, size * height, size * width, channels)), constant_log_det(0, z)
