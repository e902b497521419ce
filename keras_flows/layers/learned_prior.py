import keras
import tensorflow as tf
from keras import ops

from keras_flows.adaptation import LOG_SCALE_FACTOR
from keras_flows.arguments import check_integers, require
from keras_flows.bijection import Bijection, sum_over_event
from keras_flows.layers.conditioning import Conditioning
from keras_flows.networks.edge_places import EdgePlaces
from keras_flows.precomputation import Precomputes


@keras.saving.register_keras_serializable(package="keras_flows")
class LearnedPrior(Precomputes, Bijection):
    """A Gaussian prior with learned moments, as the affine map to the standard one.

    z = (x - mean) exp(-log_std); log_det = -sum(log_std).

    Glow, released code ("learntop", "ycond"): one mean and one deviation for each channel; in
    images they also depend, within one cell of the border, on the place (the code computes them by
    a 3x3 convolution of a zero image with an edge bias). With `num_classes` a learned term for each
    class is added, (class_terms[label] + class_bias) exp(3 class_log_scale); `condition` is then
    the labels, integers of shape (batch,). With `condition_shape`, as for a `Coupling`, a linear
    map of the condition is added instead, at each place. The identity at the start. Shapes:
    (batch, D), (batch, tokens, channels) or (batch, height, width, channels), unchanged.

    Raises:
        ValueError: if one of the two is given and `condition` is not, if both are, or if one is out
            of range.

    Example:

    ```python
    layer = keras_flows.layers.LearnedPrior(num_classes=10)
    layer(np.zeros((2, 6)), condition=[3, 7])                        # (2, 6)
    ```
    """

    def __init__(self, *, num_classes=None, condition_shape=None, **kwargs):
        super().__init__(**kwargs)
        require(
            None in (num_classes, condition_shape),
            "Only one of the arguments `num_classes` and `condition_shape` may be given",
            num_classes=num_classes,
            condition_shape=condition_shape,
        )
        if num_classes is not None:
            check_integers(1, num_classes=num_classes)
        self.num_classes = num_classes
        self.condition_shape = condition_shape
        self._conditioning = None if condition_shape is None else Conditioning(condition_shape)

    @property
    def reads_condition(self):
        return self.num_classes is not None or self.condition_shape is not None

    def build(self, input_shape):
        units = 2 * input_shape[-1]
        self.bias = self.add_weight(name="bias", shape=(units,), initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=(units,), initializer="zeros")
        self._places = None
        if len(input_shape) == 4:
            self._places = EdgePlaces(*input_shape[1:3], 3)
            self.edge_kernel = self.add_weight(
                name="edge_kernel", shape=(3, 3, 1, units), initializer="zeros"
            )
        if self.num_classes is not None:
            self.class_terms = self.add_weight(
                name="class_terms", shape=(self.num_classes, units), initializer="zeros"
            )
            self.class_bias = self.add_weight(
                name="class_bias", shape=(units,), initializer="zeros"
            )
            self.class_log_scale = self.add_weight(
                name="class_log_scale", shape=(units,), initializer="zeros"
            )
        if self._conditioning is not None:
            self._conditioning.build(input_shape)
            self.condition_kernel = self.add_weight(
                name="condition_kernel",
                shape=(self._conditioning.channels, units),
                initializer="zeros",
            )

    def precompute(self, inverse):
        """Means and logarithms of deviations: of each kind of place, and what each class adds."""
        h = ops.convert_to_tensor(self.bias)
        if self._places is not None:
            h = h + self._places.response(ops.convert_to_tensor(self.edge_kernel))
        h = h * ops.exp(LOG_SCALE_FACTOR * self.log_scale)
        if self.num_classes is None:
            return h, ()
        terms = self.class_terms + self.class_bias
        return h, terms * ops.exp(LOG_SCALE_FACTOR * self.class_log_scale)

    def forward_and_log_det(self, x, condition=None, training=False):
        mean, log_std = self._moments(x, condition)
        return (x - mean) * ops.exp(-log_std), -sum_over_event(log_std)

    def inverse_and_log_det(self, z, condition=None, training=False):
        mean, log_std = self._moments(z, condition)
        return z * ops.exp(log_std) + mean, sum_over_event(log_std)

    def _moments(self, x, condition):
        h, terms = self.precomputed()
        if self._places is not None:
            h = self._places.spread(h)
        if self.num_classes is not None:
            if condition is None:
                raise ValueError(
                    f"{self.name!r} has num_classes={self.num_classes} and needs the labels as "
                    "`condition`. Received: condition=None"
                )
            condition = tf.convert_to_tensor(condition)
            if condition.dtype.is_floating:
                raise ValueError(
                    f"{self.name!r} has num_classes={self.num_classes} and reads labels, integers "
                    "(batch,); features are for `condition_shape`. "
                    f"Received: {condition.dtype.name} of shape {condition.shape}"
                )
            terms = tf.gather(terms, condition)
            h = h + ops.reshape(terms, (-1, *(1,) * (len(x.shape) - 2), terms.shape[-1]))
        if self._conditioning is not None:
            h = h + ops.matmul(self._conditioning.spread(condition, x), self.condition_kernel)
        mean, log_std = ops.split(h, 2, axis=-1)
        return mean, log_std + ops.zeros_like(x)  # see bijection.constant_log_det
