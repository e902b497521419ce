import math

import keras
import tensorflow as tf

from keras_flows.arguments import check_integers
from keras_flows.networks.attention import _Attention, check_heads, check_tokens
from keras_flows.networks.dense import by_rows
from keras_flows.serialization import ConstructorConfig

EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="keras_flows")
class ViT(ConstructorConfig, keras.layers.Layer):
    """A vision transformer: tokens (batch, tokens, channels) -> (batch, tokens, width).

    Dosovitskiy et al. 2020 (arXiv:2010.11929), as it is the network of Jet (Kolesnikov et al. 2024,
    arXiv:2412.15129, released code): a linear map and a learned vector for each place; then blocks,
    each of which adds attention of the normalised tokens, and then an MLP of them, 4 width wide,
    with a GELU by its tanh formula; a last normalisation. Nothing is dropped.

    As a second argument it takes a condition of tokens (batch, others, features), of any number:
    before the blocks the tokens look at it, to no effect at the start.

    Args:
        width: of the tokens; `num_heads` divides it.
        num_blocks: number of blocks.
        num_heads: of the attention.

    Raises:
        ValueError: for arguments out of range, heads that do not divide the width, or inputs that
            are no tokens.

    Example:

    ```python
    network = keras_flows.networks.ViT(64, num_blocks=2)
    network(np.zeros((2, 16, 12)))               # (2, 16, 64)
    ```
    """

    def __init__(self, width, num_blocks=1, *, num_heads=4, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_blocks=num_blocks, num_heads=num_heads)
        check_heads(num_heads, width)
        self.width = width = int(width)  # Keras takes no integers of NumPy
        self.num_blocks = num_blocks
        self.num_heads = num_heads

        def norm():
            return keras.layers.LayerNormalization(epsilon=EPSILON, dtype=self.dtype_policy)

        def dense(units, **options):
            return keras.layers.Dense(units, dtype=self.dtype_policy, **options)

        def near_zero():  # one for each layer: called twice, an initializer repeats itself
            return keras.initializers.RandomNormal(stddev=1e-6)

        self._input_layer = dense(width, kernel_initializer="lecun_normal")
        self._blocks = [
            [
                norm(),
                _Attention(width, num_heads, dtype=self.dtype_policy),
                norm(),
                dense(4 * width, bias_initializer=near_zero()),
                dense(width, bias_initializer=near_zero()),
            ]
            for _ in range(num_blocks)
        ]
        self._output_norm = norm()
        self._condition_attention = None

    def build(self, inputs_shape, condition_shape=None):
        check_tokens(self, inputs_shape)
        self._input_layer.build(inputs_shape)
        shape = self.compute_output_shape(inputs_shape)
        self.places = self.add_weight(
            name="places",
            shape=shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=self.width**-0.5),
        )
        if condition_shape is not None:
            self._condition_attention = _Attention(
                self.width, self.num_heads, output_initializer="zeros", dtype=self.dtype_policy
            )
            self._condition_attention.build(shape, condition_shape)
        for *layers, last in self._blocks:
            for layer in layers:
                layer.build(shape)
            last.build((*shape[:-1], 4 * self.width))
        self._output_norm.build(shape)

    def compute_output_shape(self, inputs_shape, condition_shape=None):
        return (*inputs_shape[:-1], self.width)

    def call(self, inputs, condition=None):
        x = by_rows(self._input_layer, inputs) + self.places
        if self._condition_attention is not None:
            x = x + self._condition_attention(x, condition)
        for norm_1, attention, norm_2, wide, narrow in self._blocks:
            x = x + attention(norm_1(x))
            x = x + by_rows(narrow, _gelu(by_rows(wide, norm_2(x))))
        return self._output_norm(x)


SLOPE = 2 * math.sqrt(2 / math.pi)
CUBE = 0.044715 * SLOPE


@tf.custom_gradient
def _gelu(x):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which is x sigmoid of twice the same.

    TensorFlow's and Keras' round the numbers to single precision. The gradient is written out
    because theirs remembers each of its steps.
    """
    share = tf.sigmoid(x * (SLOPE + CUBE * tf.square(x)))

    def gradient(dy):
        slope = SLOPE + 3 * CUBE * tf.square(x)
        return dy * share * (1 + x * (1 - share) * slope)

    return x * share, gradient
