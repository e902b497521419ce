"""What all couplings share."""

import keras
import tensorflow as tf

from keras_flows.arguments import check_integers, require
from keras_flows.bijection import Bijection, add_gradients, constant_log_det, sum_over_event
from keras_flows.layers.conditioning import Conditioning
from keras_flows.layers.partition import Roles, get_partition
from keras_flows.networks.dense import by_rows
from keras_flows.networks.scaled_conv2d import ScaledConv2D
from keras_flows.results import check_pair, missing


class Coupling(Bijection):
    """Changes one part of the input by an elementwise transform with parameters from the other.

    z1 = x1, z2 = f(x2; network(x1)); log_det is the sum of the logarithms of f's slopes.

    A network computes the parameters; a subclass says how many each changed channel takes, and
    transforms. Network and transform stay apart: `parameters_of(x1)` evaluates the one, `transform`
    and `inverse_transform` are the other, and where the partition's parts keep the shape of x, what
    a transform does in the other part's place is of no effect. Shapes: (batch, D), (batch, tokens,
    channels) or (batch, height, width, channels), unchanged.

    Args:
        network: a Keras layer that keeps the rank (`networks.MLP`, `networks.ConvNet`,
            `networks.ResNet` or your own); None leaves the output layer alone.
        partition: "half", "even_odd", "checkerboard" (images), or a `Partition` of your own. Where
            the partition has masks, as "checkerboard" does, the network's input has x1's as its
            last channel.
        swap: whether the two parts change roles.
        output_layer: a Keras layer from the network's features to the parameters. By default
            zero-initialised: a 3x3 `ScaledConv2D` for images, `Dense` for all else.
        condition_shape: of one example of the condition, which the network then sees behind x1:
            (n,) for floats (batch, n), or for labels in 0 .. n - 1; (height, width, n) for images,
            of which it is pooled to the size. One of tokens, (tokens, n), is the second argument of
            a network whose call has one, `condition`, as `networks.ViT` has. By default the
            condition is not read.

    Raises:
        ValueError: for an unknown partition, or an input with too few channels to divide.
        TypeError: for a network or an output layer that is no Keras layer.

    Example: a transform is two methods.

    ```python
    @keras.saving.register_keras_serializable(package="mine")
    class SinhCoupling(keras_flows.layers.coupling.Coupling):
        parameters_per_channel = 1

        def transform(self, x2, parameters):
            return ops.arcsinh(x2) + parameters, -0.5 * ops.log1p(x2 * x2)

        def inverse_transform(self, z2, parameters):
            x2 = ops.sinh(z2 - parameters)
            return x2, 0.5 * ops.log1p(x2 * x2)
    ```
    """

    parameters_per_channel = None

    def __init__(
        self,
        network,
        *,
        partition="half",
        swap=False,
        output_layer=None,
        condition_shape=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (("network", network), ("output_layer", output_layer)):
            require(
                value is None or isinstance(value, keras.layers.Layer),
                f"Argument `{name}` must be a Keras layer or None",
                error=TypeError,
                **{name: value},
            )
        self.network = network
        self.partition = partition
        self.swap = swap
        self.output_layer = output_layer
        self.condition_shape = condition_shape
        self._roles = Roles(get_partition(partition, self.dtype_policy), swap)
        self._conditioning = None
        if condition_shape is not None:
            self._conditioning = Conditioning(condition_shape, network)

    @property
    def reads_condition(self):
        return self.condition_shape is not None

    def transform(self, x2, parameters):
        """(z2, log_slope): new values, and log |dz2 / dx2| element by element; None is all zeros.

        x2 has shape (batch, ..., channels), `parameters` `parameters_per_channel` times as many.
        """
        raise missing(self, "transform")

    def inverse_transform(self, z2, parameters):
        """(x2, log_slope), with log |dx2 / dz2|."""
        raise missing(self, "inverse_transform")

    def get_config(self):
        config = super().get_config()
        for name in ("network", "output_layer"):
            # Built with the coupling. Keras alone warns of one that has no `build`.
            (config.get(name) or {}).pop("build_config", None)
        return config

    def build(self, input_shape):
        check_integers(1, parameters_per_channel=self.parameters_per_channel)
        shape, changed = self._roles.build(input_shape)
        attended = ()
        if self._attends_to_condition:
            attended = (keras.KerasTensor((None, *self._conditioning.shape)),)
        elif self._conditioning is not None:
            self._conditioning.build(shape)
            shape = (*shape[:-1], shape[-1] + self._conditioning.channels)
        # To call them builds them, those without a `build`, too.
        if self.network is not None:
            shape = self.network(keras.KerasTensor(shape), *attended).shape
        wanted = (*changed[:-1], int(self.parameters_per_channel) * changed[-1])
        if self.output_layer is None:
            self._default_output_layer = self._make_output_layer(wanted[-1], len(shape) == 4)
        received = tuple(self._output_layer(keras.KerasTensor(shape)).shape)
        if received != wanted:
            raise ValueError(
                f"Argument `output_layer` must map the network's features to {wanted[-1]} "
                f"channels, shape {wanted}. Received: an output of shape {received}"
            )

    def forward_and_log_det(self, x, condition=None, training=False):
        x1, x2 = self._roles.split(x)
        z2, log_det = self._where_changed(
            "transform", x2, self.parameters_of(x1, condition, training)
        )
        return self._roles.merge(x1, z2), log_det

    def inverse_and_log_det(self, z, condition=None, training=False):
        z1, z2 = self._roles.split(z)
        x2, log_det = self._where_changed(
            "inverse_transform", z2, self.parameters_of(z1, condition, training)
        )
        return self._roles.merge(z1, x2), log_det

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        # x1 is z1: one evaluation of the network serves to invert and to differentiate.
        z1, z2 = self._roles.split(z)
        dz1, dz2 = self._roles.split(dz)
        with tf.GradientTape() as network_tape:
            network_tape.watch([z1, *sources])
            parameters = self.parameters_of(z1, condition, training)
        x2, _ = self._where_changed("inverse_transform", z2, parameters)
        with tf.GradientTape() as transform_tape:
            transform_tape.watch([x2, parameters, *sources])
            outputs = self._where_changed("transform", x2, parameters)
        dx2, dparameters, *gradients = transform_tape.gradient(
            outputs, [x2, parameters, *sources], [dz2, dlog_det]
        )
        dx1, *network_gradients = network_tape.gradient(parameters, [z1, *sources], dparameters)
        pairs = zip(gradients, network_gradients, strict=True)
        gradients = [add_gradients(*pair) for pair in pairs]
        dx1 = add_gradients(dz1, None if dx1 is None else self._roles.where_conditioning(dx1))
        return self._roles.merge(z1, x2), self._roles.merge(dx1, dx2), gradients

    def parameters_of(self, x1, condition=None, training=False):
        """The output layer of the network of x1 and the condition, in the bijection's dtype."""
        further, attended = (), ()
        if self._attends_to_condition:
            attended = (self._conditioning.as_floats(condition, x1.dtype),)
        elif self._conditioning is not None:
            further = (self._conditioning.spread(condition, x1),)
        features = self._roles.conditioner_input(x1, *further)
        if self.network is not None:
            features = self.network(features, *attended, training=training)
        if self.output_layer is None and len(features.shape) < 4:
            parameters = by_rows(self._default_output_layer, features)
        else:
            parameters = self._output_layer(features, training=training)
        return keras.ops.cast(parameters, self.compute_dtype)

    def _where_changed(self, transform, x2, parameters):
        """What a transform gives where x2 is, zeros elsewhere, and the sum of its log slopes."""
        result = getattr(self, transform)(x2, parameters)
        y2, log_slope = check_pair(self, transform, result, "(values, log_slope)")
        y2 = self._roles.where_changed(y2)
        if log_slope is None:
            return y2, constant_log_det(0, x2)
        return y2, sum_over_event(self._roles.where_changed(log_slope))

    @property
    def _attends_to_condition(self):
        return self._conditioning is not None and self._conditioning.is_attended

    @property
    def _output_layer(self):
        return self.output_layer or self._default_output_layer

    def _make_output_layer(self, units, is_image):
        """A layer that is zero at the start, so that the coupling starts near the identity."""
        policy = self.dtype_policy if self.network is None else output_policy(self.network)
        options = {"dtype": policy, "name": "output_layer"}
        if is_image:
            return ScaledConv2D(units, 3, **options)
        return keras.layers.Dense(units, kernel_initializer="zeros", **options)


def output_policy(network):
    """The dtype policy of a layer behind the network, of which a quantisation is the network's."""
    policy = network.dtype_policy
    return policy.get_config()["source_name"] if policy.quantization_mode is not None else policy
