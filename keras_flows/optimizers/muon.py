import math
import re

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_flows")
class Muon(keras.optimizers.Muon):
    """Muon for the networks' kernels, also of the steps of a `Repeat`; Adam for all else.

    A kernel (n, m) moves along the orthogonal matrix that is nearest to its momentum U S V^T:
    W <- W - 0.2 lr sqrt(max(n, m)) U V^T. Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025
    (arXiv:2502.16982), by which learning rates are those of Adam.

    Keras' own takes what has two axes for a matrix: of a `Repeat`, whose weights are stacked, the
    vectors, and Adam for the kernels. Here each step's kernel is a matrix by itself, and that of a
    convolution one from (height, width, channels) to channels.

    Args:
        learning_rate: a float or a schedule, for all weights.
        weight_decay, adam_weight_decay: of the kernels, and of the other weights; None for none.
        kwargs: as for `keras.optimizers.Muon`. Layers whose paths match a regular expression of
            `exclude_layers` take Adam: of a network of one's own those whose kernels are no
            matrices, as of `keras.layers.MultiHeadAttention`, should.

    Example:

    ```python
    model = keras_flows.zoo.NSF(input_shape=(3,), depth=2, width=16)
    model.compile(keras_flows.optimizers.Muon(2e-3))
    model.fit(np.random.normal(size=(100, 3)), verbose=0)
    ```
    """

    def __init__(self, learning_rate=0.002, *, weight_decay=None, adam_weight_decay=None, **kwargs):
        super().__init__(
            learning_rate, weight_decay=weight_decay, adam_weight_decay=adam_weight_decay, **kwargs
        )

    def build(self, variables):
        super().build(variables)
        # In an update, variables are TensorFlow's, which know less.
        self._matrices = [_as_matrices(variable) for variable in variables]

    def _should_use_adamw(self, variable):
        # Not for a convolution's `edge_kernel`, which has one channel.
        is_kernel = re.search("(?<!edge_)kernel$", variable.name)
        return not is_kernel or any(re.search(each, variable.path) for each in self.exclude_layers)

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign_add(m, gradient + m * (self.momentum - 1))
        direction = gradient + self.momentum * m if self.nesterov else m
        matrices = ops.reshape(direction, self._matrices[self._get_variable_index(variable)])
        update = self.zeropower_via_newtonschulz5(matrices, self.ns_steps)
        scale = 1.0 if self.rms_rate is None else self.rms_rate * max(update.shape[-2:]) ** 0.5
        self.assign_sub(variable, ops.reshape(lr * scale * update, variable.shape))


def _as_matrices(weight):
    """The shape (..., n, m) of a kernel's matrices, one for each step in which it is stacked."""
    axes = getattr(weight, "stack_axes", 0)
    return (*weight.shape[:axes], math.prod(weight.shape[axes:-1]), *weight.shape[-1:])
