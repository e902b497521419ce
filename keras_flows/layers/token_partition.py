import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import require
from keras_flows.layers.orders import add_order, permute
from keras_flows.layers.partition import Partition

CHANNELS = "channels"
KINDS = (
    CHANNELS,
    *("checkerboard", "checkerboard-inv"),
    *("vstripes", "vstripes-inv", "hstripes", "hstripes-inv"),
)


@keras.saving.register_keras_serializable(package="keras_flows")
class TokenPartition(Partition):
    """Halves of tokens (batch, tokens, channels), both (batch, tokens, channels / 2).

    Jet (Kolesnikov et al. 2024, arXiv:2412.15129), section 3. Half of the channels of all tokens,
    or all channels of half of the tokens, of which each is then two rows: because the halves are of
    one shape, couplings of both kinds are steps of one `Repeat`. Either is a permutation of all
    elements, and a constant weight.

    Args:
        kinds: one name, or several that the steps of a `Repeat` take in turn. "channels": of each
            token the same channels, half of them, drawn at random. Of the tokens, which form a
            grid of rows i and columns j: "checkerboard", those with i + j even are the first half;
            "vstripes", those with j even; "hstripes", those with i even. With "-inv" behind these
            names, the two halves change places.
        grid: (rows, columns) of the tokens, for all kinds but "channels".

    Raises:
        ValueError: for an unknown kind, or tokens that it cannot halve.

    Example: of eight steps, half change channels, half change tokens.

    ```python
    partition = keras_flows.layers.TokenPartition(("channels", "checkerboard"), grid=(8, 8))
    coupling = keras_flows.layers.AffineCoupling(keras_flows.networks.ViT(32), partition=partition)
    layer = keras_flows.layers.Repeat(coupling, depth=8)
    layer(np.zeros((2, 64, 12)))                 # (2, 64, 12)
    ```
    """

    def __init__(self, kinds, grid=None, **kwargs):
        super().__init__(**kwargs)
        in_turn = [kinds] if isinstance(kinds, str) else kinds
        require(
            np.iterable(in_turn) and len(in_turn) and all(kind in KINDS for kind in in_turn),
            f"Argument `kinds` must be one or several of {KINDS}",
            kinds=kinds,
        )
        self.kinds = tuple(in_turn)
        self.grid = grid

    def build(self, input_shape):
        if len(input_shape) != 3 or input_shape[2] % 2:
            raise ValueError(
                "TokenPartition needs tokens (batch, tokens, channels) of an even number of "
                f"channels. Received: shape {tuple(input_shape)}"
            )
        _, tokens, channels = input_shape
        self._half = (tokens, channels // 2)
        kind = self.kinds[self.step_index % len(self.kinds)]
        order = self._order_of(kind, tokens, channels)
        self.order = add_order(self, "order", order)
        self.back = add_order(self, "back", np.argsort(order))

    def split(self, x):
        x = permute(ops.reshape(x, (-1, self.order.shape[0])), self.order, self.back)
        first, second = tf.split(x, 2, axis=1)
        return ops.reshape(first, (-1, *self._half)), ops.reshape(second, (-1, *self._half))

    def merge(self, first, second):
        tokens, channels = self._half
        flat = [ops.reshape(half, (-1, tokens * channels)) for half in (first, second)]
        x = permute(ops.concatenate(flat, axis=1), self.back, self.order)
        return ops.reshape(x, (-1, tokens, 2 * channels))

    def compute_output_shape(self, input_shape):
        return ((input_shape[0], *self._half),) * 2

    def _order_of(self, kind, tokens, channels):
        """All elements, by their place among all: those of the first half, then of the second."""
        elements = np.arange(tokens * channels).reshape(tokens, channels)
        if kind == CHANNELS:
            halves = np.split(elements[:, _draw_order(channels)], 2, axis=1)
        else:
            is_second = self._are_second(kind, tokens)
            halves = elements[~is_second], elements[is_second]
        return np.concatenate([half.ravel() for half in halves])

    def _are_second(self, kind, tokens):
        """Which of the tokens are the second half, (tokens,)."""
        require(
            np.shape(self.grid) == (2,) and math.prod(self.grid) == tokens,
            f"Argument `grid` must be (rows, columns) of the {tokens} tokens, for {kind!r}",
            grid=self.grid,
        )
        pattern, _, inverse = kind.partition("-")
        row, column = np.indices(self.grid).reshape(2, -1)
        place = {"checkerboard": row + column, "vstripes": column, "hstripes": row}[pattern]
        require(
            2 * np.sum(place % 2) == tokens,
            f"Argument `kinds` must halve the tokens, as {kind!r} does not those of the grid",
            kinds=self.kinds,
            grid=self.grid,
        )
        return place % 2 != bool(inverse)


def _draw_order(size):
    """A random order of 0 .. size - 1, from Keras' global seed."""
    draw = keras.initializers.RandomUniform(0, 1)
    with tf.init_scope():
        return np.argsort(ops.convert_to_numpy(draw((size,))))
