"""How a flow is trained: by its negative log-likelihood."""

import functools
import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import dequantization, distribute, first_examples, private, resume
from keras_flows.adapted_density import AdaptedDensity
from keras_flows.arguments import check_integers, check_one_of, require
from keras_flows.batch_parts import dividing_batches
from keras_flows.data_spec import check_no_weights
from keras_flows.distributed_model import DistributedModel
from keras_flows.private import flatten_layers
from keras_flows.refusal import Refusal
from keras_flows.tracing import computes
from keras_flows.variational_noise import VariationalNoise

DEQUANTIZATIONS = ("uniform", "variational")


class LikelihoodTraining(DistributedModel, AdaptedDensity):
    """An `AdaptedDensity` with Keras' `compile`, `fit`, `evaluate` and `predict`.

    Args:
        dequantization: "uniform", or "variational" for noise that is learned with the density.
        policy: of the networks of such noise.
    """

    def __init__(self, *args, dequantization, policy, **kwargs):
        super().__init__(*args, **kwargs)
        noisy = "" if self.data_spec.deviation is None else "noisy_"
        self._bits_per_dim = keras.metrics.Mean(name=f"{noisy}bits_per_dim")
        self._num_noises = 1  # an example, in evaluation
        self._variational_noise = None
        check_one_of(DEQUANTIZATIONS, dequantization=dequantization)
        if dequantization == "variational":
            require(
                self.data_spec.is_image and self.data_spec.deviation is None,
                "Argument `dequantization`='variational' is for images, without `noise`",
                input_shape=self.data_spec.shape,
                noise=self.data_spec.deviation and self.data_spec.deviation / 127.5,
            )
            self._variational_noise = VariationalNoise(
                *(self.data_spec.shape, self.data_spec.bits, policy), name="variational_noise"
            )
            with keras.name_scope(self.name, caller=self):
                self._variational_noise.build((None, *self.data_spec.shape))

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """As in Keras, without losses and metrics: a flow has its own."""
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            value = loss if name == "loss" else kwargs.pop(name, None)
            require(
                not value,
                f"A Flow minimises its negative log-likelihood and takes no `{name}`",
                **{name: value},
            )
        super().compile(optimizer, **kwargs)
        half = any(layer.compute_dtype == "float16" for layer in flatten_layers(self))
        scaled = keras.optimizers.LossScaleOptimizer
        scales = isinstance(self.optimizer, scaled)
        if half and kwargs.get("auto_scale_loss", True) and not scales:
            # Keras looks at the model's own policy only, which is never half.
            with self.distribute_strategy.scope():
                self.optimizer = scaled(self.optimizer, name="loss_scale")

    def compile_from_config(self, config):
        # Keras' own skips models that override `compile`: they would load without optimizer.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        **kwargs,
    ):
        """As in Keras. Adapts the model first, if that has not been done."""
        for name in ("sample_weight", "class_weight"):
            value = kwargs.get(name)
            require(value is None, f"A Flow takes no `{name}`", **{name: value})
        if not self.trainable_weights:
            raise ValueError("All weights of the model are frozen: there is nothing to fit.")
        columns = self._columns(x, y)
        x, y = self._arrays(x, y)
        self.data_spec.check_source(x, y, read_again=True)
        *validation, weights = keras.utils.unpack_x_y_sample_weight(validation_data)
        if isinstance(validation_data, tuple | list):
            check_no_weights(weights)
            validation = validation_data = self._arrays(*validation, columns)
            self.data_spec.condition.check_source(validation[1])
        self.data_spec.check_source(*validation)
        self._check_precision(x, y, *validation)
        self._check_strategy()
        if self._adapted.numpy():
            first = first_examples.read(x, y, 1, batch_size)
            self._check_examples(first, columns)
        else:
            first = self._examples(x, y, batch_size, validation_split, columns)
        if not self.adapted:
            self._adapt(first)
        self._adapted.assign(True)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if first.batch_size < replicas:
            raise ValueError(
                f"A batch must have an example for each of the {replicas} replicas, which share "
                f"it. Received: a batch of {first.batch_size}"
            )
        self._set_columns(columns)
        if isinstance(x, tf.data.Dataset) and self.compiled:
            kwargs.setdefault("shuffle", False)  # or Keras warns that it cannot
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            order = resume.SetEpoch(x, validation_data)
            callbacks = keras.tree.flatten(callbacks or [])
            callbacks = [resume.Backups(callbacks), *callbacks, order]
        validation = {"validation_split": validation_split, "validation_data": validation_data}
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **validation, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        self._check_adapted("evaluate")
        x, y = self._arrays(x, y)
        self.data_spec.check_source(x, y)
        self._check_precision(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def evaluate_bound(self, x=None, y=None, *, num_samples, **kwargs):
        """A tighter bound on the likelihood of whole numbers than `evaluate`'s, by more noises.

        log P(x) >= E[log mean_i p(x + u_i) / q(u_i | x)], of `num_samples` noises u_i an example
        (Burda et al. 2016, arXiv:1509.00519). One noise gives what `evaluate` does; each costs as
        much.

        Args:
            x, y, kwargs: as for `evaluate`.
            num_samples: at least 1.

        Returns:
            A dict of `loss`, in nats, and `bits_per_dim`.

        Raises:
            ValueError: for a model that adds no noise to whole numbers: of vectors without
                `integer_columns`, or with `noise`.
        """
        check_integers(1, num_samples=num_samples)
        require(
            self.data_spec.is_discrete,
            "evaluate_bound is for images without `noise` and vectors with `integer_columns`: of "
            "what is no whole number `evaluate` tells no bound, but the likelihood itself",
            input_shape=self.data_spec.shape,
        )
        self._num_noises = num_samples
        try:
            with self.other_test_function(f"test of {num_samples} noises"):
                return self.evaluate(x, y, return_dict=True, **kwargs)
        finally:
            self._num_noises = 1

    def predict(self, x, *args, **kwargs):
        self._check_adapted("predict")
        x = self.data_spec.array(x)
        self.data_spec.check_source(x)
        self._check_precision(x)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check_adapted("train_on_batch")
        return super().train_on_batch(*self._arrays(x, y), *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self._check_adapted("test_on_batch")
        return super().test_on_batch(*self._arrays(x, y), *args, **kwargs)

    def predict_on_batch(self, x, *args, **kwargs):
        self._check_adapted("predict_on_batch")
        return super().predict_on_batch(self.data_spec.array(x), *args, **kwargs)

    def make_train_function(self, force=False):
        """As Keras': the function of a step. It raises what a step under XLA cannot."""
        before = self.train_function
        super().make_train_function(force)
        made = self.train_function is not before
        if made and self.jit_compile and not self.run_eagerly:
            self._refusal = Refusal()
            self.train_function = self._refusal.raised_by(self.train_function)

    def train_step(self, data):
        """Updates weights and metrics by a batch whose values, on all replicas, are valid."""
        rules, broken = self._broken(data)
        if rules and self.jit_compile:
            valid = self._refusal.note(rules, broken)
            return tf.cond(valid, lambda: self._update(data), self.get_metrics_result)
        with tf.control_dependencies(_assertions(rules, broken)):
            return self._update(data)

    def _update(self, data):
        with tf.GradientTape() as tape:
            batches = private.batches_trained_on(self.optimizer)
            loss = self._step(data, dequantization.FIT, batches, training=True)
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.apply_gradients(gradients)
        return self.get_metrics_result()

    def test_step(self, data):
        """Updates the metrics by a batch whose values are valid, which XLA leaves unchecked."""
        rules, broken = self._broken(data)
        with tf.control_dependencies([] if self.jit_compile else _assertions(rules, broken)):
            # The examples seen so far tell the batches of one evaluation apart.
            self._step(data, dequantization.EVALUATE, self._bits_per_dim.count, training=False)
            return self.get_metrics_result()

    def predict_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with dividing_batches():
            return self(x, condition=y, training=False)

    def auxiliary_loss(self, z, condition=None):
        """What a subclass adds to each example's loss, (batch,) in nats, given its latent."""
        return ops.zeros_like(z[:, 0])

    def training_condition(self, condition, iteration):
        """What a subclass makes of a batch's condition in fit, a function of the iteration."""
        return condition

    def _check_precision(self, *arrays):
        """Refuses those that Keras would round before a model of more precision sees them."""
        floatx = keras.config.floatx()
        for array in arrays:
            if str(getattr(array, "dtype", "")) == self.data_spec.dtype == "float64" != floatx:
                raise ValueError(
                    'A model of dtype="float64" must be given data in its precision, and Keras '
                    f"rounds arrays to its `floatx`, {floatx}: call "
                    '`keras.config.set_floatx("float64")` before, or pass a tf.data.Dataset, such '
                    "as `tf.data.Dataset.from_tensor_slices(x).batch(64)`. Received: an array of "
                    "float64"
                )

    def _step(self, data, kind, counter, training):
        """Updates the metrics and returns this replica's share of the loss, in nats per example."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_no_weights(sample_weight)
        private.clear_losses(self)
        x = self.data_spec.check(x)
        condition = self.data_spec.condition.check(y)
        if training:
            condition = self.training_condition(condition, counter)
        z, log_prob = self._bound(x, condition, kind, counter, training=training)
        if not training and self._num_noises > 1:
            log_prob = self._of_more_noises(log_prob, x, condition, kind, counter)
        count = ops.cast(ops.shape(log_prob)[0], log_prob.dtype)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        total = ops.sum(self.auxiliary_loss(z, condition) - log_prob)
        penalty = sum(self.losses, ops.zeros((), log_prob.dtype))
        loss = next(metric for metric in self.metrics if metric.name == "loss")
        loss.update_state(total / ops.maximum(count, 1) + penalty, sample_weight=count)
        self._bits_per_dim.update_state(-log_prob / (self.data_spec.size * math.log(2)))
        return total / ops.maximum(distribute.global_sum(count), 1) + penalty / replicas

    def _broken(self, data):
        """The rules for a batch's values, and which are broken on any replica.

        Eagerly there are none: `_step` checks values itself.
        """
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.data_spec.check_spec(x)
        condition = self.data_spec.condition.check(y)
        rules = {} if tf.executing_eagerly() else self.data_spec.broken(x, condition)
        if not rules:
            return [], None
        broken = tf.stack([tf.cast(each, tf.float32) for each in rules.values()])
        return list(rules), distribute.global_sum(broken) > 0

    @computes
    def _bound(self, x, condition, kind, *counters, training=False):
        """Latents of x + u, and log p(x + u) - log q(u | x), (batch,), of one noise u."""
        with dividing_batches():
            if self._variational_noise is None:
                x = self.dequantize(x, self._noise(x, kind, *counters))
                return self.latent_and_log_prob(x, condition, training)
            bins = self.dequantize(x, 0.0)
            draw = functools.partial(self._variational_noise, training=training)
            normal = self._normal(bins, kind, *counters)
            noise, log_noise = self._in_parts(draw, bins, normal, training=training)
            z, log_prob = self.latent_and_log_prob(bins + noise, condition, training)
            return z, log_prob - log_noise

    def _of_more_noises(self, first, x, condition, kind, counter):
        """The logarithm of the mean of the ratios of which `_bound` gives one, and `first` is."""

        def add(i, total):
            _, another = self._bound(x, condition, kind, counter, i)
            return i + 1, tf.reduce_logsumexp(tf.stack([total, another]), axis=0)

        _, total = tf.while_loop(lambda i, _: i < self._num_noises, add, (1, first))
        return total - math.log(self._num_noises)


def _assertions(rules, broken):
    return [tf.debugging.Assert(~broken[i], [rule]) for i, rule in enumerate(rules)]
