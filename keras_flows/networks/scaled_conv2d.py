import keras
import tensorflow as tf
from keras import ops

from keras_flows import adaptation
from keras_flows.adaptation import LOG_SCALE_FACTOR
from keras_flows.arguments import check_integers, require
from keras_flows.networks.convolution import conv2d
from keras_flows.networks.edge_places import EdgePlaces
from keras_flows.precomputation import Precomputes
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class ScaledConv2D(Precomputes, ConstructorConfig, keras.layers.Layer):
    """The convolution of Glow's networks: y = (x * kernel + edge + bias) exp(3 log_scale).

    Glow, released code. Zero-initialised it is the "zero convolution" that ends a network; with
    `normalize=True` it is a convolution followed by an ActNorm, whose bias and scale `adapt` sets.
    `edge` is the convolution of an image that is 1 on the zero padding and 0 inside, so that the
    layer knows where the border is; a 1x1 convolution has none. Shapes: (batch, height, width,
    channels) -> (batch, height, width, filters).

    Args:
        filters: number of output channels.
        kernel_size: odd; the padding is "same".
        kernel_initializer: of the kernel. `edge` starts likewise.
        normalize: whether bias and log_scale depend on the data.

    Raises:
        ValueError: for `filters` or a `kernel_size` out of range.

    Example:

    ```python
    layer = keras_flows.networks.ScaledConv2D(12, 3)
    layer(np.ones((2, 8, 8, 6)))                 # (2, 8, 8, 12)
    ```
    """

    def __init__(
        self, filters, kernel_size, *, kernel_initializer="zeros", normalize=False, **kwargs
    ):
        super().__init__(**kwargs)
        check_integers(1, filters=filters, kernel_size=kernel_size)
        require(kernel_size % 2 == 1, "Argument `kernel_size` must be odd", kernel_size=kernel_size)
        self.filters = filters
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.normalize = normalize

    @property
    def data_dependent(self):
        return self.normalize

    def build(self, input_shape):
        size, channels, shape = self.kernel_size, input_shape[-1], (self.filters,)
        if size > 1:
            self._places = EdgePlaces(*input_shape[1:3], size)

        def draw(dtype):
            # One draw for both kernels: called twice, an initializer repeats itself.
            return self.kernel_initializer((size, size, channels + 1, self.filters), dtype)

        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, size, channels, self.filters),
            initializer=lambda shape, dtype: draw(dtype)[:, :, :channels],
        )
        if size > 1:
            self.edge_kernel = self.add_weight(
                name="edge_kernel",
                shape=(size, size, 1, self.filters),
                initializer=lambda shape, dtype: draw(dtype)[:, :, channels:],
            )
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def precompute(self, inverse):
        """The scaled kernel, and what is added for each kind of place (see `EdgePlaces`)."""
        weights = (self.kernel, self.bias, self.log_scale)
        kernel, bias, log_scale = (ops.cast(weight, self.compute_dtype) for weight in weights)
        # Scaling the kernel is cheaper than scaling the result.
        scale = ops.exp(LOG_SCALE_FACTOR * log_scale)
        return kernel * scale, (self._edge() + bias) * scale

    def call(self, inputs):
        if self.normalize and adaptation.is_adapting():
            raw = self._add(conv2d(inputs, ops.convert_to_tensor(self.kernel)), self._edge())
            adaptation.normalize_channels(self.bias, self.log_scale, raw)
            kernel, bias = self.precompute(inverse=False)
        else:
            kernel, bias = self.precomputed()
        return self._add(conv2d(inputs, kernel), bias)

    def _edge(self):
        """The convolution of the edge, for each kind of place."""
        if self.kernel_size == 1:
            return ops.zeros((1, self.filters), self.compute_dtype)
        return self._places.response(ops.cast(self.edge_kernel, self.compute_dtype))

    def _add(self, y, bias):
        if self.kernel_size > 1:
            return y + self._places.spread(bias)
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return tf.nn.bias_add(y, bias[0])
        # Its gradient oneDNN computes with the kernel's, but of an empty batch leaves it out.
        return y + bias
