import keras

from keras_flows import adaptation
from keras_flows.bijection import Bijection, check_bijections
from keras_flows.layers.channel_affine import join_runs
from keras_flows.repeatable import add_gradients, precomputed_weights, supply


@keras.saving.register_keras_serializable(package="keras_flows")
class Chain(Bijection):
    """Bijections one after the other.

    z = f_n(... f_2(f_1(x))); log_det is the sum of theirs.

    The layers apply in the order of the list, as in `keras.Sequential`. `tfb.Chain` has it the
    other way round: there the last of the list applies first.
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

    def precompute(self, inverse):
        return [stage.precompute(inverse) for stage in self._stages()]

    def precomputed_weights(self):
        return precomputed_weights(self._stages())

    def forward_and_log_det(self, x, condition=None, training=False):
        if adaptation.is_adapting():  # each layer to what it receives
            methods = [layer.forward_and_log_det for layer in self.layers]
            return _apply(methods, x, condition, training)
        stages = self._stages()
        with supply(stages, self.precomputed(inverse=False), inverse=False):
            methods = [stage.forward_and_log_det for stage in stages]
            return _apply(methods, x, condition, training)

    def inverse_and_log_det(self, z, condition=None, training=False):
        stages = self._stages()
        with supply(stages, self.precomputed(inverse=True), inverse=True):
            methods = [stage.inverse_and_log_det for stage in reversed(stages)]
            return _apply(methods, z, condition, training)

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        stages, total = self._stages(), [None] * len(sources)
        with (
            supply(stages, self.precomputed(inverse=False), inverse=False),
            supply(stages, self.precomputed(inverse=True), inverse=True),
        ):
            for stage in reversed(stages):
                z, dz, gradients = stage.backward(z, dz, dlog_det, sources, condition, training)
                total = [add_gradients(*pair) for pair in zip(total, gradients)]
        return z, dz, total

    def _stages(self):
        """What is computed one after the other: the layers, runs of affine ones joined."""
        return join_runs(self.layers)


def _apply(methods, x, condition, training):
    total = 0.0
    for method in methods:
        x, log_det = method(x, condition, training)
        total = total + log_det
    return x, total
