import keras
import tensorflow as tf
from keras import ops

from keras_flows.networks.rows import by_rows


class _Attention(keras.layers.Layer):
    """Tokens that look at tokens: softmax(q k^T / sqrt(d)) v in each of `num_heads` heads.

    q is a linear map of the inputs (batch, tokens, channels), k and v are of the context
    (batch, any number, any channels), by default the inputs; d = width / num_heads. What the heads
    give, side by side, goes through one more linear map: (batch, tokens, width).

    Keras' own takes the root in single precision.
    """

    def __init__(self, width, num_heads, *, output_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self._head_size = width // num_heads
        self._query, self._key, self._value = (
            keras.layers.Dense(width, name=name, dtype=self.dtype_policy)
            for name in ("query", "key", "value")
        )
        self._out = keras.layers.Dense(
            width, kernel_initializer=output_initializer, name="out", dtype=self.dtype_policy
        )

    def build(self, inputs_shape, context_shape=None):
        self._query.build(inputs_shape)
        self._key.build(context_shape or inputs_shape)
        self._value.build(context_shape or inputs_shape)
        self._out.build(self._query.compute_output_shape(inputs_shape))

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return self._query.compute_output_shape(inputs_shape)

    def call(self, inputs, context=None):
        context = inputs if context is None else context
        query = self._in_heads(by_rows(self._query, inputs)) * self._head_size**-0.5
        key, value = (self._in_heads(by_rows(layer, context)) for layer in (self._key, self._value))
        shares = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        heads = ops.transpose(tf.matmul(shares, value), (0, 2, 1, 3))
        width = self.num_heads * self._head_size
        return by_rows(self._out, ops.reshape(heads, (-1, heads.shape[1], width)))

    def _in_heads(self, x):
        """(batch, tokens, width) as (batch, heads, tokens, head size)."""
        x = ops.reshape(x, (-1, x.shape[1], self.num_heads, self._head_size))
        return ops.transpose(x, (0, 2, 1, 3))
