import keras
from keras import ops

from keras_flows.arguments import check_in, check_integers
from keras_flows.networks.batch_normalization import _BatchNormalization
from keras_flows.networks.dropout import _Dropout
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class ResidualConvNet(ConstructorConfig, keras.layers.Layer):
    """Residual blocks of convolutions: (batch, height, width, channels) -> (..., width).

    The network of neural spline flows for images (Durkan et al. 2019, arXiv:1906.04032, released
    code): a 1x1 convolution; then each block adds BN, ReLU, 3x3, BN, ReLU, dropout, 3x3, of which
    the last starts near zero. Batch normalisation has no scales of its own: the convolution behind
    it has.

    Args:
        width: filters of each convolution.
        num_blocks: number of residual blocks.
        dropout: in [0, 1), the part of a block's inner values that training drops.

    Raises:
        ValueError: for arguments out of range.

    Example:

    ```python
    network = keras_flows.networks.ResidualConvNet(16, dropout=0.1)
    network(np.zeros((2, 8, 8, 6)))              # (2, 8, 8, 16)
    ```
    """

    def __init__(self, width, num_blocks=2, *, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_blocks=num_blocks)
        check_in("[0, 1)", dropout=dropout)
        self.width = width
        self.num_blocks = num_blocks
        self.dropout = dropout

        def convolution(kernel_size, **options):
            return keras.layers.Conv2D(
                width, kernel_size, padding="same", dtype=self.dtype_policy, **options
            )

        def norm():
            return _BatchNormalization(
                momentum=0.9, epsilon=1e-3, scale=False, synchronized=True, dtype=self.dtype_policy
            )

        def near_zero():  # one for each layer: called twice, an initializer repeats itself
            return keras.initializers.RandomUniform(-1e-3, 1e-3)

        self._input_layer = convolution(1)
        self._blocks = [
            [
                norm(),
                convolution(3),
                norm(),
                *([_Dropout(dropout, dtype=self.dtype_policy)] if dropout else []),
                convolution(3, kernel_initializer=near_zero()),
            ]
            for _ in range(num_blocks)
        ]

    def build(self, input_shape):
        self._input_layer.build(input_shape)
        for block in self._blocks:
            for layer in block:
                layer.build((*input_shape[:-1], self.width))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs, training=False):
        x = self._input_layer(inputs)
        for norm1, convolution1, norm2, *dropout, convolution2 in self._blocks:
            h = convolution1(ops.relu(norm1(x, training=training)))
            h = ops.relu(norm2(h, training=training))
            for layer in dropout:
                h = layer(h, training=training)
            x = x + convolution2(h)
        return x
