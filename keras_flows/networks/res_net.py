"""The networks that couplings call: plain Keras layers from what conditions to features.

They end in features, not in parameters: the coupling owns the output layer.
"""

import itertools
import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import distribute
from keras_flows.inputs import check_integers
from keras_flows.layers.scaled_conv2d import ScaledConv2D, conv2d
from keras_flows.repeatable import Repeatable
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class MLP(ConstructorConfig, keras.layers.Layer):
    """Dense layers with ReLU: (batch, D) -> (batch, width).

    Args:
        width: units of each layer.
        num_layers: number of hidden layers.
    """

    def __init__(self, width, num_layers=2, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_layers=num_layers)
        self.width = width
        self.num_layers = num_layers
        self._layers_in_order = [
            keras.layers.Dense(width, activation="relu", dtype=self.dtype_policy, name=f"dense_{i}")
            for i in range(num_layers)
        ]

    def build(self, input_shape):
        for layer in self._layers_in_order:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs):
        for layer in self._layers_in_order:
            inputs = layer(inputs)
        return inputs


@keras.saving.register_keras_serializable(package="keras_flows")
class ConvNet(ConstructorConfig, keras.layers.Layer):
    """Glow's network: 3x3 convolution, ActNorm, ReLU, 1x1 convolution, ActNorm, ReLU.

    Glow, section 4 and released code: kernels start as N(0, 0.05^2). Shapes:
    (batch, height, width, channels) -> (batch, height, width, width of the network).

    Args:
        width: filters of both convolutions.
    """

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width)
        self.width = width
        self._convolutions = [
            ScaledConv2D(
                width,
                kernel_size,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.05),
                normalize=True,
                dtype=self.dtype_policy,
                name=f"convolution_{i}",
            )
            for i, kernel_size in enumerate((3, 1))
        ]

    def build(self, input_shape):
        for convolution in self._convolutions:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs):
        for convolution in self._convolutions:
            inputs = ops.relu(convolution(inputs))
        return inputs


@keras.saving.register_keras_serializable(package="keras_flows")
class WeightNormConv2D(Repeatable, ConstructorConfig, keras.layers.Layer):
    """A convolution whose kernel is magnitude * direction / |direction|, filter by filter.

    Salimans and Kingma 2016 (arXiv:1602.07868); RealNVP, section 3.7. Without `magnitude` the
    kernel of each filter has norm 1. Directions and magnitudes start as in RealNVP's released
    code. Shapes: (batch, height, width, channels) -> (batch, height, width, filters), with
    padding "same".
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        magnitude=True,
        use_bias=True,
        magnitude_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.magnitude = magnitude
        self.use_bias = use_bias
        self.magnitude_regularizer = keras.regularizers.get(magnitude_regularizer)

    def build(self, input_shape):
        channels = input_shape[-1]
        limit = math.sqrt(2 / channels)
        self.direction = self.add_weight(
            name="direction",
            shape=(self.kernel_size, self.kernel_size, channels, self.filters),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        if self.magnitude:
            self.magnitude_weight = self.add_weight(
                name="magnitude",
                shape=(self.filters,),
                initializer=keras.initializers.Constant(self.kernel_size / math.sqrt(6)),
                regularizer=self.magnitude_regularizer,
            )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def precompute(self, inverse):
        """The kernel."""
        kernel = ops.cast(self.direction, self.compute_dtype)
        kernel = kernel * ops.rsqrt(ops.sum(ops.square(kernel), axis=(0, 1, 2)))
        if self.magnitude:
            kernel = kernel * ops.cast(self.magnitude_weight, self.compute_dtype)
        return kernel

    def precomputed_weights(self):
        return [self.direction, *([self.magnitude_weight] if self.magnitude else [])]

    def call(self, inputs):
        result = conv2d(inputs, self.precomputed(inverse=False))
        return result + self.bias if self.use_bias else result


@keras.saving.register_keras_serializable(package="keras_flows")
class ResNet(ConstructorConfig, keras.layers.Layer):
    """RealNVP's network: a residual network with batch and weight normalisation.

    RealNVP, section 4.1 and released code. The input, batch-normalised, is concatenated with its
    negative; after a 3x3 convolution, each of `num_blocks` blocks adds BN, ReLU, 3x3, BN, ReLU,
    3x3, and 1x1 convolutions of the stages sum up to the features, which end in BN and ReLU.
    Shapes: (batch, height, width, channels) -> (batch, height, width, width of the network).

    Args:
        width: filters of the convolutions.
        num_blocks: number of residual blocks.
        masked: whether the last input channel is a checkerboard's mask; it is not normalised,
            and the rest is doubled, as half of it is zeros.
        magnitude_regularizer: for the weight norm's magnitudes.
    """

    def __init__(self, width, num_blocks=2, *, masked=False, magnitude_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_blocks=num_blocks)
        self.width = width
        self.num_blocks = num_blocks
        self.masked = masked
        self.magnitude_regularizer = keras.regularizers.get(magnitude_regularizer)

        def convolution(kernel_size, magnitude=True, use_bias=True):
            return WeightNormConv2D(
                width,
                kernel_size,
                magnitude=magnitude,
                use_bias=use_bias,
                magnitude_regularizer=self.magnitude_regularizer if magnitude else None,
                dtype=self.dtype_policy,
            )

        self._input_norm = self._batch_norm()
        self._input_convolution = convolution(3, magnitude=False)
        self._blocks = [
            [
                self._batch_norm(),
                convolution(3, magnitude=False, use_bias=False),
                self._batch_norm(),
                convolution(3),
            ]
            for _ in range(num_blocks)
        ]
        self._skips = [convolution(1) for _ in range(num_blocks + 1)]
        self._output_norm = self._batch_norm()

    def _batch_norm(self):
        return _BatchNormalization(
            momentum=0.9, epsilon=1e-4, scale=False, synchronized=True, dtype=self.dtype_policy
        )

    def build(self, input_shape):
        channels = input_shape[-1] - self.masked
        self._input_norm.build((*input_shape[:-1], channels))
        self._input_convolution.build((*input_shape[:-1], 2 * channels + self.masked))
        shape = (*input_shape[:-1], self.width)
        for layer in [*itertools.chain(*self._blocks), *self._skips, self._output_norm]:
            layer.build(shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs, training=False):
        channels = inputs.shape[-1] - self.masked
        x, mask = ops.split(inputs, [channels], axis=-1)  # no mask: no channel
        x = self._input_norm(x, training=training)
        if self.masked:
            x = 2 * x
        x = ops.concatenate([x, -x, mask], axis=-1)
        x = self._input_convolution(ops.relu(x))
        features = self._skips[0](x)
        for (norm1, convolution1, norm2, convolution2), skip in zip(self._blocks, self._skips[1:]):
            h = convolution1(ops.relu(norm1(x, training=training)))
            x = x + convolution2(ops.relu(norm2(h, training=training)))
            features = features + skip(x)
        return ops.relu(self._output_norm(features, training=training))


class _BatchNormalization(keras.layers.BatchNormalization):
    """Keras' own; several replicas synchronised without cancellation, one replica in one kernel.

    Keras writes batch normalisation out in float32, most of a step's time beside the convolutions.
    """

    def call(self, inputs, training=False):
        one_replica = tf.distribute.get_strategy().num_replicas_in_sync == 1
        has_kernel = inputs.dtype != tf.float64
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

    def _moments(self, inputs, mask):
        return distribute.channel_moments(inputs)
