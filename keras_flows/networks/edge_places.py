import numpy as np
import tensorflow as tf
from keras import ops


class EdgePlaces:
    """Where a kernel meets the edge of an image: the convolution of 1 on the padding, 0 inside.

    Few places differ: for a 3x3 kernel corners, sides and the inside. `response` computes those
    (kinds, filters), `spread` puts them where they belong, (1, height, width, filters).
    """

    def __init__(self, height, width, kernel_size):
        image = np.pad(np.zeros((height, width)), kernel_size // 2, constant_values=1)
        windows = np.lib.stride_tricks.sliding_window_view(image, (kernel_size, kernel_size))
        windows = windows.reshape(height * width, kernel_size**2)
        self.windows, kinds = np.unique(windows, axis=0, return_inverse=True)
        self.kinds = kinds.reshape(1, height, width)

    def response(self, kernel):
        kernel = ops.reshape(kernel, (-1, kernel.shape[-1]))
        return ops.matmul(ops.cast(self.windows, kernel.dtype), kernel)

    def spread(self, values):
        return tf.gather(values, self.kinds)
