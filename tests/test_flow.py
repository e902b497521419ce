"""What a Flow promises, method by method: values, units, dtypes, noise, training, saving."""

import functools
import json
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb, same_weights

from keras_flows import Flow, layers, networks, zoo
from keras_flows.private import flatten_layers

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 1), dtype="uint8")
VECTORS = RNG.normal(1, 2, (10, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 2, 1, 0])
HALF = np.float32(0.5)
ALL_PIXELS = np.arange(256, dtype="uint8").reshape(64, 2, 2, 1)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def glow():
    """Class-conditional, on images."""
    keras.utils.set_random_seed(0)
    model = zoo.Glow((4, 4, 1), levels=1, depth=1, width=4, num_classes=3, seed=0)
    model.adapt(IMAGES, LABELS)
    perturb(model, scale=0.03)  # more, and float32 could not tell scales of e^-20 from 0
    return model


@pytest.fixture(scope="module")
def nice():
    """On vectors, with a logistic prior."""
    keras.utils.set_random_seed(0)
    model = zoo.NICE((3,), depth=2, width=8, num_hidden=1, standardize=False)
    perturb(model)
    return model


@pytest.fixture(scope="module", params=(1, 3, 5, 8))
def uniform(request):
    """The uniform density of images of so many bits: the logit of a uniform x is logistic."""
    chain = [layers.Rescale(2.0**-request.param), layers.Logit(0.0), layers.Flatten()]
    return Flow(layers.Chain(chain), (2, 2, 1), bits=request.param, prior="logistic", seed=0)


def small_image_flow(seed=0, coupling=True):
    """Learns, and is traced in no time."""
    keras.utils.set_random_seed(0)
    chain = [layers.Rescale(1 / 256, -0.5), layers.Flatten(), layers.DiagonalScaling()]
    chain += [layers.AdditiveCoupling(networks.MLP(4, 1))] if coupling else []
    return Flow(layers.Chain(chain), (2, 2, 1), seed=seed)


def regularized_flow():
    """On vectors, with a penalty of 0.1 bound^2."""
    keras.utils.set_random_seed(0)
    coupling = layers.AffineCoupling(
        networks.MLP(4), scale="tanh", bound_regularizer=keras.regularizers.L2(0.1)
    )
    model = Flow(layers.Chain([coupling, layers.DiagonalScaling()]), (3,))
    perturb(model)
    return model, coupling.bound


def small_glow(**kwargs):
    keras.utils.set_random_seed(0)
    return zoo.Glow((3,), depth=1, width=4, seed=0, **kwargs)


# Likelihood.


def test_log_prob_is_the_prior_plus_the_log_det(glow, nice):
    z, log_det = map(np.asarray, glow.bijection.forward_and_log_det(IMAGES + HALF, LABELS))
    by_hand = -0.5 * (z**2).sum(1) - 8 * np.log(2 * np.pi) + log_det
    log_prob = glow.log_prob(IMAGES, condition=LABELS)
    assert log_prob.dtype == tf.float32 and log_prob.shape == (6,)
    close(log_prob, by_hand)
    close(glow.encode(IMAGES, condition=LABELS), z)

    z, log_det = map(np.asarray, nice.bijection.forward_and_log_det(VECTORS))
    close(nice.log_prob(VECTORS), (-z - 2 * np.log1p(np.exp(-z))).sum(1) + log_det)


def test_distribution_is_the_density_of_dequantised_data(glow, nice):
    kwargs = {"bijector_kwargs": {"condition": LABELS}}
    log_prob = glow.distribution.log_prob(IMAGES + HALF, **kwargs)
    close(log_prob, glow.log_prob(IMAGES, condition=LABELS))
    assert glow.distribution.sample(6, **kwargs).shape == (6, 4, 4, 1)
    close(nice.distribution.log_prob(VECTORS), nice.log_prob(VECTORS))
    assert nice.distribution.event_shape == (3,)


def test_call_and_predict_give_latent_and_log_prob(glow):
    labelled = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
    for result in (glow(IMAGES, condition=LABELS), glow.predict(labelled, verbose=0)):
        assert list(result) == ["latent", "log_prob"]
        assert result["latent"].shape == (6, 16) and result["latent"].dtype == "float32"
        close(result["latent"], glow.encode(IMAGES, condition=LABELS))
        close(result["log_prob"], glow.log_prob(IMAGES, condition=LABELS))


