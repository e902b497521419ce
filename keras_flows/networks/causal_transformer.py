import math

import keras
import tensorflow as tf

from keras_flows.arguments import check_integers
from keras_flows.networks.attention import _CausalAttention, check_heads, check_tokens
from keras_flows.networks.dense import by_rows, torch_dense
from keras_flows.serialization import ConstructorConfig

EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_flows")
class CausalTransformer(ConstructorConfig, keras.layers.Layer):
    """A transformer of which token i sees tokens 0 .. i: (batch, tokens, width) of tokens.

    The network of TarFlow (Zhai et al. 2024, arXiv:2412.06329, released code): a linear map of the
    tokens (batch, tokens, channels), a learned vector for each place and, of a condition
    (batch, features), a linear map, the same for all tokens; then layers, each of which adds
    attention of the normalised tokens, and then an MLP of them, 4 width wide, with the exact GELU.

    `positions`, (tokens,) integers, are the places that tokens come from, if they are in another
    order. One token at a time: from `empty_cache(rows)` on,
    `network(token, condition, positions, cache=cache, index=i)` of (batch, 1, channels) gives what
    token i would have among all, (batch, 1, width), and the cache for the next.

    Args:
        width: of the tokens; `num_heads` divides it.
        num_layers: number of layers.
        num_heads: of the attention. The paper's have width / 64.

    Raises:
        ValueError: for arguments out of range, heads that do not divide the width, or inputs that
            are no tokens.

    Example:

    ```python
    network = keras_flows.networks.CausalTransformer(64, num_layers=2)
    network(np.zeros((2, 16, 12)))               # (2, 16, 64)
    ```
    """

    def __init__(self, width, num_layers=1, *, num_heads=4, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_layers=num_layers, num_heads=num_heads)
        check_heads(num_heads, width)
        self.width = width = int(width)  # Keras takes no integers of NumPy
        self.num_layers = num_layers
        self.num_heads = num_heads

        def norm():
            return keras.layers.LayerNormalization(epsilon=EPSILON, dtype=self.dtype_policy)

        def dense(units_in, units):
            return torch_dense(units_in, units, dtype=self.dtype_policy)

        def attention():
            return _CausalAttention(width, num_heads, make_dense=dense, dtype=self.dtype_policy)

        self._input_layer = None
        self._blocks = [
            [norm(), attention(), norm(), dense(width, 4 * width), dense(4 * width, width)]
            for _ in range(num_layers)
        ]

    def build(self, inputs_shape, condition_shape=None):
        check_tokens(self, inputs_shape)
        self._input_layer = torch_dense(inputs_shape[-1], self.width, dtype=self.dtype_policy)
        self._input_layer.build(inputs_shape)
        shape = self.compute_output_shape(inputs_shape)
        self.places = self.add_weight(
            name="places", shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.01)
        )
        if condition_shape is not None:
            self.condition_vectors = self.add_weight(
                name="condition_vectors",
                shape=(condition_shape[-1], self.width),
                initializer=keras.initializers.RandomNormal(stddev=0.01),
            )
        for *layers, last in self._blocks:
            for layer in layers:
                layer.build(shape)
            last.build((*shape[:-1], 4 * self.width))

    def compute_output_shape(self, inputs_shape, condition_shape=None):
        return (*inputs_shape[:-1], self.width)

    def empty_cache(self, rows):
        """For so many rows, a number or a tensor: the keys and values of each layer, once built."""
        shape = (rows, self.num_heads, self.places.shape[0], self.width // self.num_heads)
        return [[tf.zeros(shape, self.compute_dtype) for _ in range(2)] for _ in self._blocks]

    def call(self, inputs, condition=None, positions=None, cache=None, index=None):
        places = tf.convert_to_tensor(self.places)
        if positions is not None:  # not gathered, of which the gradient is sparse
            places = tf.one_hot(positions, places.shape[0], dtype=places.dtype) @ places
        x = by_rows(self._input_layer, inputs) + places
        if condition is not None:
            x = x + (condition @ self.condition_vectors)[:, None]
        kept = []
        for i, (norm_1, attention, norm_2, wide, narrow) in enumerate(self._blocks):
            if cache is None:
                seen = attention(norm_1(x))
            else:
                seen, keys_and_values = attention(norm_1(x), cache=cache[i], index=index)
                kept.append(keys_and_values)
            x = x + seen
            x = x + by_rows(narrow, _gelu(by_rows(wide, norm_2(x))))
        return x if cache is None else (x, kept)


@tf.custom_gradient
def _gelu(x):
    """x (1 + erf(x / sqrt(2))) / 2.

    TensorFlow's and Keras' round the root to single precision. The gradient is written out because
    theirs remembers each of its steps.
    """
    share = 0.5 * (1 + tf.math.erf(x * 0.5**0.5))

    def gradient(dy):
        density = tf.exp(-0.5 * tf.square(x)) * (2 * math.pi) ** -0.5
        return dy * (share + x * density)

    return x * share, gradient
