import itertools

import keras
from keras import ops

from keras_flows.arguments import check_integers
from keras_flows.networks.batch_normalization import _BatchNormalization
from keras_flows.networks.weight_norm_conv2d import WeightNormConv2D
from keras_flows.serialization import ConstructorConfig


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

    Example:

    ```python
    network = keras_flows.networks.ResNet(16, num_blocks=1)
    network(np.zeros((2, 8, 8, 6)))              # (2, 8, 8, 16)
    ```
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
        for (norm1, convolution1, norm2, convolution2), skip in zip(
            self._blocks, self._skips[1:], strict=True
        ):
            h = convolution1(ops.relu(norm1(x, training=training)))
            x = x + convolution2(ops.relu(norm2(h, training=training)))
            features = features + skip(x)
        return ops.relu(self._output_norm(features, training=training))
