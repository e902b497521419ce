import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows import adaptation
from keras_flows.layers.act_norm import LOG_SCALE_FACTOR, adapt_bias_and_log_scale
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class ScaledConv2D(ConstructorConfig, keras.layers.Layer):
    """The convolution of Glow's networks: y = (x * kernel + edge + bias) exp(3 log_scale).

    Glow, released code. Zero-initialised it is the "zero convolution" that ends a network; with
    `normalize=True` it is a convolution followed by an ActNorm, whose bias and scale `adapt` sets.
    `edge` is the convolution of an image that is 1 on the zero padding and 0 inside, so that the
    layer knows where the border is; a 1x1 convolution has none. Not a bijection. Shapes:
    (batch, height, width, channels) -> (batch, height, width, filters).

    Args:
        filters: number of output channels.
        kernel_size: odd; the padding is "same".
        kernel_initializer: of the kernel. `edge` starts likewise.
        normalize: whether bias and log_scale depend on the data.
    """

    def __init__(
        self, filters, kernel_size, *, kernel_initializer="zeros", normalize=False, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.normalize = normalize

    @property
    def data_dependent(self):
        return self.normalize

    def build(self, input_shape):
        size, channels, shape = self.kernel_size, input_shape[-1], (self.filters,)

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

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        edge = None
        if self.kernel_size > 1:
            edge = edge_response(self.edge_kernel, *inputs.shape[1:3])
        if self.normalize and adaptation.is_adapting():
            raw = conv2d(inputs, kernel)
            raw = raw if edge is None else raw + edge
            adapt_bias_and_log_scale(self.bias, self.log_scale, raw)
        # Scaling the kernel is cheaper than scaling the result.
        scale = ops.exp(LOG_SCALE_FACTOR * self.log_scale)
        result = conv2d(inputs, kernel * scale)
        if edge is None:
            return tf.nn.bias_add(result, self.bias * scale)
        return result + (edge + self.bias) * scale


def conv2d(x, kernel):
    """The convolution with zeros around x, for the empty batch of a replica, too."""
    y = tf.nn.conv2d(x, kernel, strides=1, padding="SAME")
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return y
    # oneDNN gives an empty batch the channels of x. The last size is always that of y; TensorFlow
    # must not know, or it takes the reshape out as one that changes nothing.
    *sizes, channels = y.shape[1:]
    whole = tf.reshape(y, [tf.shape(x)[0], *sizes, tf.minimum(channels, channels + tf.size(x))])
    whole.set_shape(y.shape)
    return whole


def edge_response(kernel, height, width):
    """The convolution of an image that is 1 on its padding: (1, height, width, filters)."""
    kernel = ops.convert_to_tensor(kernel)
    size, filters = kernel.shape[0], kernel.shape[-1]
    image = np.pad(np.zeros((height, width)), size // 2, constant_values=1)
    # What each tap of the kernel meets; a product with so few taps is faster than a convolution.
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    taps = ops.cast(windows.reshape(height * width, size * size), kernel.dtype)
    response = ops.matmul(taps, ops.reshape(kernel, (size * size, filters)))
    return ops.reshape(response, (1, height, width, filters))