def test_labels_condition_their_own_row(glow):
    other = (LABELS + 1) % 3
    other[0] = LABELS[0]
    latent = glow.encode(IMAGES, condition=LABELS)
    for function in (
        lambda labels: glow.log_prob(IMAGES, condition=labels),
        lambda labels: glow.encode(IMAGES, condition=labels),
        lambda labels: tf.cast(glow.decode(latent, condition=labels), "float32"),
        lambda labels: tf.cast(glow.sample(6, condition=labels, seed=0), "float32"),
    ):
        change = tf.reduce_max(tf.reshape(tf.abs(function(LABELS) - function(other)), (6, -1)), 1)
        assert change[0] < 1e-4 and np.all(change[1:] > 1e-3)


def test_float_images_and_other_integers_are_as_good(glow):
    expected = glow.encode(IMAGES, condition=LABELS)
    for dtype in ("float32", "float64", "int32"):
        close(glow.encode(IMAGES.astype(dtype), condition=LABELS.astype("int64")), expected)


def test_lists_are_batches_with_all_their_digits():
    """In a graph, of its tensors too."""
    options = {"condition_shape": (1,), "dtype": "float64"}
    model = Flow(layers.LearnedPrior(condition_shape=(1,), dtype="float64"), (1,), **options)
    model.adapt(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
    perturb(model)
    x, condition = np.array([[0.1]]), np.array([[0.7]])
    expected = model.encode(x, condition)
    close(model.encode([[0.1]], [[0.7]]), expected, rtol=1e-12, atol=0)
    listed = tf.function(lambda x, c: model.encode([x], [c]))
    close(listed(x[0], condition[0]), expected, rtol=1e-12, atol=0)


def test_bits_per_dim_of_the_uniform_density_are_the_bits(uniform):
    close(uniform.log_prob(ALL_PIXELS), -4 * uniform.bits * math.log(2), atol=1e-3)
    uniform.compile(run_eagerly=True)
    result = uniform.evaluate(ALL_PIXELS, batch_size=25, verbose=0, return_dict=True)
    close(result["bits_per_dim"], uniform.bits, atol=1e-3)
    close(result["loss"], 4 * uniform.bits * math.log(2), atol=1e-3)


@pytest.mark.parametrize("batch_size", [10, 4])
def test_evaluate_is_the_mean_over_examples(batch_size):
    model, bound = regularized_flow()
    model.compile(run_eagerly=True)
    result = model.evaluate(VECTORS, batch_size=batch_size, verbose=0, return_dict=True)
    nll = -np.mean(model.log_prob(VECTORS))
    assert set(result) == {"loss", "bits_per_dim"} and 0.1 * bound**2 > 1e-3
    close(result["loss"], nll + 0.1 * bound**2)
    close(result["bits_per_dim"], nll / (3 * math.log(2)))


def test_evaluate_averages_over_the_noise():
    model = small_image_flow(coupling=False)
    model.bijection.layers[2].log_scale.assign([math.log(256)] * 4)  # z = x + u - 128
    model.compile()
    copies = np.full((4000, 2, 2, 1), 127, "uint8")
    loss = model.evaluate(copies, batch_size=1000, verbose=0, return_dict=True)["loss"]
    draws = -model.log_prob(copies, seed=1).numpy()
    error = 5 * draws.std() / math.sqrt(4000)  # five standard errors
    assert abs(loss - draws.mean()) < math.sqrt(2) * error
    # Four times the variance of u, 1/12, enters half of |z|^2; at the centre there is none.
    assert abs(loss + np.mean(model.log_prob(copies)) - 4 / 24) < error < 0.05


# Noise, as a bijection sees it in eager steps.


class Spy(layers.Flatten):
    """Remembers what came by."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward_and_log_det(self, x, condition=None, training=False):
        self.seen.append(np.array(x))
        return super().forward_and_log_det(x, condition, training)


def spied_flow(seed=0, bits=8):
    chain = layers.Chain([Spy(), layers.DiagonalScaling()])
    model = Flow(chain, (2, 2, 1), bits=bits, seed=seed)
    model.compile(keras.optimizers.SGD(0.0))
    return model


def seen_during(model, method, *args, **kwargs):
    seen = model.bijection.layers[0].seen
    seen.clear()
    method(*args, **kwargs)
    return np.concatenate(seen)


def test_noise_is_uniform_in_training_and_the_centre_in_requests(eager):
    model = spied_flow(bits=3)
    bins = ALL_PIXELS // 32
    batches = tf.data.Dataset.from_tensor_slices(ALL_PIXELS).batch(16)
    for seen in (
        seen_during(model, model, ALL_PIXELS),
        seen_during(model, model.log_prob, ALL_PIXELS),
        seen_during(model, model.encode, ALL_PIXELS),
        seen_during(model, model.predict, batches, verbose=0),
    ):
        np.testing.assert_array_equal(seen, bins + 0.5)
    drawn = [
        seen_during(model, model.log_prob, ALL_PIXELS, seed=0) - bins,
        seen_during(model, model.adapt, batches) - bins,
        seen_during(model, model.evaluate, batches, verbose=0) - bins,
        seen_during(model, model.fit, batches, verbose=0) - bins,
    ]
    for noise in drawn:
        assert 0 <= noise.min() and noise.max() < 1
        # Five standard errors of 256 draws.
        assert abs(noise.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / 256)
        assert abs(noise.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 256)
    # No two methods, batches, examples or pixels share it.
    assert len(np.unique(drawn)) > 0.98 * np.size(drawn)


def test_noise_is_a_function_of_the_seed_and_the_iteration(eager):
    zeros = np.zeros((8, 2, 2, 1), "uint8")
    batches = tf.data.Dataset.from_tensor_slices(zeros).batch(4)

    def noise(seed):
        model = spied_flow(seed)
        return seen_during(model, model.fit, batches, epochs=2, verbose=0)

    first = noise(seed=0)
    assert len(np.unique(first)) > 0.98 * first.size  # over batches and epochs
    np.testing.assert_array_equal(noise(seed=0), first)
    assert not np.isin(noise(seed=1), first).any()

    accumulating = spied_flow()
    accumulating.compile(keras.optimizers.Adam(gradient_accumulation_steps=4), run_eagerly=True)
    within_an_update = seen_during(accumulating, accumulating.fit, batches, epochs=2, verbose=0)
    np.testing.assert_array_equal(within_an_update, first)

    model = spied_flow()
    first, again = (seen_during(model, model.evaluate, batches, verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    drawn = [seen_during(model, model.log_prob, zeros, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.isin(drawn[2], drawn[0]).any()


def test_a_flow_without_seed_draws_one_and_keeps_it():
    model, other = (Flow(layers.Flatten(), (2, 2, 1)) for _ in range(2))
    assert model.seed != other.seed
    assert Flow.from_config(model.get_config()).seed == model.seed


def test_log_prob_with_seed_is_that_of_the_distribution(eager):
    model = spied_flow()
    model.bijection.layers[1].log_scale.assign_add([1.0, -1.0, 0.5, 0.0])
    dequantised = seen_during(model, model.log_prob, ALL_PIXELS, seed=3)
    expected = model.log_prob(ALL_PIXELS, seed=3)
    close(model.distribution.log_prob(dequantised), expected)
    assert not np.allclose(model.log_prob(ALL_PIXELS), expected)


# Encode, decode, sample.


def test_an_empty_batch_has_empty_results(glow):
    """Whose convolutions oneDNN, where TensorFlow computes with it, gets wrong."""
    none, label = IMAGES[:0], LABELS[:0]
    assert glow.log_prob(none, condition=label).shape == (0,)
    assert glow.log_prob(none, condition=label, seed=1).shape == (0,)
    assert glow(none, condition=label)["latent"].shape == (0, 16)
    latent = glow.encode(none, condition=label)
    assert latent.shape == (0, 16)
    assert glow.decode(latent, condition=label).shape == none.shape


def test_images_come_back_exactly(uniform, glow):
    unit = 2 ** (8 - uniform.bits)
    decoded = uniform.decode(uniform.encode(ALL_PIXELS))
    assert decoded.dtype == tf.uint8
    np.testing.assert_array_equal(decoded, ALL_PIXELS // unit * unit)
    decoded = glow.decode(glow.encode(IMAGES, condition=LABELS), condition=LABELS)
    np.testing.assert_array_equal(decoded, IMAGES)


def test_vectors_come_back(nice):
    latent = nice.encode(VECTORS)
    assert latent.shape == (10, 3) and latent.dtype == tf.float32
    decoded = nice.decode(latent)
    assert decoded.dtype == tf.float32
    close(decoded, VECTORS, atol=1e-4)


def test_decode_clips_to_the_range_of_images():
    chain = layers.Chain([layers.Rescale(0.1), layers.Flatten()])
    model = Flow(chain, (1, 1, 3), bits=3)
    np.testing.assert_array_equal(
        model.decode([[-1e4, -0.01, 0.19], [0.2, 0.81, 1e9]])[:, 0, 0], [[0, 0, 32], [64, 224, 224]]
    )


def test_samples_are_images_and_depend_on_seed_label_and_row(glow):
    labels = np.array([0, 0, 1, 2, 2])
    sample = functools.partial(glow.sample, condition=labels)
    images = sample(5, seed=1)
    assert images.dtype == tf.uint8 and images.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(sample(5, seed=1), images)
    assert np.any(sample(5, seed=2) != images)
    assert np.any(sample(5) != sample(5))
    assert np.any(images[0] != images[1])
    # A row depends on the seed and its index, not on how many there are: pixels within 1.
    three = np.int32(glow.sample(3, condition=labels[:3], seed=1))
    assert np.abs(three - np.int32(images[:3])).max() <= 1
    cold = sample(5, temperature=0, seed=1)
    np.testing.assert_array_equal(cold[0], cold[1])
    np.testing.assert_array_equal(cold[3], cold[4])


def test_one_label_serves_for_all_samples():
    model = Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3)
    perturb(model)
    expected = model.sample(3, condition=[2, 2, 2], seed=1)
    for labels in (2, [2], np.int64(2), tf.constant(2)):
        np.testing.assert_array_equal(model.sample(3, condition=labels, seed=1), expected)
    in_graph = tf.function(lambda label: model.sample(3, condition=label, seed=1), autograph=False)
    # Somebody else's graph is computed whole, which may round otherwise.
    np.testing.assert_allclose(in_graph(tf.constant(2)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"must be in 0..2.*Received: 3 at \[0\]$"):
        model.sample(2, condition=3)


def test_samples_in_a_graph(nice):
    """Anew at each call, unless a seed is given, which may be a tensor, as the temperature."""
    anew = tf.function(lambda: nice.sample(2))
    assert not np.allclose(anew(), anew())
    given = tf.function(lambda seed, t: nice.sample(2, t, seed=seed), autograph=False)
    seed, temperature = tf.constant(5), tf.constant(0.5)
    expected = nice.sample(2, seed=5, temperature=0.5)
    for sample in (given(seed, temperature), nice.sample(2, temperature, seed=seed)):
        np.testing.assert_allclose(sample, expected, rtol=1e-6)
    assert not np.allclose(given(tf.constant(6), temperature), expected)
    with pytest.raises(ValueError, match="`temperature` must be.*-1"):
        nice.sample(2, tf.constant(-1.0))
    with pytest.raises(ValueError, match="`seed` must be"):
        nice.sample(2, seed=tf.constant([1, 2]))


@pytest.mark.parametrize("prior", ["gaussian", "logistic"])
def test_samples_come_from_the_prior_times_the_temperature(prior):
    model = zoo.NICE((3,), depth=2, width=8, num_hidden=1, prior=prior, standardize=False)
    perturb(model)
    sample = model.sample(1000, seed=0)
    assert sample.dtype == tf.float32 and sample.shape == (1000, 3)
    latent = model.encode(sample).numpy()
    close(model.encode(model.sample(1000, temperature=0.5, seed=0)), 0.5 * latent, atol=1e-4)
    # Five standard errors; the kurtoses are 3 and 4.2.
    variance, kurtosis = {"gaussian": (1, 3), "logistic": (np.pi**2 / 3, 4.2)}[prior]
    assert abs(latent.mean()) < 5 * math.sqrt(variance / 3000)
    assert abs(latent.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / 3000)
    assert abs(np.corrcoef(latent.T) - np.eye(3)).max() < 5 / math.sqrt(1000)
    # Successive rows and seeds are independent.
    assert abs(np.corrcoef(latent[1:, 0], latent[:-1, 0])[0, 1]) < 5 / math.sqrt(1000)
    other = model.encode(model.sample(1000, seed=1)).numpy()
    assert abs(np.corrcoef(latent.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(3000)


@pytest.mark.parametrize("shape", [(2, 2, 1), (4,)])
def test_rows_that_overflow_are_spoilt_and_counted(shape):
    """Throughout, and no other; a graph gives the same without a word."""
    model = Flow(layers.Chain([layers.Rescale(1e-37), layers.Flatten()]), shape)
    z = np.zeros((4, 4), "float32")
    z[0], z[1, 2], z[2], z[3, 1] = 9, 99, 1.5e-37, -99
    with pytest.warns(UserWarning, match="2 of 4 rows overflowed") as warned:
        decoded = model.decode(z).numpy().reshape(4, 4)
    assert warned[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        in_graph = tf.function(lambda z: model.decode(z))(z).numpy().reshape(4, 4)
        assert model.sample(3, temperature=0, seed=0).shape == (3, *shape)
    np.testing.assert_array_equal(decoded, in_graph)
    spoilt = np.array([False, True, False, True])
    if model.is_image:
        np.testing.assert_array_equal(decoded[:, 0], [255, 0, 1, 0])
        assert not decoded[spoilt].any()
    else:
        np.testing.assert_array_equal(np.isnan(decoded), spoilt[:, None].repeat(4, axis=1))
    with pytest.warns(UserWarning, match="3 of 3 rows overflowed"):
        sample = model.sample(3, temperature=1e3, seed=0).numpy()
    assert not sample.any() if model.is_image else np.isnan(sample).all()


# Adapt.


def test_fit_adapts_once_to_the_first_examples(tmp_path):
    x = np.concatenate([VECTORS[:6], 100 + VECTORS[6:]])  # the rest would show
    expected, model = small_glow(), small_glow(adapt_examples=6)
    expected.adapt(x[:6])
    assert expected.adapted and not model.adapted

    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    model.fit(tf.data.Dataset.from_tensor_slices(x).batch(4), verbose=0)
    assert model.adapted and same_weights(model, expected)
    model.fit(x[::-1], verbose=0)
    assert same_weights(model, expected)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    loaded.fit(x[::-1], verbose=0)
    assert loaded.adapted and same_weights(loaded, expected)

    model.adapt(x[6:])
    assert not same_weights(model, expected)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("adapted", [False, True])
def test_fit_opens_a_dataset_once_before_keras_does(adapted):
    opened = []

    def generate():
        opened.append(len(opened))
        yield from VECTORS

    class Count(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.before = len(opened)

    model, count = small_glow(adapt_examples=6), Count()
    if adapted:
        model.adapt(VECTORS)
    model.compile(run_eagerly=True)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec((3,)))
    model.fit(dataset.batch(4), epochs=2, verbose=0, callbacks=[count])
    assert count.before == 1 and len(opened) == 3


def test_get_layer_finds_layers_at_any_depth():
    """Those that Keras finds, as it does; those inside of a `Repeat`'s pattern, too."""
    glow, by_name = zoo.Glow((4, 4, 1), levels=2, depth=1, width=4), {}
    for layer in flatten_layers(glow.bijection):
        assert glow.get_layer(layer.path) is layer
        by_name.setdefault(layer.name, []).append(layer)
    assert len(by_name["output_layer"]) > 1
    for name, found in by_name.items():
        if len(found) == 1:
            assert glow.get_layer(name) is found[0]
    with pytest.raises(
        ValueError, match="`name` must be.*'output_layer'.*/output_layer'.*/output_"
    ):
        glow.get_layer("output_layer")
    assert glow.get_layer(index=0) is glow.bijection
    with pytest.raises(ValueError, match="No such layer: other. Existing layers are"):
        glow.get_layer("other")
    with pytest.raises(ValueError, match="only a layer name or a layer index"):
        glow.get_layer(glow.bijection.name, index=0)


def test_constructors_build_without_build():
    """So that one that a subclass overrides is not called before the subclass is ready for it."""

    class Late(Flow):
        def build(self, input_shape):
            raise AssertionError("called")

    assert Late(layers.DiagonalScaling(), (3,)).built


def test_adapt_makes_act_norm_normalise():
    model = Flow(layers.Chain([layers.ActNorm()]), (3,))
    model.adapt(VECTORS)
    latent = model.encode(VECTORS).numpy()
    close(latent.mean(0), [0, 0, 0])
    close(latent.std(0), [1, 1, 1])


def test_models_with_nothing_to_adapt_work_at_once():
    for make in (zoo.NICE, zoo.RealNVP):
        model = make((3,), depth=1, width=4, standardize=False)
        assert model.adapted
        assert np.isfinite(model.log_prob(VECTORS)).all()
        assert np.isfinite(model.sample(2)).all()


# Training.


def test_a_step_descends_the_shown_loss():
    model, _ = regularized_flow()
    expected, bound_before = regularized_flow()
    weights = expected.trainable_variables
    with tf.GradientTape() as tape:
        loss = sum(expected.losses) - tf.reduce_mean(expected(VECTORS)["log_prob"])
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    history = model.fit(VECTORS, verbose=0).history
    close(history["loss"], [loss])
    close(history["bits_per_dim"], [(loss - 0.1 * bound_before**2) / (3 * math.log(2))])
    for weight, before, gradient in zip(model.trainable_variables, weights, gradients):
        close(weight, before - 0.1 * gradient)


def test_fit_updates_running_statistics_and_evaluate_uses_them():
    model = zoo.RealNVP((3,), depth=1, width=4, batch_norm=True, standardize=False)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    untouched = zoo.RealNVP.from_config(model.get_config())
    untouched.set_weights(model.get_weights())
    close(model.evaluate(VECTORS, verbose=0)[0], -np.mean(model(VECTORS)["log_prob"]))
    assert same_weights(model, untouched)
    (loss,) = model.fit(VECTORS, verbose=0).history["loss"]
    assert loss < -np.mean(untouched(VECTORS)["log_prob"])  # by the batch's own statistics
    assert not same_weights(model, untouched)


def test_training_finds_the_maximum_of_the_likelihood():
    model = Flow(layers.Chain([layers.DiagonalScaling()]), (3,))
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(tf.data.Dataset.from_tensors(VECTORS).repeat(200), verbose=0)
    rms = np.sqrt((VECTORS**2).mean(0))
    close(model.bijection.layers[0].log_scale, -np.log(rms), atol=1e-3)
    nll = np.log(rms).sum() + 1.5 * (1 + np.log(2 * np.pi))
    close(model.evaluate(VECTORS, verbose=0)[0], nll, atol=1e-3)


def trained(seed=0, **options):
    model = small_image_flow(seed)
    model.compile(keras.optimizers.Adam(0.01), **options)
    model.fit(ALL_PIXELS[:32], batch_size=16, shuffle=False, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained_model():
    return trained()


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_training_ends_the_same_however_it_runs(options, trained_model):
    model = trained(**options)
    for weight, expected in zip(model.weights, trained_model.weights, strict=True):
        close(weight, expected, rtol=1e-6, atol=1e-6)


def test_training_is_a_function_of_the_seed():
    model, again, other = (trained(seed, run_eagerly=True) for seed in (0, 0, 1))
    assert same_weights(model, again) and not same_weights(model, other)


def test_training_resumes_after_loading(tmp_path, trained_model):
    model = small_image_flow()
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    model.fit(ALL_PIXELS[:32], batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.fit(ALL_PIXELS[:32], batch_size=16, shuffle=False, verbose=0)
    assert model.optimizer.iterations == 4
    for weight, expected in zip(model.weights, trained_model.weights, strict=True):
        close(weight, expected, rtol=1e-6, atol=1e-6)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 3

    def __getitem__(self, index):
        batch = tuple(array[4 * index : 4 * index + 4] for array in self.arrays)
        return batch if len(batch) > 1 else batch[0]


class Epochs(Batches):
    epoch = 0  # its own business

    def on_epoch_end(self):
        self.epoch += 1


def test_arguments_stand_where_keras_has_them(capsys):
    x = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    model = Flow(layers.Chain([layers.LearnedPrior()]), (2,))
    model.compile("adam", None, metrics=[], run_eagerly=True)
    history = model.fit(x, None, 4, 1, 0, None, 0.25).history
    assert "val_loss" in history
    loss = model.evaluate(x, None, 4, 0)
    assert loss == model.evaluate(x, batch_size=4, verbose=0)
    assert model.predict(x, 4, 0)["log_prob"].shape == (12,)
    assert not capsys.readouterr().out  # at verbose=0
    model.evaluate(x, None, 4, 2)
    assert capsys.readouterr().out.startswith("3/3")
    with pytest.raises(ValueError, match="takes no `loss`. Received: loss='mse'"):
        model.compile("adam", "mse")


def test_an_epoch_of_a_py_dataset_is_its_own():
    model = Flow(layers.Chain([layers.LearnedPrior()]), (2,))
    model.compile("adam", run_eagerly=True)
    data = Epochs(np.random.default_rng(0).normal(size=(12, 2)).astype("float32"))
    model.fit(data, shuffle=False, epochs=2, verbose=0)
    assert data.epoch >= 2


def as_dataset(*arrays):
    return {"x": tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else arrays[0]).batch(4)}


def as_arrays(*arrays):
    return {**dict(zip("xy", arrays)), "batch_size": 4, "shuffle": False}


def as_py_dataset(*arrays):
    return {"x": Batches(*arrays), "shuffle": False}


@pytest.mark.parametrize("option", [{}, {"num_classes": 2}, {"condition_shape": (1,)}])
@pytest.mark.parametrize("given", [as_dataset, as_arrays, as_py_dataset])
def test_fit_takes_data_of_every_kind(given, option):
    """Two classes around -3 and 3, whose means a conditional prior starts to learn."""
    labels = np.arange(10) % 2
    x = np.float32(6 * labels[:, None] - 3 + 0.1 * np.random.default_rng(1).normal(size=(10, 2)))
    condition = labels[:, None] - 7.5 if "condition_shape" in option else labels
    model = Flow(layers.Chain([layers.LearnedPrior(**option)]), (2,), **option)
    model.compile(keras.optimizers.Adam(0.3), run_eagerly=True)
    data = (x, condition) if option else (x,)
    history = model.fit(**given(*data), validation_data=as_dataset(*data)["x"], verbose=0).history
    assert set(history) == {"loss", "bits_per_dim", "val_loss", "val_bits_per_dim"}
    assert history["val_loss"] < history["loss"]
    if not option:
        close(history["val_loss"], -np.mean(model.log_prob(x)))
    if option:
        means = model.decode(np.zeros((2, 2)), condition=condition[:2])
        assert np.all(means[0] < 0) and np.all(means[1] > 0)


def pngs(images):
    """As decoded from files: height and width are unknown until they are read."""
    files = [tf.io.encode_png(image).numpy() for image in images]
    return tf.data.Dataset.from_tensor_slices(files).map(tf.io.decode_png)


def from_python(values):
    """Nothing is known but the dtype."""
    values = tf.convert_to_tensor(values)
    indices = tf.data.Dataset.range(len(values))
    return indices.map(lambda i: tf.py_function(lambda i: values[i], [i], values.dtype))


@pytest.mark.parametrize("source", [pngs, from_python])
def test_shapes_that_tensorflow_does_not_know_are_the_models(source):
    keras.utils.set_random_seed(0)
    chain = [layers.Rescale(1 / 256), layers.Flatten(), layers.LearnedPrior(num_classes=3)]
    model = Flow(layers.Chain(chain), (4, 4, 1), num_classes=3, seed=0)
    model.compile("sgd")
    labels = from_python(LABELS)
    unknown = tf.data.Dataset.zip((source(IMAGES), labels)).batch(4)
    assert not unknown.element_spec[0].shape.is_fully_defined()
    model.fit(unknown, verbose=0)
    known = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
    close(model.evaluate(unknown, verbose=0), model.evaluate(known, verbose=0))
    latent = model.predict(unknown, verbose=0)["latent"]
    close(latent, model.encode(IMAGES, condition=LABELS))

    signature = [tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int32)]
    decode = tf.function(
        lambda z, labels: model.decode(z, condition=labels), input_signature=signature
    )
    np.testing.assert_array_equal(decode(latent, LABELS), IMAGES)

    wrong = tf.data.Dataset.zip((source(IMAGES[:, :2]), labels)).batch(4)
    with pytest.raises(ValueError, match=r"4, 4, 1\).* Received: shape \(1, 2, 4, 1\)"):
        model.fit(wrong, verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[4,2,4,1\].*\[\?,4,4,1\]"):
        model.evaluate(wrong, verbose=0)


# Precision.


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"], indirect=True)
def test_only_networks_compute_in_half(policy, eager):
    compute, variable = {
        "mixed_bfloat16": ("bfloat16", "float32"),
        "mixed_float16": ("float16", "float32"),
        "float64": ("float64", "float64"),
    }[policy]
    model = small_glow()
    dense = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.Dense)]
    assert {layer.compute_dtype for layer in dense} == {compute}
    assert {weight.dtype for weight in model.trainable_weights} == {variable}

    model.compile(keras.optimizers.SGD(0.1))
    batches = tf.data.Dataset.from_tensors(VECTORS)
    losses = model.fit(batches, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.05
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    model.compile(model.optimizer)  # not scaled twice
    inner = getattr(model.optimizer, "inner_optimizer", None)
    assert not isinstance(inner, keras.optimizers.LossScaleOptimizer)
    for result in (
        *model(VECTORS).values(),
        model.log_prob(VECTORS),
        model.encode(VECTORS),
        model.sample(2),
        model.decode(VECTORS),
    ):
        assert result.dtype == variable and np.isfinite(result).all()

    exact = zoo.Glow.from_config({**model.get_config(), "dtype": "float64"})
    exact.set_weights(model.get_weights())
    close(model.log_prob(VECTORS), exact.log_prob(VECTORS), atol=0.05)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_images_under_a_half_policy(policy):
    model = zoo.Glow((4, 4, 1), levels=1, depth=1, width=4)
    model.adapt(IMAGES)
    convolutions = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, networks.ConvNet | networks.ScaledConv2D)
    ]
    assert {layer.compute_dtype for layer in convolutions} == {policy.removeprefix("mixed_")}
    result = model(IMAGES)
    assert all(value.dtype == tf.float32 for value in result.values())
    np.testing.assert_array_equal(model.data_of(result["latent"]), IMAGES)


