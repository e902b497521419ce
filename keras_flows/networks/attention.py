import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import require
from keras_flows.networks.dense import by_rows


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
        query = _in_heads(by_rows(self._query, inputs), self.num_heads)
        key, value = (
            _in_heads(by_rows(layer, context), self.num_heads) for layer in (self._key, self._value)
        )
        return by_rows(self._out, _attend(query, key, value))


class _CausalAttention(keras.layers.Layer):
    """Tokens that look at themselves and at those before them, as `_Attention` otherwise.

    One linear map gives q, k and v, of all heads each. With a `cache` the inputs are one token,
    the one of `index`: the cache holds k and v of those before, two tensors
    (batch, heads, tokens, d), and comes back, as second of two results, with its own.
    """

    def __init__(self, width, num_heads, *, make_dense, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self._query_key_value = make_dense(width, 3 * width)
        self._out = make_dense(width, width)

    def build(self, inputs_shape):
        self._query_key_value.build(inputs_shape)
        self._out.build(inputs_shape)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def call(self, inputs, cache=None, index=None):
        maps = tf.split(by_rows(self._query_key_value, inputs), 3, axis=-1)
        query, key, value = (_in_heads(each, self.num_heads) for each in maps)
        if cache is None:
            mask = np.tri(inputs.shape[1], dtype=bool)
            return by_rows(self._out, _attend(query, key, value, mask))
        places = tf.range(cache[0].shape[2])
        here = (places == index)[:, None]
        cache = [tf.where(here, new, old) for new, old in zip((key, value), cache, strict=True)]
        return by_rows(self._out, _attend(query, *cache, places <= index)), cache


def _attend(query, key, value, mask=None):
    """softmax(q k^T / sqrt(d)) v of (batch, heads, tokens, d), as (batch, tokens, heads d).

    Where the mask, which broadcasts to (tokens, tokens), is False, a token has no share.
    """
    scores = tf.matmul(query * query.shape[-1] ** -0.5, key, transpose_b=True)
    if mask is not None:
        scores = tf.where(mask, scores, tf.constant(scores.dtype.min, scores.dtype))
    heads = tf.matmul(tf.nn.softmax(scores), value)
    _, number, tokens, size = heads.shape
    return ops.reshape(ops.transpose(heads, (0, 2, 1, 3)), (-1, tokens, number * size))


def _in_heads(x, num_heads):
    """(batch, tokens, width) as (batch, heads, tokens, head size)."""
    x = ops.reshape(x, (-1, x.shape[1], num_heads, x.shape[2] // num_heads))
    return ops.transpose(x, (0, 2, 1, 3))


def check_heads(num_heads, width):
    require(
        width % num_heads == 0,
        "Argument `num_heads` must divide `width`",
        num_heads=num_heads,
        width=width,
    )


def check_tokens(layer, shape):
    """Refuses a shape of inputs that are no tokens, or of which nobody knows how many there are."""
    if len(shape) != 3 or None in shape[1:]:
        raise ValueError(
            f"{type(layer).__name__} needs tokens (batch, tokens, channels) of a known number. "
            f"Received: shape {tuple(shape)}"
        )
