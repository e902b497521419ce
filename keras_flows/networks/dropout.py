import math

import keras
import numpy as np
import tensorflow as tf

from keras_flows import distribute
from keras_flows.batch_parts import ROW

PHILOX = 1  # TensorFlow's number of the generator; four numbers a count


class _Dropout(keras.layers.Layer):
    """Dropout whose state is a weight: files hold it, so that resumed training drops the same.

    Keras' own state is in none, and its replicas all drop the same places. A batch in parts drops
    the places of the whole one.
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def build(self, input_shape):
        seed = np.random.randint(2**31 - 1)
        self.state = self.add_weight(
            name="state",
            shape=(2,),
            dtype="int64",  # TensorFlow's seeds; of int32 some kernels know no variables
            initializer=lambda shape, dtype: tf.constant([seed, 0], dtype),
            trainable=False,
        )

    @property
    def counters(self):
        return [self.state] if self.built else []

    def call(self, inputs, training=False):
        if not training:
            return inputs
        state = tf.convert_to_tensor(self.state)
        first_row, batches = state[1] // ROW, state[1] % ROW
        seed = tf.random.experimental.stateless_fold_in(
            tf.stack([state[0], batches]), tf.cast(distribute.replica_id(), tf.int64)
        )
        self.state.assign(state + np.array([0, 1]))
        kept = _uniform(seed, first_row, tf.shape(inputs), inputs.shape[1:]) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros((), inputs.dtype))


def _uniform(seed, first_row, shape, row_shape):
    """Numbers in [0, 1) for rows from the first on, each a function of the seed and its place."""
    counts = -(-math.prod(row_shape) // 4)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter += tf.cast(tf.stack([counts * first_row, 0]), tf.uint64)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[shape[0], 4 * counts], key=key, counter=counter, alg=PHILOX
    )
    return tf.reshape(numbers[:, : math.prod(row_shape)], shape)
