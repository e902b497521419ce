import keras
from keras import ops

from keras_flows.arguments import check_integers
from keras_flows.networks.scaled_conv2d import ScaledConv2D
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class ConvNet(ConstructorConfig, keras.layers.Layer):
    """Glow's network: 3x3 convolution, ActNorm, ReLU, 1x1 convolution, ActNorm, ReLU.

    Glow, section 4 and released code: kernels start as N(0, 0.05^2). Shapes:
    (batch, height, width, channels) -> (batch, height, width, width of the network).

    Args:
        width: filters of both convolutions.

    Example:

    ```python
    network = keras_flows.networks.ConvNet(32)
    network(np.zeros((2, 8, 8, 6)))              # (2, 8, 8, 32)
    ```
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
