"""Where Keras and TensorFlow Probability meet, and nowhere else."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from keras_flows import adaptation
from keras_flows.repeatable import Repeatable
from keras_flows.serialization import ConstructorConfig

tfb = tfp.bijectors
tfd = tfp.distributions


class _Bijector(tfb.Bijector):
    """Stands between `keras.Layer` and `tfb.Bijector` in the order of method resolution.

    There `Layer.__call__` looks for `keras.Operation.__call__` and would find TFP's.
    """

    __call__ = keras.Operation.__call__


class Bijection(Repeatable, ConstructorConfig, keras.layers.Layer, _Bijector):
    """An invertible map with a tractable log-determinant: a Keras layer and a TFP bijector at once.

    Forward is data -> latent, `layer(x) == layer.forward(x)`; inverse is latent -> data. A subclass
    keeps each constructor argument as an attribute of that name and writes

    - `build(input_shape)`, if it has weights;
    - `forward_and_log_det(x, condition=None, training=False) -> (z, log_det)`;
    - `inverse_and_log_det(z, condition=None, training=False) -> (x, log_det)`;
    - `compute_output_shape(input_shape)`, if z is not shaped like x.

    `log_det` is the log of |det| of the direction that was computed, in nats, of shape (batch,).
    `condition` is what the whole batch is conditioned on (class labels, for instance), one row for
    each example; compositions hand it on, and TFP takes it as the bijector keyword `condition`.

    The event is all of the input but its first axis. The TFP methods accept any number of leading
    batch axes. A layer that was never built builds itself in `forward`; wherever its shape would
    have to be guessed it raises ValueError and names `build`.

    Whatever the dtype policy, a bijection computes in the policy's variable dtype: only conditioner
    networks compute in half precision.
    """

    def __init__(self, *, dtype=None, **kwargs):
        super().__init__(dtype=keras.dtype_policies.get(dtype).variable_dtype, **kwargs)
        name = self.name
        # `parameters` stays None: equal parameters would make two layers equal for TFP.
        tfb.Bijector.__init__(self, forward_min_event_ndims=0, name=name)
        self.name = name  # TFP replaces some characters in its copy

    # What a subclass writes.

    def forward_and_log_det(self, x, condition=None, training=False):
        raise NotImplementedError

    def inverse_and_log_det(self, z, condition=None, training=False):
        raise NotImplementedError

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def adapt(self, x, condition=None):
        """Sets data-dependent weights (ActNorm's) from the batch `x`, layer by layer.

        Calling it again adapts again. Must run eagerly.
        """
        if not tf.executing_eagerly():
            raise RuntimeError(f"adapt() of {self.name!r} must run eagerly, not in a tf.function.")
        self._build_for(x)
        with adaptation.adapting():
            self.forward_and_log_det(ops.convert_to_tensor(x, self.compute_dtype), condition)

    # Keras.

    def build(self, input_shape):
        """Creates the weights for inputs of shape (batch, *event)."""

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

    def __call__(self, *args, **kwargs):
        if args and isinstance(args[0], (tfd.Distribution, tfb.Bijector)):
            return tfb.Bijector.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    @property
    def name(self):
        return self._name

    @name.setter  # TFP's is read-only, Keras assigns it
    def name(self, value):
        self._name = value

    # TFP. Its public methods are replaced, and with them its cache, which remembers results by the
    # identity of a tensor and would not see that a weight has changed.

    def forward(self, x, name="forward", **kwargs):
        self._build_for(x)
        return self._over_batch(self.forward_and_log_det, x, self.event_shape, name, **kwargs)[0]

    def inverse(self, y, name="inverse", **kwargs):
        return self._over_batch(self.inverse_and_log_det, y, self.latent_shape, name, **kwargs)[0]

    def forward_log_det_jacobian(
        self, x, event_ndims=None, name="forward_log_det_jacobian", **kwargs
    ):
        self._build_for(x)
        log_det = self._over_batch(self.forward_and_log_det, x, self.event_shape, name, **kwargs)[1]
        return _sum_last_axes(log_det, event_ndims, self.forward_min_event_ndims)

    def inverse_log_det_jacobian(
        self, y, event_ndims=None, name="inverse_log_det_jacobian", **kwargs
    ):
        log_det = self._over_batch(self.inverse_and_log_det, y, self.latent_shape, name, **kwargs)[
            1
        ]
        return _sum_last_axes(log_det, event_ndims, self.inverse_min_event_ndims)

    def forward_dtype(self, dtype=None, name="forward_dtype", **kwargs):
        # A string or a mixed policy's dtype would break TFP's compositions.
        return tf.as_dtype(self.compute_dtype)

    inverse_dtype = forward_dtype

    @property
    def event_shape(self):
        """Shape of one data point, as built. ValueError before `build`."""
        if not self.built or self._build_shapes_dict is None:
            raise ValueError(
                f"The shape of {type(self).__name__} {self.name!r} is not known before it is "
                "built. Call it on data or call its `build((None, *event_shape))` first."
            )
        return tuple(self.get_build_config()["input_shape"])[1:]

    @property
    def latent_shape(self):
        """Shape of one latent, as built. ValueError before `build`."""
        return tuple(self.compute_output_shape((None, *self.event_shape)))[1:]

    @property
    def forward_min_event_ndims(self):
        return len(self.event_shape)

    @property
    def inverse_min_event_ndims(self):
        return len(self.latent_shape)

    # TFP also reads the private names; its constructor writes them, and to write Keras reads first.
    _forward_min_event_ndims = property(
        lambda self: self.forward_min_event_ndims if self.built else None, lambda self, value: None
    )
    _inverse_min_event_ndims = property(
        lambda self: self.inverse_min_event_ndims if self.built else None, lambda self, value: None
    )

    def _forward_event_shape(self, input_shape):
        return _replace_event(input_shape, self.event_shape, self.latent_shape)

    def _inverse_event_shape(self, output_shape):
        return _replace_event(output_shape, self.latent_shape, self.event_shape)

    def _forward_event_shape_tensor(self, input_shape):
        return tf.concat([input_shape[: -len(self.event_shape)], self.latent_shape], axis=0)

    def _inverse_event_shape_tensor(self, output_shape):
        return tf.concat([output_shape[: -len(self.latent_shape)], self.event_shape], axis=0)

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {}  # one bijector, no batch of them

    def _post_build(self):
        super()._post_build()
        # tfb.Chain and tfd.TransformedDistribution look for tf.Variables in the attributes of
        # tf.Modules, where Keras' own variables hide them.
        self.__dict__["_tf_variables"] = [variable.value for variable in self.variables]
        self.__dict__["_all_weights"] = tf.__internal__.tracking.wrap(list(self.variables))

    def _trackable_children(self, *args, **kwargs):
        # Nor would tf.train.Checkpoint find those of layers in lists. Keras must not see the list:
        # it would count, and save, the weights of inner layers as this one's own.
        children = super()._trackable_children(*args, **kwargs)
        return {**children, "all_weights": self._all_weights} if self.built else children

    def _build_for(self, x):
        if not self.built:
            self.build((None, *tf.convert_to_tensor(x).shape[1:]))

    def _over_batch(self, method, x, shape, name, condition=None, training=False):
        """Runs `method` with the axes in front of the event flattened into one."""
        with tf.name_scope(name):
            x = ops.convert_to_tensor(x, self.compute_dtype)
            rank = len(x.shape) - len(shape)
            if rank < 0 or any(
                given not in (None, want) for given, want in zip(x.shape[rank:], shape)
            ):
                raise ValueError(
                    f"{type(self).__name__} {self.name!r} expected a tensor of shape "
                    f"(..., {', '.join(map(str, shape))}). Received: shape={tuple(x.shape)}"
                )
            if rank == 1:
                return method(x, condition, training)
            batch = tf.shape(x)[:rank]
            if condition is not None:
                condition = tf.convert_to_tensor(condition)
                rest = tf.shape(condition)[rank:]
                condition = tf.reshape(condition, tf.concat([[-1], rest], axis=0))
            y, log_det = method(tf.reshape(x, (-1, *shape)), condition, training)
            y = tf.reshape(y, tf.concat([batch, y.shape[1:]], axis=0))
            return y, tf.reshape(log_det, batch)


def constant_log_det(value, x):
    """A log-det that does not depend on the input, for each example of the batch `x`."""
    return ops.broadcast_to(ops.convert_to_tensor(value, x.dtype), ops.shape(x)[:1])


def sum_over_event(x):
    """Sums all but the first axis."""
    return ops.sum(x, axis=tuple(range(1, len(x.shape))))


def check_bijections(**argument):
    """The argument's value as a list; TypeError unless it holds bijections, at least one."""
    ((name, value),) = argument.items()
    bijections = list(value)
    if not bijections or not all(isinstance(item, Bijection) for item in bijections):
        raise TypeError(
            f"Argument `{name}` must be a list of at least one bijection of keras_flows. "
            f"Received: {name}={value!r}"
        )
    return bijections


def _sum_last_axes(log_det, event_ndims, min_event_ndims):
    extra = 0 if event_ndims is None else int(event_ndims) - min_event_ndims
    if extra < 0:
        raise ValueError(
            f"Argument `event_ndims` must be at least {min_event_ndims}, the rank of the built "
            f"event. Received: event_ndims={event_ndims}"
        )
    return tf.reduce_sum(log_det, axis=tuple(range(-extra, 0))) if extra else log_det


def _replace_event(shape, old, new):
    if shape.rank is None:
        return tf.TensorShape(None)
    kept = shape.rank - len(old)
    if kept < 0 or not shape[kept:].is_compatible_with(old):
        raise ValueError(f"Expected an event shape that ends in {old}. Received: {shape}")
    return shape[:kept].concatenate(new)
