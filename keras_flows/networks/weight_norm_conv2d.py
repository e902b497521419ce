import math

import keras
from keras import ops

from keras_flows.arguments import check_integers
from keras_flows.networks.convolution import conv2d
from keras_flows.precomputation import Precomputes
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class WeightNormConv2D(Precomputes, ConstructorConfig, keras.layers.Layer):
    """A convolution whose kernel is magnitude * direction / |direction|, filter by filter.

    Salimans and Kingma 2016 (arXiv:1602.07868); RealNVP, section 3.7. Without `magnitude` the
    kernel of each filter has norm 1. Directions and magnitudes start as in RealNVP's released
    code. Shapes: (batch, height, width, channels) -> (batch, height, width, filters), with
    padding "same".

    Raises:
        ValueError: for `filters` or a `kernel_size` that is no positive integer.

    Example:

    ```python
    layer = keras_flows.networks.WeightNormConv2D(12, 3)
    layer(np.ones((2, 8, 8, 6)))                 # (2, 8, 8, 12)
    ```
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
        check_integers(1, filters=filters, kernel_size=kernel_size)
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

    @property
    def precomputed_weights(self):
        return [self.direction, *([self.magnitude_weight] if self.magnitude else [])]

    def call(self, inputs):
        result = conv2d(inputs, self.precomputed())
        return result + self.bias if self.use_bias else result
