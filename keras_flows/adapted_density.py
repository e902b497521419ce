"""A density some of whose initial weights depend on the data."""

import math

import tensorflow as tf

from keras_flows import adaptation, dequantization, distribute, first_examples
from keras_flows.density import Density
from keras_flows.private import flatten_layers

# How many examples a model adapts to by default.
IMAGES, VECTORS = 256, 10_000


class AdaptedDensity(Density):
    """A `Density` that is adapted to data before it is used.

    Args:
        adapt_examples: how many examples `fit` adapts to; None for 256 images or 10,000 vectors.
        seed: of the noise in `fit`, `evaluate` and `adapt`, and of the rows of arrays to adapt to.
    """

    def __init__(self, *args, adapt_examples, seed, **kwargs):
        super().__init__(*args, **kwargs)
        self.adapt_examples = adapt_examples
        self.seed = seed
        self._adapted = self.add_weight(
            name="adapted",
            shape=(),
            dtype="bool",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    @property
    def adapted(self):
        """Whether `adapt` has been called, or nothing depends on the data, or it has been trained.

        A gradient through an unadapted model tells that another model trains it.
        """
        with tf.init_scope():
            data_dependent = any(
                getattr(layer, "data_dependent", False) for layer in flatten_layers(self)
            )
            return not data_dependent or bool(self._adapted.numpy())

    def adapt(self, x, y=None):
        """Sets data-dependent initial weights from `adapt_examples` examples.

        They are the first; of an array of vectors, rows drawn at random. `fit` calls this if nobody
        has. Calling it again adapts again, over what was trained.

        Args:
            x: a tf.data.Dataset of batches of x or (x, condition), an array, a data frame, whose
                columns' names the model then knows, or a PyDataset.
            y: the condition, if x is an array.

        Raises:
            ValueError: among others, for vectors with a feature that varies nowhere in an array, or
                in what is read of a dataset.
        """
        columns = self._columns(x, y)
        x, y = self._arrays(x, y)
        self.data_spec.check_source(x, y)
        self._adapt(self._examples(x, y, columns=columns))
        self._set_columns(columns)

    def latent_and_log_prob(self, x, condition=None, training=False):
        outputs = super().latent_and_log_prob(x, condition, training)
        if self.adapted or not self.trainable_weights:
            return outputs

        @tf.custom_gradient
        def noticing_gradients(*outputs):
            def gradient(*gradients):
                self._adapted.assign(True)  # another model trains this one
                return gradients

            return outputs, gradient

        return noticing_gradients(*outputs)

    def _columns(self, x, y):
        """The names of columns, of each, that the model knows or would know after learning."""
        return self.data_spec.names(x), self.data_spec.condition.names(y)

    def _set_columns(self, columns):
        self.data_spec.columns, self.data_spec.condition.columns = columns

    def _arrays(self, x, y, columns=(None, None)):
        """Both, data frames as arrays."""
        return self.data_spec.array(x, columns[0]), self.data_spec.condition.array(y, columns[1])

    def _noise(self, x, kind, *counters):
        return self.data_spec.noise(x, kind, *self._noise_key(*counters))

    def _normal(self, x, kind, *counters):
        """Standard normal numbers, (batch, D), for each example of x."""
        shape = tf.shape(x)[0], self.data_spec.size
        return dequantization.normal_noise(shape, x.dtype, kind, *self._noise_key(*counters))

    def _noise_key(self, counter=0, *further):
        return self.seed, counter, distribute.replica_id(), *further

    def _examples(self, x, y, batch_size=None, validation_split=0.0, columns=(None, None)):
        """What to adapt to, checked, by its values, too."""
        is_image = self.data_spec.is_image
        count = self.adapt_examples or (IMAGES if is_image else VECTORS)
        if validation_split and hasattr(x, "shape"):
            training = math.floor(len(x) * (1 - validation_split))  # as Keras splits
            x, y = x[:training], y if y is None else y[:training]
        first = first_examples.read(x, y, count, batch_size, None if is_image else self.seed)
        self._check_examples(first, columns)
        self.data_spec.check_variation(first.x, of=x)
        self.data_spec.condition.check_variation(first.y)
        return first

    def _adapt(self, first):
        condition = self.data_spec.condition.check(first.y)
        x = self.dequantize(first.x, self._noise(first.x, dequantization.ADAPT))
        with self.distribute_strategy.scope():  # in which statistics are those of all workers
            with adaptation.adapting():
                features = self.features_of(condition)
            self.bijection.adapt(x, features)
        self._adapted.assign(True)

    def _check_examples(self, first, columns):
        self.data_spec.check(first.x, columns[0])
        self.data_spec.condition.check(first.y, len(first.x))
