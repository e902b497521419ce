"""What additive and affine couplings share."""

import keras
import tensorflow as tf

from keras_flows.bijection import Bijection
from keras_flows.layers.partition import Partition
from keras_flows.layers.scaled_conv2d import ScaledConv2D
from keras_flows.repeatable import Repeatable, add_gradients, precomputed_weights, supply


class Coupling(Bijection):
    """Changes one part of the input by a transform that takes its parameters from the other.

    A network computes the parameters. A subclass says how many each changed channel takes, and
    transforms. Network and transform stay apart: `parameters_of(x1)` evaluates the one, `transform`
    and `inverse_transform` apply the other.
    """

    parameters_per_channel = None

    def __init__(self, network, *, partition="half", swap=False, output_layer=None, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("network", network), ("output_layer", output_layer)):
            if value is not None and not isinstance(value, keras.layers.Layer):
                raise TypeError(
                    f"Argument `{name}` must be a Keras layer or None. Received: {name}={value!r}"
                )
        self.network = network
        self.partition = partition
        self.swap = swap
        self.output_layer = output_layer
        Partition(partition, swap, (2, 2, 2))  # refuses an unknown name at once

    def build(self, input_shape):
        self._split = Partition(self.partition, self.swap, input_shape[1:])
        shape = (*input_shape[:-1], self._split.conditioner_channels)
        if self.network is not None:
            if not self.network.built:
                self.network.build(shape)
            # Unlike `compute_output_shape`, it is there for any layer that can be called.
            shape = self.network.compute_output_spec(keras.KerasTensor(shape)).shape
        units = self.parameters_per_channel * self._split.sizes[1]
        if self.output_layer is None:
            self._default_output_layer = self._make_output_layer(units, is_image=len(shape) == 4)
        if not self._output_layer.built:
            self._output_layer.build(shape)
        received = tuple(self._output_layer.compute_output_shape(shape))
        if received != (*input_shape[:-1], units):
            raise ValueError(
                f"Argument `output_layer` must map the network's features to {units} channels, "
                f"shape {(*input_shape[:-1], units)}. Received: an output of shape {received}"
            )

    def precompute(self, inverse):
        """What the network's layers, which know no direction, make of their weights."""
        return [layer.precompute(inverse=False) for layer in self._repeatable_layers()]

    def precomputed_weights(self):
        return precomputed_weights(self._repeatable_layers())

    def forward_and_log_det(self, x, condition=None, training=False):
        x1, x2 = self._split.split(x)
        z2, log_det = self.transform(x2, self.parameters_of(x1, training))
        return self._split.merge(x1, z2), log_det

    def inverse_and_log_det(self, z, condition=None, training=False):
        z1, z2 = self._split.split(z)
        x2, log_det = self.inverse_transform(z2, self.parameters_of(z1, training, inverse=True))
        return self._split.merge(z1, x2), log_det

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        # x1 is z1: one evaluation of the network serves to invert and to differentiate.
        z1, z2 = self._split.split(z)
        dz1, dz2 = self._split.split(dz)
        with tf.GradientTape() as network_tape:
            network_tape.watch([z1, *sources])
            parameters = self.parameters_of(z1, training)
        x2, _ = self.inverse_transform(z2, parameters)
        with tf.GradientTape() as transform_tape:
            transform_tape.watch([x2, parameters, *sources])
            outputs = self.transform(x2, parameters)
        dx2, dparameters, *gradients = transform_tape.gradient(
            outputs, [x2, parameters, *sources], [dz2, dlog_det]
        )
        dx1, *network_gradients = network_tape.gradient(parameters, [z1, *sources], dparameters)
        gradients = [add_gradients(*pair) for pair in zip(gradients, network_gradients)]
        x = self._split.merge(z1, x2)
        return x, self._split.merge(add_gradients(dz1, dx1), dx2), gradients

    def parameters_of(self, x1, training=False, inverse=False):
        """The output layer of the network of x1, in the bijection's dtype."""
        features = self._split.conditioner_input(x1)
        with supply(self._repeatable_layers(), self.precomputed(inverse), inverse=False):
            if self.network is not None:
                features = self.network(features, training=training)
            parameters = self._output_layer(features, training=training)
        return keras.ops.cast(parameters, self.compute_dtype)

    def transform(self, x2, parameters):
        raise NotImplementedError

    def inverse_transform(self, z2, parameters):
        raise NotImplementedError

    @property
    def _output_layer(self):
        return self.output_layer or self._default_output_layer

    def _repeatable_layers(self):
        networks = [layer for layer in (self.network, self._output_layer) if layer is not None]
        inner = [layer for network in networks for layer in network._flatten_layers()]
        return [layer for layer in inner if isinstance(layer, Repeatable)]

    def _make_output_layer(self, units, is_image):
        """A layer that is zero at the start, so that the coupling starts near the identity."""
        policy = self.dtype_policy if self.network is None else self.network.dtype_policy
        options = {"dtype": policy, "name": "output_layer"}
        if is_image:
            return ScaledConv2D(units, 3, **options)
        return keras.layers.Dense(units, kernel_initializer="zeros", **options)