# Saving.


@pytest.mark.parametrize("how", ["keras", "weights.h5", "checkpoint"])
def test_saved_models_come_back(how, glow, tmp_path):
    path = str(tmp_path / f"model.{how}")
    restored = zoo.Glow.from_config(glow.get_config())
    assert not restored.adapted
    if how == "keras":
        glow.save(path)
        restored = keras.models.load_model(path)
    elif how == "weights.h5":
        glow.save_weights(path)
        restored.load_weights(path)
    else:
        written = tf.train.Checkpoint(model=glow).write(path)
        tf.train.Checkpoint(model=restored).read(written).assert_existing_objects_matched()
    assert restored.adapted and same_weights(restored, glow)
    close(restored(IMAGES, condition=LABELS)["log_prob"], glow.log_prob(IMAGES, condition=LABELS))


def test_config_is_complete():
    config = {
        "input_shape": [2, 2, 1],
        "bits": 5,
        "prior": "logistic",
        "num_classes": 4,
        "adapt_examples": 7,
        "seed": 3,
        "name": "mine",
        "dtype": "mixed_bfloat16",
    }
    bijection = layers.Chain([layers.Flatten(), layers.LearnedPrior(num_classes=4)])
    model = Flow(bijection, **config)
    saved = json.dumps(model.get_config())
    restored = Flow.from_config(json.loads(saved))
    assert json.dumps(restored.get_config()) == saved
    for name in ("bits", "prior", "num_classes", "adapt_examples", "seed", "name"):
        assert getattr(restored, name) == config[name]
    assert restored.input_shape == (2, 2, 1)
    assert restored.compute_dtype == "float32"


def test_evaluate_is_inference():
    """Batch norm takes its running averages, and keeps them."""
    model = zoo.RealNVP((2,), depth=2, width=4, batch_norm=True, standardize=False)
    model.compile("adam")
    x = 3 + np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    before = model.get_weights()
    loss = model.evaluate(x, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(-model.log_prob(x).numpy().mean(), rel=1e-5)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("model", [zoo.NICE, zoo.RealNVP, zoo.NSF, zoo.Glow])
def test_zoo_keeps_bits(model):
    flow = model((2, 2, 1), depth=1, width=4, bits=3)
    assert flow.bits == flow.get_config()["bits"] == 3
    scale = next(
        layer for layer in flow.bijection.layers if type(layer).__name__ == "Rescale"
    ).scale
    assert scale == 1 / 8
