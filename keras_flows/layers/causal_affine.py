"""Autoregression over tokens."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import check_one_of, require
from keras_flows.bijection import Bijection, constant_log_det, sum_over_event
from keras_flows.context import current_guidance
from keras_flows.layers.affine_coupling import shift_and_scale
from keras_flows.layers.conditioning import Conditioning
from keras_flows.layers.coupling import output_policy
from keras_flows.layers.orders import add_order, permute
from keras_flows.networks.attention import check_tokens
from keras_flows.networks.dense import by_rows, torch_dense

SCHEDULES = ("linear", "constant")


@keras.saving.register_keras_serializable(package="keras_flows")
class CausalAffine(Bijection):
    """Shifts and scales each token by functions of the tokens before it.

    z_i = (x_i - t_i) exp(-s_i), (s_i, t_i) = f(x_0, ..., x_(i-1)); log_det = -sum(s_i). The first
    token stays.

    A block of TarFlow (Zhai et al. 2024, arXiv:2412.06329, released code). Forward, all tokens are
    computed at once; the inverse takes them one by one, in one loop, in which the network keeps
    what it has made of those before. Of the steps of a `Repeat` every second one goes from the last
    token to the first. Shapes: (batch, tokens, channels), unchanged.

    Args:
        network: `networks.CausalTransformer`, or a Keras layer that is called as it is, and has its
            `empty_cache`.
        condition_shape: (n,), of conditions that the network then gets, floats (batch, n) or labels
            in 0 .. n - 1, as one-hot. The label -1, for none, is 1 / n of each. By default the
            condition is not read.
        guidance_schedule: of an inverse that is guided by labels (classifier-free guidance; Ho and
            Salimans 2022, arXiv:2207.12598) with a weight g, s and t become s + g_i (s - s') and
            t + g_i (t - t'), where s' and t' are those of no label. "constant": g_i is g.
            "linear": it grows with i, to g at the last token.

    Raises:
        ValueError: for another `condition_shape` or schedule, or inputs that are no tokens.
        TypeError: for a network that is no Keras layer.

    Example:

    ```python
    block = keras_flows.layers.CausalAffine(keras_flows.networks.CausalTransformer(16))
    layer = keras_flows.layers.Repeat(block, depth=2)
    layer(np.zeros((2, 9, 4)))                   # (2, 9, 4)
    ```
    """

    inverts_cheaply = False
    takes_null_label = True
    step_index = 0

    def __init__(self, network, *, condition_shape=None, guidance_schedule="linear", **kwargs):
        super().__init__(**kwargs)
        require(
            isinstance(network, keras.layers.Layer),
            "Argument `network` must be a Keras layer",
            error=TypeError,
            network=network,
        )
        check_one_of(SCHEDULES, guidance_schedule=guidance_schedule)
        self.network = network
        self.condition_shape = condition_shape
        if condition_shape is not None:
            self._conditioning = Conditioning(condition_shape)
            require(
                len(self._conditioning.shape) == 1,
                "Argument `condition_shape` must be (n,), without the batch. Of others, let a "
                "`condition_network` make features (batch, n), as `keras.layers.Flatten` does",
                condition_shape=condition_shape,
            )
        self.guidance_schedule = guidance_schedule

    @property
    def reads_condition(self):
        return self.condition_shape is not None

    @property
    def constant_weights(self):
        return [self.order] if self.built else []

    def get_config(self):
        config = super().get_config()
        config["network"].pop("build_config", None)  # built with this layer
        return config

    def build(self, input_shape):
        check_tokens(self, input_shape)
        _, tokens, channels = input_shape
        order = np.arange(tokens)[:: -1 if self.step_index % 2 else 1]
        self.order = add_order(self, "order", order)
        given = [(tokens, channels), *([self.condition_shape] if self.reads_condition else [])]
        features = self.network(*(keras.KerasTensor((None, *shape)) for shape in given))
        self._output_layer = torch_dense(
            features.shape[-1],
            2 * channels,
            kernel_initializer="zeros",
            name="output_layer",
            dtype=output_policy(self.network),
        )
        self._output_layer.build(features.shape)

    def forward_and_log_det(self, x, condition=None, training=False):
        order = tf.convert_to_tensor(self.order)
        x = permute(x, order, order)
        features = self.network(x, *self._floats(condition), positions=order, training=training)
        # Each token's are those of the next one; the first stays.
        of_next = self._log_scale_and_shift(features)
        log_scale, shift = (tf.pad(each[:, :-1], [[0, 0], [1, 0], [0, 0]]) for each in of_next)
        z = shift_and_scale(x, -shift, -log_scale)
        return permute(z, order, order), -sum_over_event(log_scale)

    def inverse_and_log_det(self, z, condition=None, training=False):
        order, tokens = tf.convert_to_tensor(self.order), z.shape[1]
        floats, guidance = self._floats(condition), current_guidance()
        is_guided = guidance is not None and self.reads_condition
        if is_guided:  # in twice as many rows: those of the labels, then those of none
            floats = [tf.concat([floats[0], self._null_label(tf.shape(z)[0])], axis=0)]

        def step(i, x, log_det, cache):
            token = tf.gather(x, tf.reshape(i, [1]), axis=1)
            features, cache = self.network(
                tf.concat([token, token], axis=0) if is_guided else token,
                *floats,
                positions=tf.gather(order, tf.reshape(i, [1])),
                cache=cache,
                index=i,
                training=training,
            )
            log_scale, shift = self._log_scale_and_shift(features)
            if is_guided:
                weight = self._scheduled(guidance, i + 1, tokens)
                log_scale, shift = (_guide(each, weight) for each in (log_scale, shift))
            following = tf.gather(x, tf.reshape(i + 1, [1]), axis=1) * tf.exp(log_scale) + shift
            is_next = (tf.range(tokens) == i + 1)[:, None]
            x = tf.where(is_next, following, x)
            return i + 1, x, log_det + sum_over_event(log_scale), cache

        rows = tf.shape(z)[0] * (2 if is_guided else 1)
        _, x, log_det, _ = tf.while_loop(
            lambda i, *_: i < tokens - 1,
            step,
            (
                tf.constant(0),
                permute(z, order, order),
                constant_log_det(0, z),
                self.network.empty_cache(rows),
            ),
            maximum_iterations=tokens - 1,
        )
        return permute(x, order, order), log_det

    def _log_scale_and_shift(self, features):
        """(log_scale, shift) of the following token, each (batch, tokens, channels)."""
        parameters = ops.cast(by_rows(self._output_layer, features), self.compute_dtype)
        return tf.split(parameters, 2, axis=-1)

    def _floats(self, condition):
        """[condition], as the network takes it; [] if it is not read."""
        if not self.reads_condition:
            return []
        floats = self._conditioning.as_floats(condition, self.compute_dtype)
        condition = tf.convert_to_tensor(condition)
        if condition.dtype.is_integer and condition.shape.rank == 1:
            null_label = self._null_label(tf.shape(condition)[0])
            floats = tf.where((condition < 0)[:, None], null_label, floats)
        return [floats]

    def _null_label(self, rows):
        (n,) = self.condition_shape
        return tf.fill((rows, n), tf.constant(1 / n, self.compute_dtype))

    def _scheduled(self, guidance, token, tokens):
        """The weight of guidance for one token, of each row, (batch, 1, 1)."""
        weight = guidance[:, None, None]
        if self.guidance_schedule == "linear":
            weight = weight * (tf.cast(token, weight.dtype) / (tokens - 1))
        return weight


def _guide(parameters, weight):
    """Away from what they are without label, in the second half of the rows."""
    given, without = tf.split(parameters, 2)
    return given + weight * (given - without)
