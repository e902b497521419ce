import keras

from keras_flows.bijection import Bijection, add_gradients, check_bijections


@keras.saving.register_keras_serializable(package="keras_flows")
class Chain(Bijection):
    """Bijections one after the other.

    z = f_n(... f_2(f_1(x))); log_det is the sum of theirs.

    The layers apply in the order of the list, as in `keras.Sequential`. `tfb.Chain` has it the
    other way round: there the last of the list applies first.

    Example:

    ```python
    layer = keras_flows.layers.Chain([
        keras_flows.layers.Rescale(1 / 256, -0.5),
        keras_flows.layers.Squeeze(),
        keras_flows.layers.Flatten(),
    ])
    layer(np.zeros((2, 4, 4, 1)))                # (2, 16)
    ```
    """

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.layers = check_bijections(layers=layers)

    def build(self, input_shape):
        for layer in self.layers:
            layer.build_or_check(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)

    def forward_and_log_det(self, x, condition=None, training=False):
        total = 0.0
        for layer in self.layers:
            x, log_det = layer.forward_and_log_det(x, condition, training)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, z, condition=None, training=False):
        total = 0.0
        for layer in reversed(self.layers):
            z, log_det = layer.inverse_and_log_det(z, condition, training)
            total = total + log_det
        return z, total

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        total = [None] * len(sources)
        for layer in reversed(self.layers):
            z, dz, gradients = layer.backward(z, dz, dlog_det, sources, condition, training)
            total = [add_gradients(*pair) for pair in zip(total, gradients, strict=True)]
        return z, dz, total
