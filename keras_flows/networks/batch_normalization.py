import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import distribute
from keras_flows.private import OwnMoments


class _BatchNormalization(OwnMoments, keras.layers.BatchNormalization):
    """Keras' own; several replicas synchronised without cancellation, one replica in one kernel.

    Keras writes batch normalisation out in float32, most of a step's time beside the convolutions.
    A batch of a single cell, which has no variance, takes the running averages.
    (Files tell layers in lists by their classes' names: to rename it is a change of format.)
    """

    def call(self, inputs, training=False):
        one_replica = tf.distribute.get_strategy().num_replicas_in_sync == 1
        # It has none in float64, and no word for a single cell.
        has_kernel = inputs.dtype != tf.float64 and math.prod(inputs.shape[1:-1]) > 1
        if not (training and self.trainable and one_replica and has_kernel):
            return super().call(inputs, training=training)
        # For others oneDNN mostly takes two to three times as long in bfloat16 as in float32.
        x = inputs if inputs.shape[-1] % 16 == 0 else ops.cast(inputs, "float32")
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.ones(inputs.shape[-1]),
            offset=tf.cast(self.beta, tf.float32),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        cells = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        variance *= (cells - 1) / cells  # the kernel's is unbiased, RealNVP's is the batch's
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * new)
        return ops.cast(outputs, inputs.dtype)

    def moments(self, inputs):
        return distribute.channel_moments(inputs, (self.moving_mean, self.moving_variance))
