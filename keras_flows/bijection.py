"""What an author of layers writes, and what a layer may say of itself."""

import keras
import tensorflow as tf
from keras import ops

from keras_flows import adaptation
from keras_flows.arguments import require
from keras_flows.bijector import BijectorLayer
from keras_flows.private import TrackedByTensorFlow, flatten_layers
from keras_flows.results import FORWARD, INVERSE, checked, missing
from keras_flows.serialization import ConstructorConfig


class Bijection(ConstructorConfig, TrackedByTensorFlow, BijectorLayer):
    """An invertible map with a tractable log-determinant: a Keras layer and a TFP bijector at once.

    Forward is data -> latent, `layer(x) == layer.forward(x)`; inverse is latent -> data. A subclass
    keeps each constructor argument as an attribute of that name and writes

    - `build(input_shape)`, if it has weights of its own;
    - `forward_and_log_det(x, condition=None, training=False) -> (z, log_det)`;
    - `inverse_and_log_det(z, condition=None, training=False) -> (x, log_det)`;
    - `compute_output_shape(input_shape)`, if z is not shaped like x.

    `log_det` is the log of |det| of the direction that was computed, in nats, of shape (batch,).
    Pairs and shapes are checked where they are known, in a graph when it is traced;
    `check_bijection` tells whether all else holds, too. A layer without an inverse still goes
    forward. `condition` is what the whole batch is conditioned on (class labels, for instance), one
    row for each example; compositions hand it on, and TFP takes it as the bijector keyword
    `condition`.

    The event is all of the input but its first axis. The TFP methods accept any number of leading
    batch axes. A layer that was never built builds itself in `forward`; wherever its shape would
    have to be guessed it raises ValueError and names `build`.

    Whatever the dtype policy, a bijection computes in the policy's variable dtype: only conditioner
    networks compute in half precision.

    A layer may also say of itself, by attributes of these names:

    - `data_dependent`: `adapt` sets weights of it;
    - `reads_condition`: its results depend on `condition`;
    - `condition_shape`, `num_classes`: of one example of the condition that it reads, or of how
      many classes; a `Flow` refuses any other;
    - `invertible_in_training`: False if `training=True` computes what the inverse does not undo;
    - `inverts_cheaply`: False if a `Repeat` shall rather store what a step was given, in training;
    - `takes_null_label`: of conditions that are labels, -1 stands for none;
    - `constant_weights`: those of its non-trainable weights that nothing changes;
    - `synchronized`: in training it sums over all replicas.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="mine")
    class Sinh(keras_flows.Bijection):
        def forward_and_log_det(self, x, condition=None, training=False):
            return ops.arcsinh(x), -0.5 * ops.sum(ops.log1p(x * x), axis=-1)

        def inverse_and_log_det(self, z, condition=None, training=False):
            return ops.sinh(z), ops.sum(ops.log(ops.cosh(z)), axis=-1)
    ```
    """

    data_dependent = False
    reads_condition = False
    invertible_in_training = True
    inverts_cheaply = True
    takes_null_label = False
    constant_weights = ()
    synchronized = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in (FORWARD, INVERSE):
            if name in vars(cls):
                setattr(cls, name, checked(vars(cls)[name], name))

    def __init__(self, *, dtype=None, **kwargs):
        super().__init__(dtype=keras.dtype_policies.get(dtype).variable_dtype, **kwargs)

    def build(self, input_shape):
        """Creates the weights for inputs of shape (batch, *event).

        By default those of the layers inside, as Keras does: by a symbolic call.
        """
        if not all(layer.built for layer in flatten_layers(self) if layer is not self):
            x = keras.KerasTensor(input_shape, self.compute_dtype)
            keras.Operation.compute_output_spec(self, x)  # a layer's does not run `call`

    def forward_and_log_det(self, x, condition=None, training=False):
        raise missing(self, FORWARD)

    def inverse_and_log_det(self, z, condition=None, training=False):
        raise missing(self, INVERSE)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        """Undoes `forward_and_log_det` and differentiates it, with nothing stored.

        A subclass may share work between the two; this serves any.

        Args:
            z: what forward gave.
            dz, dlog_det: the gradients of the loss in both results.
            sources: list of tensors, what weights and precomputed values are read from.
            condition, training: as given to forward.

        Returns:
            x, the gradient in x, and a list of the gradients in `sources`, None where there is
            none.
        """
        x, _ = self.inverse_and_log_det(z, condition, training)
        return x, *self.differentiate(x, dz, dlog_det, sources, condition, training)

    def differentiate(self, x, dz, dlog_det, sources, condition=None, training=False):
        """As `backward`, of what forward was given: (dx, gradients)."""
        with tf.GradientTape() as tape:
            tape.watch([x, *sources])
            outputs = self.forward_and_log_det(x, condition, training)
        dx, *gradients = tape.gradient(outputs, [x, *sources], [dz, dlog_det])
        return dx, gradients

    def adapt(self, x, condition=None):
        """Sets data-dependent weights (ActNorm's) from the batch `x`, layer by layer.

        Calling it again adapts again. Must run eagerly.
        """
        if not tf.executing_eagerly():
            raise RuntimeError(f"adapt() of {self.name!r} must run eagerly, not in a tf.function.")
        self._build_for(x)
        with adaptation.adapting():
            self.forward_and_log_det(ops.convert_to_tensor(x, self.compute_dtype), condition)

    def build_or_check(self, input_shape):
        """Builds what is not built yet; ValueError if it was built for another shape."""
        if not self.built:
            self.build(input_shape)
        elif self.event_shape != tuple(input_shape[1:]):
            raise ValueError(
                f"{type(self).__name__} {self.name!r} was built for data of shape "
                f"{self.event_shape} and cannot be used for another. Received: {input_shape[1:]}"
            )

    def call(self, inputs, condition=None, training=False):
        inputs = ops.cast(inputs, self.compute_dtype)  # integers, which Keras leaves as they are
        return self.forward_and_log_det(inputs, condition, training)[0]


def constant_log_det(value, x):
    """A log-det that does not depend on the input, for each example of the batch `x`."""
    # Not broadcast: the gradient of that asks for a shape that XLA does not know in a loop.
    return tf.fill(ops.shape(x)[:1], ops.convert_to_tensor(value, x.dtype))


def sum_over_event(x):
    """Sums all but the first axis."""
    return ops.sum(x, axis=tuple(range(1, len(x.shape))))


def add_gradients(*gradients):
    """Their sum; None stands for zero."""
    given = [gradient for gradient in gradients if gradient is not None]
    return tf.add_n(given) if given else None


def check_bijections(**argument):
    """The argument's value as a list; TypeError unless it holds bijections, at least one."""
    ((name, value),) = argument.items()
    bijections = list(value)
    require(
        bijections and all(isinstance(item, Bijection) for item in bijections),
        f"Argument `{name}` must be a list of at least one bijection of keras_flows",
        error=TypeError,
        **argument,
    )
    return bijections
