import functools
import math
import numbers
import random

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from keras_flows import dequantization, distribute, inputs, resume
from keras_flows import export as saved_model
from keras_flows import presets as preset_folders
from keras_flows.bijection import Bijection
from keras_flows.distributed_model import DistributedModel
from keras_flows.repeatable import flatten_layers
from keras_flows.serialization import ConstructorConfig

tfb = tfp.bijectors
tfd = tfp.distributions

PRIORS = {"gaussian": tfd.Normal, "logistic": tfd.Logistic}


@keras.saving.register_keras_serializable(package="keras_flows")
class Flow(ConstructorConfig, DistributedModel):
    """A normalizing flow: dequantisation, a bijection to a flat latent, and a base distribution.

    log p(x) = log prior(z) + log |det dz/dx|, z = bijection(x + u), in nats, of the data as given.

    Images are uint8 (batch, height, width, channels) and come back as such; the bijection sees
    floor(x / 2^(8 - bits)) + u in [0, 2^bits). Vectors are floats (batch, D), without noise. In
    `fit` and `evaluate` u is uniform in [0, 1): that is the bound on the likelihood of discrete
    data that papers report. Everywhere else it is the bin's centre, 1/2, so that the same request
    has the same answer.

    Use it as any `keras.Model`: `compile(optimizer)`, `fit`, `evaluate`, `predict`, `save`. There
    is no loss to choose. `fit` first adapts the model (`adapt`) if that has not been done; until
    then, a model with data-dependent layers refuses to evaluate, encode, decode, sample or export.

    Args:
        bijection: a `Bijection` from data of `input_shape` to latents (batch, D).
        input_shape: (height, width, channels) or (D,), without the batch.
        bits: of images, 1 to 8 (the default): how many of each pixel's bits are modelled.
        prior: "gaussian" or "logistic", the standard one in each latent dimension.
        num_classes: for a class-conditional model. Its methods then take `labels`, integers in
            [0, num_classes) of shape (batch,), which reach every bijection as `condition`.
        adapt_examples: how many examples `fit` adapts to.
        seed: of the noise in `fit`, `evaluate` and `adapt`, which is a pure function of it, the
            optimizer's iterations and the position in the batch. None draws one. Initial weights
            follow `keras.utils.set_random_seed`.

    Raises:
        ValueError: for arguments out of their range or a bijection that does not fit `input_shape`.
    """

    def __init__(
        self,
        bijection,
        input_shape,
        *,
        bits=None,
        prior="gaussian",
        num_classes=None,
        adapt_examples=256,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        if not isinstance(bijection, Bijection):
            raise TypeError(f"Argument `bijection` must be a Bijection. Received: {bijection!r}")
        inputs.check_input_shape(input_shape)
        inputs.check_bits(bits, input_shape)
        inputs.check_one_of(PRIORS, prior=prior)
        inputs.check_integers(1, adapt_examples=adapt_examples)
        if num_classes is not None:
            inputs.check_integers(1, num_classes=num_classes)
        if seed is not None:
            inputs.check_integers(0, seed=seed)
        # Networks inside may compute in half; the flow, its latents and likelihoods never do.
        self._policy = keras.dtype_policies.get(dtype)
        if self._policy.variable_dtype not in ("float32", "float64"):
            raise ValueError(
                "Argument `dtype` must keep variables in float32 or float64, as 'mixed_bfloat16' "
                f"does. Received: dtype={self._policy.name!r}"
            )
        super().__init__(dtype=self._policy.variable_dtype, **kwargs)
        self.bijection = bijection
        self.input_shape = tuple(int(size) for size in input_shape)
        self.is_image = len(self.input_shape) == 3
        self.bits = 8 if bits is None and self.is_image else bits
        self.prior = prior
        self.num_classes = num_classes
        self.adapt_examples = adapt_examples
        self.seed = random.randrange(2**31) if seed is None else seed
        self.size = math.prod(self.input_shape)
        self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim")
        self._adapted = self.add_weight(
            name="adapted", shape=(), dtype="bool", initializer="zeros", trainable=False
        )
        self.build((None, *self.input_shape))

    def build(self, input_shape):
        """Builds the bijection; the constructor has called it."""
        if tuple(input_shape)[1:] != self.input_shape:
            raise ValueError(
                f"The model was made for input_shape={self.input_shape}. Received: {input_shape}"
            )
        self.bijection.build_or_check(input_shape)
        latent_shape = self.bijection.compute_output_shape(input_shape)
        if tuple(latent_shape[1:]) != (self.size,):
            raise ValueError(
                f"Argument `bijection` must map data of shape {self.input_shape} to flat latents "
                f"(batch, {self.size}), by `layers.Flatten` for instance. Received: {latent_shape}"
            )

    def get_config(self):
        return {**super().get_config(), "dtype": keras.dtype_policies.serialize(self._policy)}

    # Presets.

    presets = preset_folders.PresetsOf()

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """A model of the zoo as it was trained, or its architecture alone.

        It is compiled with Keras' default optimizer; to train it on, compile it with yours.

        Args:
            preset: a name out of `presets`, or the path of a folder that `save_to_preset` wrote.
            load_weights: False for new weights, as the constructor draws them.
            kwargs: constructor arguments that replace the preset's, such as `dtype`.

        Raises:
            ValueError: for an unknown name, one that is a folder here, too, a folder with files
                that a preset does not have, a config of another class, of a newer version or with
                code, weights that are missing or whose SHA-256 is not the metadata's.
        """
        return preset_folders.load(cls, preset, load_weights, **kwargs)

    def save_to_preset(self, preset_dir):
        """Writes config.json, metadata.json and model.weights.h5 into a new or empty folder.

        Of several workers, only the chief writes it.

        Raises:
            FileExistsError: if `preset_dir` holds something.
            ValueError: if the model has classes or functions that are not registered, a Lambda, or
                one layer in two places.
        """
        self._check_adapted("save_to_preset")
        config = preset_folders.config_of(self)  # by all workers: it makes variables
        if distribute.is_chief(self.distribute_strategy):
            preset_folders.save(self, config, preset_dir)

    # Inference.

    def call(self, inputs, labels=None, training=False):
        self._check_batch(inputs)
        labels = self._labels(labels, inputs.shape[0])
        latent, log_prob = self.latent_and_log_prob(self.dequantize(inputs), labels, training)
        return {"latent": latent, "log_prob": log_prob}

    def compute_output_spec(self, inputs, labels=None, training=False):
        self._check_spec(inputs, labels)
        batch = inputs.shape[0]
        return {
            "latent": keras.KerasTensor((batch, self.size), self.compute_dtype),
            "log_prob": keras.KerasTensor((batch,), self.compute_dtype),
        }

    def log_prob(self, x, labels=None, seed=None):
        """Log-likelihood in nats, (batch,). With `seed`, of x + u, u uniform; else u = 1/2."""
        x, labels = self._ready(x, labels)
        noise = None
        if seed is not None:
            inputs.check_integers(0, seed=seed)
            noise = self._noise(x, dequantization.LOG_PROB, seed)
        return self._traced_forward(self.dequantize(x, noise), labels)[1]

    def encode(self, x, labels=None):
        """Latents of a batch, (batch, D)."""
        x, labels = self._ready(x, labels)
        return self._traced_forward(self.dequantize(x), labels)[0]

    def decode(self, z, labels=None):
        """Data of latents (batch, D), in its own units: uint8 images or float vectors."""
        self._check_adapted("decode")
        z = z if hasattr(z, "dtype") else np.asarray(z)
        inputs.check_latent(z, self.size)
        z = ops.convert_to_tensor(z, self.compute_dtype)
        return self._traced_decode(z, self._labels(labels, z.shape[0]))

    def sample(self, n, temperature=1.0, labels=None, seed=None):
        """`n` data points. The same seed gives the same points, each alone a function of its index.

        Args:
            n: how many, at least 1.
            temperature: factor on the latent, at least 0; below 1, likelier and less varied points.
            labels: of a class-conditional model, (n,).
            seed: an integer in 0 .. 2^31 - 1; None draws one.
        """
        self._check_adapted("sample")
        inputs.check_integers(1, n=n)
        if not (isinstance(temperature, numbers.Real) and 0 <= temperature < math.inf):
            raise ValueError(
                f"Argument `temperature` must be a finite number of at least 0. "
                f"Received: temperature={temperature!r}"
            )
        if seed is None:
            seed = random.randrange(2**31)
        inputs.check_integers(0, seed=seed)
        seeds = tf.stack([tf.fill([n], int(seed)), tf.range(int(n))], axis=1)
        temperatures = tf.fill([n], tf.cast(temperature, self.compute_dtype))
        return self._traced_sample(seeds, temperatures, self._labels(labels, n))

    @property
    def distribution(self):
        """The density of dequantised data as a `tfd.TransformedDistribution`, event `input_shape`.

        `distribution.log_prob(x + u) == log_prob(x)` for the same u. A class-conditional model
        takes `bijector_kwargs={"condition": labels}` in `log_prob` and `sample`.
        """
        return tfd.TransformedDistribution(self._base, tfb.Invert(self.bijection))

    @property
    def adapted(self):
        """Whether `adapt` has been called, or nothing depends on the data."""
        with tf.init_scope():
            return not self._data_dependent or bool(self._adapted.numpy())

    # Training.

    def adapt(self, x, y=None):
        """Sets data-dependent initial weights from the first `adapt_examples` examples.

        `fit` calls this if nobody has. Calling it again adapts again.

        Args:
            x: a tf.data.Dataset of batches of x or (x, label), an array or a PyDataset.
            y: labels, if x is an array.
        """
        inputs.check_dataset(x, self.input_shape, read_again=False)
        x, y = inputs.first_examples(x, y, self.adapt_examples)
        self._check_batch(x)
        labels = self._labels(y, len(x))
        x = self.dequantize(x, self._noise(x, dequantization.ADAPT, self.seed))
        with self.distribute_strategy.scope():  # in which statistics are those of all workers
            self.bijection.adapt(x, labels)
        self._adapted.assign(True)

    def compile(self, optimizer="adam", **kwargs):
        """As in Keras, without losses and metrics: a flow has its own."""
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"A Flow minimises its negative log-likelihood and takes no `{name}`. "
                    f"Received: {name}={kwargs[name]!r}"
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
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """As in Keras. Adapts the model first, if that has not been done."""
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise ValueError(f"A Flow takes no `{name}`. Received: {name}={kwargs[name]!r}")
        if not self.trainable_weights:
            raise ValueError("All weights of the model are frozen: there is nothing to fit.")
        inputs.check_dataset(x, self.input_shape, read_again=True)
        self._check_strategy()
        if not self.adapted:
            self.adapt(x, y)
        else:
            first, labels = inputs.first_examples(x, y, 1)
            self._check_batch(first)
            self._labels(labels, len(first))
        replicas = self.distribute_strategy.num_replicas_in_sync
        inputs.check_batch_size(x, batch_size, replicas)
        if isinstance(x, tf.data.Dataset) and self.compiled:
            kwargs.setdefault("shuffle", False)  # or Keras warns that it cannot
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            order = resume.SetEpoch(x, kwargs.get("validation_data"))
            callbacks = [*keras.tree.flatten(callbacks or []), order]
        return super().fit(x, y, batch_size, epochs, verbose=verbose, callbacks=callbacks, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        self._check_adapted("train_on_batch")
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        self._check_adapted("test_on_batch")
        return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args, **kwargs):
        self._check_adapted("predict_on_batch")
        return super().predict_on_batch(*args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        self._check_adapted("evaluate")
        inputs.check_dataset(x, self.input_shape, read_again=False)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        self._check_adapted("predict")
        inputs.check_dataset(x, self.input_shape, read_again=False)
        return super().predict(x, *args, **kwargs)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self._step(data, dequantization.FIT, self.optimizer.iterations, training=True)
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.apply_gradients(gradients)
        return self.get_metrics_result()

    def test_step(self, data):
        # The examples seen so far tell the batches of one evaluation apart.
        self._step(data, dequantization.EVALUATE, self._bits_per_dim.count, training=False)
        return self.get_metrics_result()

    def predict_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(x, labels=y if self.num_classes else None, training=False)

    def _step(self, data, kind, counter, training):
        """Updates the metrics and returns this replica's share of the loss, in nats per example."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("A Flow takes no sample weights. Received: sample_weight")
        self._clear_losses()
        x = self.dequantize(x, self._noise(x, kind, self.seed, counter))
        labels = self._labels(y)
        z, log_prob = self.latent_and_log_prob(x, labels, training)
        count = ops.cast(ops.shape(log_prob)[0], log_prob.dtype)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        total = ops.sum(self.auxiliary_loss(z, labels) - log_prob)
        penalty = sum(self.losses, ops.zeros((), log_prob.dtype))
        self._loss_tracker.update_state(
            total / ops.maximum(count, 1) + penalty, sample_weight=count
        )
        self._bits_per_dim.update_state(-log_prob / (self.size * math.log(2)))
        return total / distribute.global_sum(count) + penalty / replicas

    # Pieces, all of which trace.

    def dequantize(self, x, noise=None):
        """What the bijection sees of data x: its bins plus `noise`, by default 1/2."""
        if not self.is_image:
            return ops.cast(x, self.compute_dtype)
        images = ops.cast(x, self.compute_dtype)
        if keras.backend.standardize_dtype(x.dtype) != "uint8":
            images = inputs.assert_images(images)
        bins = dequantization.to_bins(images, self.bits)
        return bins + (0.5 if noise is None else noise)

    def latent_and_log_prob(self, x, labels=None, training=False):
        """Latents and log-likelihoods, in nats, of dequantised x."""
        z, log_det = self.bijection.forward_and_log_det(x, labels, training)
        # tfd.Sample's would broadcast shapes at run time, which ONNX cannot.
        return z, ops.sum(self._element.log_prob(z), axis=-1) + log_det

    def auxiliary_loss(self, z, labels=None):
        """What a subclass adds to each example's loss, (batch,) in nats, given its latent."""
        return ops.zeros_like(z[:, 0])

    def data_of(self, z, labels=None):
        """Data, in its own dtype, of latents z."""
        x, _ = self.bijection.inverse_and_log_det(z, labels)
        return dequantization.to_images(x, self.bits) if self.is_image else x

    def latents_of(self, seeds, temperatures):
        """Draws from the base distribution, row i from seeds[i] (two integers) alone, scaled."""
        draw = functools.partial(self._base.sample, sample_shape=())
        z = tf.map_fn(lambda seed: draw(seed=seed), seeds, fn_output_signature=self.compute_dtype)
        return tf.ensure_shape(z, (None, self.size)) * temperatures[:, None]

    def export(self, path):
        """Writes a SavedModel that TF Serving loads; see `keras_flows.export`.

        Of several workers, only the chief writes it.
        """
        self._check_adapted("export")
        if distribute.is_chief(self.distribute_strategy):
            saved_model.export(self, path)

    @property
    def _base(self):
        return tfd.Sample(self._element, self.size)

    @property
    def _element(self):
        """The base distribution of one dimension of the latent."""
        zero = ops.zeros((), self.compute_dtype)
        return PRIORS[self.prior](zero, zero + 1)

    @functools.cached_property
    def _traced_forward(self):
        return tf.function(self.latent_and_log_prob, autograph=False, reduce_retracing=True)

    @functools.cached_property
    def _traced_decode(self):
        return tf.function(self.data_of, autograph=False, reduce_retracing=True)

    @functools.cached_property
    def _traced_sample(self):
        def sample(seeds, temperatures, labels):
            return self.data_of(self.latents_of(seeds, temperatures), labels)

        return tf.function(sample, autograph=False, reduce_retracing=True)

    @property
    def _data_dependent(self):
        return any(getattr(layer, "data_dependent", False) for layer in flatten_layers(self))

    def _noise(self, x, kind, seed, counter=0):
        """Uniform noise for the batch x, None for vectors."""
        if not self.is_image:
            return None
        shape = ops.shape(x)
        return dequantization.uniform_noise(
            shape, self.compute_dtype, kind, seed, counter, distribute.replica_id()
        )

    def _labels(self, labels, count=None):
        labels = inputs.check_labels(labels, self.num_classes)
        given = count if labels is None else labels.shape[0]
        if None not in (count, given) and given != count:
            raise ValueError(
                f"`labels` must have one label for each of {count} examples. Received: {given}"
            )
        return labels

    def _check_batch(self, x):
        inputs.check_data(x, self.input_shape)
        if tf.executing_eagerly():
            inputs.check_values(x, self.input_shape)

    def _check_spec(self, x, labels):
        """What `_check_batch` can say of symbolic tensors, when a functional model is made."""
        inputs.check_data(x, self.input_shape)
        if labels is None:
            inputs.check_labels(labels, self.num_classes)

    def _check_adapted(self, method):
        if not self.adapted:
            raise ValueError(
                f"{type(self).__name__}.{method} needs a model that is adapted to data, and this "
                "one is not: call `fit` or `adapt(dataset)`, or load weights, first."
            )

    def _ready(self, x, labels):
        self._check_adapted("log_prob and encode")
        if isinstance(x, keras.KerasTensor):
            raise TypeError(
                "log_prob and encode take data, not symbolic tensors: in a functional model, use "
                '`model(x)["log_prob"]` or `model(x)["latent"]`.'
            )
        x = tf.convert_to_tensor(x)
        self._check_batch(x)
        return x, self._labels(labels, x.shape[0])
