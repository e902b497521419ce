import keras
import numpy as np
import tensorflow as tf

from keras_flows import distribute


class _Dropout(keras.layers.Layer):
    """Dropout whose state is a weight: files hold it, so that resumed training drops the same.

    Keras' own state is in none, and its replicas all drop the same places.
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

    def call(self, inputs, training=False):
        if not training:
            return inputs
        seed = tf.random.experimental.stateless_fold_in(
            tf.convert_to_tensor(self.state), tf.cast(distribute.replica_id(), tf.int64)
        )
        self.state.assign(self.state + np.array([0, 1]))
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed)
