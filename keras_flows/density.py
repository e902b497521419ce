"""A flow as a density: likelihoods, latents and samples of a model whose weights are given."""

import functools
import random
import warnings

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from keras_flows import dequantization, threefry
from keras_flows.arguments import check_in, check_integers, check_one_of, require
from keras_flows.batch_parts import counters_of, in_parts, number_of_parts
from keras_flows.batches import of_any_rows, spoil_rows, tensor_if_one
from keras_flows.bijection import Bijection
from keras_flows.condition_features import check_readers
from keras_flows.context import guided_by, taking_gradients
from keras_flows.layers.standardize import Standardize
from keras_flows.tracing import TracedModel, computes

tfb = tfp.bijectors
tfd = tfp.distributions

# The distribution of one dimension of the latent, and what draws it.
PRIORS = {
    "gaussian": (tfd.Normal, threefry.normal),
    "logistic": (tfd.Logistic, threefry.logistic),
}


class Density(TracedModel):
    """log p(x) = log prior(z) + log |det dz/dx|, z = bijection(x + u), in nats.

    A `keras.Model` of a bijection, which it builds, a `DataSpec` of what its methods take, a prior,
    and a network of the condition or None. A subclass says whether it is `adapted`.
    """

    def __init__(self, bijection, data_spec, prior, condition_network=None, **kwargs):
        require(
            isinstance(bijection, Bijection),
            "Argument `bijection` must be a Bijection",
            error=TypeError,
            bijection=bijection,
        )
        check_one_of(PRIORS, prior=prior)
        check_readers(bijection, data_spec.condition, condition_network)
        super().__init__(**kwargs)
        self.bijection = bijection
        self.data_spec = data_spec
        self.prior = prior
        self.condition_network = condition_network
        self._standardize_condition = None
        with keras.name_scope(self.name, caller=self):
            bijection.build_or_check((None, *data_spec.shape))
            if data_spec.condition.is_vector:
                self._standardize_condition = Standardize(dtype=data_spec.dtype)
                self._standardize_condition.build((None, *data_spec.condition.shape))
        if bijection.latent_shape != (data_spec.size,):
            raise ValueError(
                f"Argument `bijection` must map data of shape {data_spec.shape} to flat latents "
                f"(batch, {data_spec.size}), by `layers.Flatten` for instance. "
                f"Received: {(None, *bijection.latent_shape)}"
            )
        self.built = True

    def log_prob(self, x, condition=None, seed=None):
        """Log-likelihood in nats, (batch,).

        What is counted, pixels and whole numbers, is taken at the centre of its bin, u = 1/2; with
        `seed`, u is drawn, uniform in [0, 1). A model with `noise` adds that with a seed only.

        Second derivatives, as by `tape.batch_jacobian`, are those of a `tf.function` that calls it.

        Args:
            x: a batch of data.
            condition: of a conditional model, one for each example.
            seed: an integer in 0 .. 2^31 - 1, or None.

        Raises:
            ValueError, TypeError: for what is no such batch or condition, and for a model that has
                not been adapted to data.
        """
        x, condition = self._ready("log_prob", x, condition)
        noise = None
        if seed is not None:
            check_integers(0, seed=seed)
            noise = self.data_spec.noise(x, dequantization.LOG_PROB, seed)
        x = self.dequantize(x, noise)
        return of_any_rows(self.traced(self.latent_and_log_prob), x, condition)[1]

    def encode(self, x, condition=None):
        """Latents of a batch, (batch, D); arguments and errors are those of `log_prob`."""
        x, condition = self._ready("encode", x, condition)
        x = self.dequantize(x)
        return of_any_rows(self.traced(self.latent_and_log_prob), x, condition)[0]

    def decode(self, z, condition=None, guidance=0.0):
        """Data of latents (batch, D), in its own units: uint8 images or float vectors.

        `condition`, `guidance` and what becomes of rows that overflow are as for `sample`. With
        guidance it does not undo `encode`.
        """
        self._check_adapted("decode")
        z = self.data_spec.latent(z)
        condition = self.data_spec.condition.check(condition, z.shape[0])
        guidance = self._guidance(guidance, tf.shape(z)[0])
        invert = self.traced(self.data_and_overflow)
        data, overflowed = of_any_rows(invert, z, condition, guidance)
        _warn_of(overflowed)
        return data

    def sample(self, n, temperature=1.0, condition=None, seed=None, guidance=0.0):
        """`n` data points. The same seed gives the same points, each alone a function of its index.

        Args:
            n: how many, at least 1.
            temperature: factor on the latent, at least 0; below 1, likelier and less varied points.
            condition: of a conditional model, `n` of them, or a single one for all, which may come
                without an axis for it.
            seed: an integer in 0 .. 2^31 - 1; None draws one, at each call of a graph, too.
            guidance: of a model of labels that takes -1 for none, as `zoo.TarFlow` does, how far to
                go beyond what the labels make of samples, at least 0; see `layers.CausalAffine`.

        Of a model with `noise`, samples are denoised by one step; see `Flow`.

        Temperature, seed and guidance may be scalar tensors, which are not checked in a graph.

        Far from the latents of data, as at high temperatures, the inverse may overflow: such a row
        is NaN throughout, or a black image, and a warning counts them. A graph and a SavedModel
        cannot warn.

        Raises:
            ValueError, TypeError: for arguments out of range, a condition that is none of the
                model's, and a model that has not been adapted to data.
        """
        self._check_adapted("sample")
        check_integers(1, n=n)
        temperature, seed = _number(temperature), _number(seed)
        if not _is_scalar_in_graph(temperature):
            check_in("[0, inf)", temperature=temperature)
        if seed is None and not tf.executing_eagerly():
            seed = tf.random.uniform((), maxval=2**31 - 1, dtype=tf.int32)
        elif seed is None:
            seed = random.randrange(2**31)
        if not _is_scalar_in_graph(seed):
            check_integers(0, seed=seed)
        guidance = self._guidance(guidance, n)
        seeds = tf.stack([tf.fill([n], tf.cast(seed, tf.int32)), tf.range(int(n))], axis=1)
        temperatures = tf.fill([n], tf.cast(temperature, self.compute_dtype))
        condition = self.data_spec.condition.for_samples(n, condition)
        data, overflowed = self.traced(self.samples_and_overflow)(
            seeds, temperatures, condition, guidance
        )
        _warn_of(overflowed)
        return data

    @property
    def distribution(self):
        """The density of dequantised data as a `tfd.TransformedDistribution`, event `input_shape`.

        `distribution.log_prob(x + u) == log_prob(x)` for the same u. A conditional model takes
        `bijector_kwargs={"condition": condition_features(c)}` in `log_prob` and `sample`. Leading
        axes broadcast: of (B, features), `sample((S, B), ...)` draws S points for each.
        """
        base = tfd.Sample(self._element, self.data_spec.size)
        return tfd.TransformedDistribution(base, tfb.Invert(self.bijection))

    def condition_features(self, condition):
        """What `bijection` and `distribution` take as `condition`.

        The output of the condition network; without one, floats of rank 1 standardised, others as
        they are, or int32 labels.
        """
        self._check_adapted("condition_features")
        return self.features_of(self.data_spec.condition.check(condition))

    # Pieces, all of which trace.

    @computes
    def features_of(self, condition, training=False):
        """`condition_features` of a condition that has been checked; None of None."""
        if self._standardize_condition is not None:
            condition = self._standardize_condition(condition)
        if self.condition_network is None:
            return condition
        features = self.condition_network(condition, training=training)
        return ops.cast(features, self.compute_dtype)

    def dequantize(self, x, noise=None):
        """What the bijection sees of data x: its bins plus `noise`, by default 1/2."""
        return self.data_spec.dequantize(x, noise)

    @computes
    def latent_and_log_prob(self, x, condition=None, training=False):
        """Latents and log-likelihoods, in nats, of dequantised x."""
        features = self.features_of(condition, training)
        forward = functools.partial(self.bijection.forward_and_log_det, training=training)
        z, log_det = self._in_parts(forward, x, features, training=training)
        return z, self._log_prior(z) + log_det

    def data_of(self, z, condition=None, guidance=None, *, denoise=False):
        """Data, in its own dtype, of latents z; NaN, or black images, where that overflows."""
        return self.data_and_overflow(z, condition, guidance, denoise=denoise)[0]

    @computes
    def data_and_overflow(self, z, condition=None, guidance=None, *, denoise=False):
        """`data_of`, and which rows overflowed, (batch,); one condition may serve for all rows.

        `guidance` has a weight for each row, or is None.
        """
        return self._data_and_overflow([z], condition, guidance, denoise)

    def _data_and_overflow(self, draws, condition, guidance, denoise, latents_of=lambda z: z):
        """`data_and_overflow` of the latents that `latents_of` makes of `draws`, batches."""
        features = self.features_of(condition)
        if features is not None:
            rows = ops.shape(draws[0])[:1]
            features = ops.broadcast_to(features, (*rows, *features.shape[1:]))

        def inverse(*batches):
            *draws, features, guidance = batches
            with guided_by(guidance):
                x, _ = self.bijection.inverse_and_log_det(latents_of(*draws), features)
            return self.denoised(x, features) if denoise else x

        x = self._in_parts(inverse, *draws, features, guidance)
        overflowed = ~ops.all(ops.isfinite(x), axis=tuple(range(1, len(x.shape))))
        return spoil_rows(overflowed, self.data_spec.quantize(x)), overflowed

    @computes
    def round_trip_errors(self, x, condition=None):
        """The largest |x - inverse(forward(x))| of each example of dequantised x, (batch,)."""
        features = self.features_of(condition)
        z, _ = self.bijection.forward_and_log_det(x, features)
        again, _ = self.bijection.inverse_and_log_det(z, features)
        return ops.max(ops.abs(again - x), axis=tuple(range(1, len(x.shape))))

    def latents_of(self, seeds, temperatures):
        """Draws from the base distribution, row i from seeds[i] (two integers) alone, scaled."""
        _, draw = PRIORS[self.prior]
        return draw(seeds, self.data_spec.size, self.compute_dtype) * temperatures[:, None]

    @computes
    def samples_and_overflow(self, seeds, temperatures, condition=None, guidance=None):
        """`data_and_overflow` of draws from the base distribution; see `latents_of`."""
        denoise = self.data_spec.deviation is not None
        draws = [seeds, temperatures]
        return self._data_and_overflow(draws, condition, guidance, denoise, self.latents_of)

    def denoised(self, x, features=None):
        """What is expected of x without its normal noise: one step up the density's gradient."""
        with taking_gradients(), tf.GradientTape() as tape:
            tape.watch(x)
            z, log_det = self.bijection.forward_and_log_det(x, features)
            log_prob = self._log_prior(z) + log_det
        return x + self.data_spec.deviation**2 * tape.gradient(log_prob, x)

    def _in_parts(self, function, *batches, training=False):
        count = number_of_parts(self.bijection, self.data_spec.is_image, training)
        counters = counters_of(self.bijection) if training else ()
        return in_parts(function, 1 if self.jit_compile else count, *batches, counters=counters)

    def _log_prior(self, z):
        # tfd.Sample's would broadcast shapes at run time, which ONNX cannot.
        return ops.sum(self._element.log_prob(z), axis=-1)

    @property
    def _element(self):
        """The base distribution of one dimension of the latent."""
        zero = ops.zeros((), self.compute_dtype)
        distribution, _ = PRIORS[self.prior]
        return distribution(zero, zero + 1)

    def _guidance(self, guidance, rows):
        """A weight for each row, (rows,); None for 0, which costs nothing."""
        guidance = _number(guidance)
        if not _is_scalar_in_graph(guidance):
            check_in("[0, inf)", guidance=guidance)
            if guidance == 0:
                return None
        require(
            self.data_spec.condition.takes_null_label,
            "Argument `guidance` is for models with `num_classes` that take the label -1, none, as "
            "zoo.TarFlow does",
            guidance=guidance,
        )
        return tf.fill([rows], tf.cast(guidance, self.compute_dtype))

    def _check_adapted(self, method):
        if not self.adapted:
            raise ValueError(
                f"{type(self).__name__}.{method} needs a model that is adapted to data, and this "
                "one is not: call `fit` or `adapt(dataset)`, or load weights, first."
            )

    def _ready(self, method, x, condition):
        self._check_adapted(method)
        if isinstance(x, keras.KerasTensor):
            raise TypeError(
                f"{method} takes data, not symbolic tensors: in a functional model, use "
                '`model(x)["log_prob"]` or `model(x)["latent"]`.'
            )
        x = self.data_spec.check(tensor_if_one(self.data_spec.array(x)))
        return x, self.data_spec.condition.check(condition, x.shape[0])


def _number(value):
    """What an eager tensor holds; anything else as it is."""
    return value.numpy() if tf.is_tensor(value) and hasattr(value, "numpy") else value


def _is_scalar_in_graph(value):
    """Whether it is a scalar tensor whose value is known only when it runs."""
    return tf.is_tensor(value) and value.shape.rank == 0


def _warn_of(overflowed):
    """In a graph there is nobody to warn."""
    count = int(ops.sum(overflowed)) if tf.executing_eagerly() else 0
    if count:
        warnings.warn(
            f"{count} of {len(overflowed)} rows overflowed and are NaN, or black images: their "
            "latents are too far from those of data. A lower temperature keeps them nearer; a Glow "
            "with coupling='bounded_affine' overflows far less.",
            stacklevel=3,
        )
