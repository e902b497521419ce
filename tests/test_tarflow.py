"""TarFlow: causal transformers, tokens one by one, labels that are dropped and guide, noise."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import Flow, batch_parts, dequantization, layers, networks, zoo
from keras_flows.networks.causal_transformer import _gelu

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 1), dtype="uint8")
LABELS = np.array([0, 1, 2, 0, 1, 2], "int32")
SMALL = {"patch_size": 2, "depth": 2, "width": 8, "num_layers": 1, "num_heads": 2, "seed": 0}


def make(**options):
    keras.utils.set_random_seed(0)
    model = zoo.TarFlow((4, 4, 1), **SMALL, **options)
    perturb(model)
    return model


@pytest.fixture(scope="module")
def labelled():
    return make(num_classes=3, label_dropout=0.25)


# The network.


def test_gelu_is_exact_with_gradients_of_any_order():
    x = tf.constant(np.linspace(-6, 6, 41))
    with tf.GradientTape() as outer, tf.GradientTape() as inner:
        inner.watch(x), outer.watch(x)
        y = _gelu(x)
        slope = inner.gradient(y, x)
    share = 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(y, x * share, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, share + x * density, rtol=1e-12, atol=1e-14)
    expected = (2 - x**2) * density
    np.testing.assert_allclose(outer.gradient(slope, x), expected, rtol=1e-11, atol=1e-14)


def test_one_token_at_a_time_gives_what_all_have():
    """Each sees itself and those before it, wherever tokens come from."""
    network = networks.CausalTransformer(8, 2, num_heads=2, dtype="float64")
    x, condition = (tf.constant(RNG.normal(size=(3, *shape))) for shape in ((5, 2), (4,)))
    network(x, condition)
    perturb(network, 0.3)
    positions, cache = tf.constant([3, 0, 4, 1, 2]), network.empty_cache(3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        together = network(x, condition, positions)
        third = tf.reduce_sum(tf.sin(together[:, 2]))
    seen = np.abs(tape.gradient(third, x)).min(axis=(0, 2)) > 0
    np.testing.assert_array_equal(seen, [True, True, True, False, False])
    for i in range(5):
        token, place = x[:, i : i + 1], positions[i : i + 1]
        one, cache = network(token, condition, place, cache=cache, index=i)
        np.testing.assert_allclose(one[:, 0], together[:, i], rtol=1e-12, atol=1e-12)
    assert np.abs(network(x, condition) - together).max() > 0.01  # of other places


@pytest.mark.slow
def test_causal_transformers_compute_in_half_what_they_compute():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    full, half = (networks.CausalTransformer(32, 2, dtype=d) for d in (None, "mixed_bfloat16"))
    y = full(x)
    assert half(x).dtype == "bfloat16"
    half.set_weights(full.get_weights())
    error = np.sqrt(np.mean((np.float32(half(x)) - y) ** 2) / np.mean(y**2))
    assert 1e-4 < error < 0.05


# Labels, and none.


def test_training_drops_labels_as_a_function_of_the_iteration(labelled, monkeypatch):
    labels = tf.zeros(400, "int32")
    batches = [labelled.training_condition(labels, i).numpy() for i in (0, 1, 0)]
    np.testing.assert_array_equal(batches[0], batches[2])
    assert (batches[0] != batches[1]).any()
    for batch in batches:
        assert set(batch) == {0, -1} and 0.15 < np.mean(batch < 0) < 0.35
    monkeypatch.setattr("keras_flows.distribute.replica_id", lambda: 1)
    assert (labelled.training_condition(labels, 0).numpy() != batches[0]).any()


@pytest.mark.slow
def test_fit_alone_drops_labels(labelled, eager, monkeypatch):
    seen = []

    def remember(x, condition=None, training=False):
        seen.append(np.asarray(condition))
        return Flow.latent_and_log_prob(labelled, x, condition, training)

    monkeypatch.setattr(labelled, "latent_and_log_prob", remember)
    labelled.compile(keras.optimizers.SGD(0.0))
    labelled.fit(IMAGES, LABELS, epochs=2, verbose=0, shuffle=False)
    labelled.evaluate(IMAGES, LABELS, verbose=0)
    *trained, evaluated = seen
    for iteration, labels in enumerate(trained):
        np.testing.assert_array_equal(labels, labelled.training_condition(LABELS, iteration))
    assert (np.concatenate(trained) < 0).any()
    np.testing.assert_array_equal(evaluated, LABELS)


@pytest.mark.slow
def test_no_label_is_a_label_wherever_one_is(labelled, eager):
    none = np.full(6, -1)
    log_prob = labelled.log_prob(IMAGES, none)
    assert np.abs(log_prob - labelled.log_prob(IMAGES, LABELS)).min() > 0
    np.testing.assert_allclose(labelled(IMAGES, condition=none)["log_prob"], log_prob, rtol=1e-5)
    labelled.compile(keras.optimizers.SGD(0.0))
    assert np.isfinite(labelled.train_on_batch(IMAGES, none)).all()
    same = labelled.sample(2, condition=-1, seed=0), labelled.sample(2, condition=none[:2], seed=0)
    np.testing.assert_array_equal(*same)


# Guidance.


@pytest.mark.slow
def test_each_row_is_guided_by_its_own_weight(labelled, monkeypatch):
    """In parts of a batch, too; and weight 0 is no guidance."""
    z = tf.constant(RNG.normal(size=(3, 16)).astype("float32"))
    labels = tf.constant(LABELS[:3])
    inverse = labelled.bijection.inverse_and_log_det
    plain = labelled.data_spec.quantize(inverse(z, labels)[0]).numpy()
    decoded = labelled.data_and_overflow(z, labels, tf.constant([0.0, 2.0, 0.5]))[0].numpy()
    np.testing.assert_array_equal(decoded[0], plain[0])
    assert (decoded[1] != plain[1]).any()
    monkeypatch.setattr(batch_parts, "_number_of_cores", lambda: 2)
    monkeypatch.setattr(batch_parts, "_threads", lambda kind: {"intra": 1, "inter": 0}[kind])
    for row, weight in enumerate([0.0, 2.0, 0.5]):
        alone = labelled.decode(z, labels, guidance=weight)[row]
        np.testing.assert_array_equal(alone, decoded[row])
    assert labelled._guidance(0, 3) is labelled._guidance(np.float32(0), 3) is None


@pytest.mark.slow
def test_samples_are_guided(labelled, eager):
    def sample(**options):
        return labelled.sample(3, condition=LABELS[:3], seed=1, **options).numpy()

    np.testing.assert_array_equal(sample(), sample(guidance=0))
    guided = sample(guidance=3.0)
    assert (guided != sample()).any()
    z = labelled.latents_of(tf.constant([[1, i] for i in range(3)]), tf.ones(3))
    np.testing.assert_array_equal(guided, labelled.decode(z, LABELS[:3], guidance=3.0))


# Noise.


def test_noise_is_normal_and_evaluation_says_so(eager):
    model = make(noise=0.1)
    x = IMAGES.astype("float32")
    np.testing.assert_array_equal(model.dequantize(IMAGES), x)
    scaled = model.bijection.layers[0](tf.constant([[[[0.0], [255.0]]]]))
    np.testing.assert_allclose(np.ravel(scaled), [-1, 1], atol=1e-6)
    many = np.zeros((200, 4, 4, 1), "uint8")
    noise = model.data_spec.noise(many, dequantization.FIT, 0, 0).numpy()
    assert noise.std() == pytest.approx(12.75, rel=0.05) and abs(noise.mean()) < 1
    np.testing.assert_array_equal(model.data_spec.quantize(x + 0.4), IMAGES)
    np.testing.assert_array_equal(model.data_spec.quantize(x - 0.4), IMAGES)

    model.compile(keras.optimizers.SGD(0.0))
    noise = model.data_spec.noise(IMAGES, dequantization.EVALUATE, model.seed, 0, 0)
    log_prob = model.latent_and_log_prob(x + noise)[1]
    bits = -np.mean(log_prob) / (16 * math.log(2))
    results = model.evaluate(IMAGES, verbose=0, return_dict=True)
    assert results == pytest.approx({"loss": -np.mean(log_prob), "noisy_bits_per_dim": bits})
    assert np.abs(model.log_prob(IMAGES, seed=0) - model.log_prob(IMAGES)).min() > 0
    assert "noisy_bits_per_dim" in model.fit(IMAGES, verbose=0).history


def test_samples_are_denoised_by_what_is_expected_without_noise():
    """Of a normal density the expectation is known: of the mean and x, weighted by precision."""
    noise, mean, deviation = 0.2, 128.0, 40.0
    rescale = layers.Rescale(1 / deviation, -mean / deviation)
    model = Flow(layers.Chain([rescale, layers.Flatten()]), (4, 4, 1), noise=noise)
    z = model.latents_of(tf.constant([[5, i] for i in range(4)]), tf.ones(4))
    x = np.reshape(z, (4, 4, 4, 1)) * deviation + mean
    share = (127.5 * noise / deviation) ** 2
    expected = np.clip(np.round(x + share * (mean - x)), 0, 255)
    np.testing.assert_allclose(model.sample(4, seed=5), expected, atol=1)
    assert np.abs(model.decode(z) - expected).max() > 10  # which it is not


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"num_classes": 10, "bits": 4}, "float32"),
        ({"condition_shape": (10,), "noise": 0.05}, "mixed_bfloat16"),
    ],
)
def test_tarflow_learns_digits_and_their_labels(options, dtype):
    from keras_flows import data

    images, labels = zip(*data.load("digits", split="train", batch_size=500, labels=True))
    x, condition = np.concatenate(images), np.concatenate(labels)
    if "condition_shape" in options:
        condition = np.eye(10, dtype="float32")[condition]
    keras.utils.set_random_seed(0)
    model = zoo.TarFlow((8, 8, 1), **SMALL, **options, dtype=dtype)
    model.compile(keras.optimizers.Adam(3e-3))
    loss = model.fit(x, condition, epochs=4, verbose=0).history["loss"]
    assert loss[-1] < loss[0] - 0.5 * 64 * math.log(2)
    assert model.sample(2, condition=condition[:2], seed=0).shape == (2, 8, 8, 1)


# Bad input.


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: m.sample(2, condition=0, guidance=-1),
            "`guidance` must be a number.*guidance=-1",
        ),
        (lambda m: m.decode(np.zeros((6, 16)), LABELS, np.nan), "`guidance` must be.*guidance=nan"),
        (lambda m: m.sample(2, condition=0, guidance="2"), "`guidance` must be.*guidance='2'"),
        (
            lambda m: m.sample(2, condition=-2),
            r"in 0\.\.2, or -1 for no label, as num.*: -2 at \[0\]",
        ),
        (lambda m: m.log_prob(IMAGES, LABELS + 1), r"in 0\.\.2, or -1 for no label.*Received"),
        (
            lambda m: Flow(layers.DiagonalScaling(), (4,)).sample(2, guidance=1.0),
            "`guidance` is for models with `num_classes`.*guidance=1.0",
        ),
        (
            lambda m: Flow(layers.LearnedPrior(num_classes=3), (4,), num_classes=3).log_prob(
                np.zeros((1, 4)), [-1]
            ),
            r"in 0\.\.2, as num_classes=3\. Received: -1 at \[0\]",
        ),
        (
            lambda m: layers.CausalAffine(networks.CausalTransformer(8), condition_shape=(2, 3)),
            r"`condition_shape` must be \(n,\).*Received: condition_shape=\(2, 3\)",
        ),
        (
            lambda m: layers.CausalAffine(networks.CausalTransformer(8)).build((None, 4)),
            r"needs tokens.*Received: shape \(None, 4\)",
        ),
        (
            lambda m: networks.CausalTransformer(8)(keras.KerasTensor((None, None, 2))),
            r"needs tokens.*Received: shape \(None, None, 2\)",
        ),
        (lambda m: networks.CausalTransformer(8, num_heads=3), "divide `width`.*num_heads=3"),
        (
            lambda m: layers.Repeat(
                layers.CausalAffine(networks.CausalTransformer(8)), 2, reversible=True
            ),
            "`reversible` must be False.*does not invert cheaply",
        ),
    ],
)
def test_bad_input(call, words, labelled):
    with pytest.raises(ValueError, match=words):
        call(labelled)


def test_networks_must_be_layers():
    with pytest.raises(TypeError, match="`network` must be a Keras layer.*Received: network=None"):
        layers.CausalAffine(None)
