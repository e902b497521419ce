"""A Keras layer as a TFP bijector: where the two collide, and nowhere else."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from keras_flows.batches import as_tensor
from keras_flows.private import flatten_layers

tfb = tfp.bijectors
tfd = tfp.distributions


class _Bijector(tfb.Bijector):
    """Stands between `keras.Layer` and `tfb.Bijector` in the order of method resolution.

    There `Layer.__call__` looks for `keras.Operation.__call__` and would find TFP's.
    """

    __call__ = keras.Operation.__call__


class BijectorLayer(keras.layers.Layer, _Bijector):
    """A Keras layer that is a TFP bijector by its `forward_and_log_det` and its inverse."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        name = self.name
        # `parameters` stays None: equal parameters would make two layers equal for TFP.
        tfb.Bijector.__init__(self, forward_min_event_ndims=0, name=name)
        self.name = name  # TFP replaces some characters in its copy

    def __call__(self, *args, **kwargs):
        if args and isinstance(args[0], tfd.Distribution | tfb.Bijector):
            return tfb.Bijector.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    @property
    def name(self):
        return self._name

    @name.setter  # TFP's is read-only, Keras assigns it
    def name(self, value):
        self._name = value

    # TFP's public methods are replaced, and with them its cache, which remembers results by the
    # identity of a tensor and would not see that a weight has changed.

    def forward(self, x, name="forward", **kwargs):
        return self._forward(x, name, **kwargs)[0]

    def inverse(self, y, name="inverse", **kwargs):
        return self._inverse(y, name, **kwargs)[0]

    def forward_log_det_jacobian(
        self, x, event_ndims=None, name="forward_log_det_jacobian", **kwargs
    ):
        log_det = self._forward(x, name, **kwargs)[1]
        return _sum_last_axes(log_det, event_ndims, self.forward_min_event_ndims)

    def inverse_log_det_jacobian(
        self, y, event_ndims=None, name="inverse_log_det_jacobian", **kwargs
    ):
        log_det = self._inverse(y, name, **kwargs)[1]
        return _sum_last_axes(log_det, event_ndims, self.inverse_min_event_ndims)

    def forward_dtype(self, dtype=None, name="forward_dtype", **kwargs):
        # A string or a mixed policy's dtype would break TFP's compositions.
        return tf.as_dtype(self.compute_dtype)

    inverse_dtype = forward_dtype

    @property
    def event_shape(self):
        """Shape of one data point, as built. ValueError before `build`."""
        config = self.get_build_config() if self.built else None
        if config is None:
            raise ValueError(
                f"The shape of {type(self).__name__} {self.name!r} is not known before it is "
                "built. Call it on data or call its `build((None, *event_shape))` first."
            )
        return tuple(config["input_shape"])[1:]

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

    def _build_for(self, x):
        if not self.built:
            self.build((None, *tf.convert_to_tensor(x).shape[1:]))

    def _forward(self, x, name, **kwargs):
        self._build_for(x)
        return self._over_batch(self.forward_and_log_det, x, self.event_shape, name, **kwargs)

    def _inverse(self, y, name, **kwargs):
        return self._over_batch(self.inverse_and_log_det, y, self.latent_shape, name, **kwargs)

    def _over_batch(self, method, x, shape, name, condition=None, training=False):
        """Runs `method` with the axes in front of the event flattened into one.

        Those of x and of the condition broadcast.
        """
        with tf.name_scope(name):
            x = ops.convert_to_tensor(x, self.compute_dtype)
            rank = len(x.shape) - len(shape)
            if rank < 0 or any(
                given not in (None, want) for given, want in zip(x.shape[rank:], shape, strict=True)
            ):
                raise ValueError(
                    f"{type(self).__name__} {self.name!r} expected a tensor of shape "
                    f"(..., {', '.join(map(str, shape))}). Received: shape={tuple(x.shape)}"
                )
            batch, leading = tf.shape(x)[:rank], x.shape[:rank]
            if condition is not None:
                condition = as_tensor(condition)
                leading = condition.shape[: self._leading_axes(condition, rank)]
            if rank == 1 and leading.as_list() == x.shape[:1].as_list():
                return method(x, condition, training)
            if condition is not None:
                event = condition.shape[leading.rank :]
                batch = tf.broadcast_dynamic_shape(batch, tf.shape(condition)[: leading.rank])
                x = tf.broadcast_to(x, tf.concat([batch, shape], axis=0))
                condition = tf.broadcast_to(condition, tf.concat([batch, event], axis=0))
                condition = tf.reshape(condition, (-1, *event))
            y, log_det = method(tf.reshape(x, (-1, *shape)), condition, training)
            y = tf.reshape(y, tf.concat([batch, y.shape[1:]], axis=0))
            return y, tf.reshape(log_det, batch)

    def _leading_axes(self, condition, of_x):
        """How many a condition has in front of one example's; as many as x if no layer says."""
        if condition.dtype.is_integer:
            return condition.shape.rank  # labels
        shapes = (getattr(layer, "condition_shape", None) for layer in flatten_layers(self))
        known = (condition.shape.rank - len(shape) for shape in shapes if shape is not None)
        return next(known, of_x)


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
