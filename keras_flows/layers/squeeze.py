import keras
import numpy as np
from keras import ops

from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.inputs import check_one_of

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
    """Turns 2x2 blocks of cells into channels; log_det = 0.

    RealNVP, section 3.6. Shapes: (batch, height, width, c) -> (batch, height/2, width/2, 4c).

    Args:
        order: "channel": cell (dy, dx) of channel c goes to channel 4c + 2dy + dx, as in the code
            of both Glow and RealNVP (and unlike `tf.nn.space_to_depth`). "cell": all channels of
            the top left cells first, then of the bottom right, top right, bottom left, RealNVP's
            ordered squeeze.

    Raises:
        ValueError: if height or width is odd.
    """

    def __init__(self, *, order="channel", **kwargs):
        super().__init__(**kwargs)
        check_one_of(ORDERS, order=order)
        self.order = order

    def build(self, input_shape):
        self.compute_output_shape(input_shape)  # refuses what it cannot halve

    def compute_output_shape(self, input_shape):
        batch, *shape = input_shape
        if len(shape) != 3 or shape[0] % 2 or shape[1] % 2:
            raise ValueError(
                "Squeeze needs images (batch, height, width, channels) of even height and width. "
                f"Received: shape {tuple(input_shape)}"
            )
        height, width, channels = shape
        return (batch, height // 2, width // 2, 4 * channels)

    def forward_and_log_det(self, x, condition=None, training=False):
        height, width, channels = x.shape[1:]
        z = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
        z = ops.transpose(z, (0, 1, 3, 5, 2, 4))
        z = ops.reshape(z, (-1, height // 2, width // 2, 4 * channels))
        if self.order == "cell":
            z = ops.take(z, np.array(cell_order(channels)), axis=-1)
        return z, constant_log_det(0, x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        height, width, channels = z.shape[1:]
        if self.order == "cell":
            z = ops.take(z, np.argsort(cell_order(channels // 4)), axis=-1)
        x = ops.reshape(z, (-1, height, width, channels // 4, 2, 2))
        x = ops.transpose(x, (0, 1, 4, 2, 5, 3))
        return ops.reshape(x, (-1, 2 * height, 2 * width, channels // 4)), constant_log_det(0, z)
