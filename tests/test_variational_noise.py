"""Variational dequantisation, and bounds on the likelihood of images by several noises."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb, same_weights

from keras_flows import Flow, dequantization, zoo

pytestmark = pytest.mark.usefixtures("float64")
# All images of four pixels of one bit.
IMAGES = np.array(list(itertools.product([0, 128], repeat=4)), "uint8").reshape(16, 2, 2, 1)


def make(kind="variational", shape=(2, 2, 1), bits=1, scale=0.1, **options):
    keras.utils.set_random_seed(0)
    options = {"levels": 1, "depth": 2, "width": 4, **options}
    model = zoo.Glow(shape, **options, bits=bits, dequantization=kind, seed=0)
    model.adapt(np.random.default_rng(1).integers(0, 256, (32, *shape), "uint8"))
    perturb(model.bijection, 0.05)
    if kind == "variational":
        perturb(model._variational_noise, scale)
    model.compile(keras.optimizers.Adam(0.02))
    return model


@pytest.fixture(scope="module")
def model():
    return make()


def grid(points=12):
    """Midpoints of the unit cube of four pixels, (points^4, 2, 2, 1)."""
    middles = (np.arange(points) + 0.5) / points
    return np.stack(np.meshgrid(*[middles] * 4, indexing="ij"), axis=-1).reshape(-1, 2, 2, 1)


def exact_bits(model):
    """Bits per dimension of all images: the integral of the density over each one's bins."""
    u = grid()
    total = 0.0
    for image in IMAGES:
        _, log_prob = model.latent_and_log_prob(image / 128 + u)
        total -= np.log(np.mean(np.exp(log_prob)))
    return total / len(IMAGES) / 4 / math.log(2)


def bits(model, num_samples=None, images=IMAGES):
    if num_samples is None:
        return model.evaluate(images, verbose=0, return_dict=True)["bits_per_dim"]
    results = model.evaluate_bound(images, num_samples=num_samples, verbose=0)
    assert results["loss"] == pytest.approx(results["bits_per_dim"] * 4 * math.log(2), rel=1e-5)
    return results["bits_per_dim"]


# The noise.


def test_the_noise_is_drawn_from_the_density_that_it_tells():
    model = make(shape=(4, 4, 3), bits=3, scale=0.05)  # of more, some u round to 1
    noise = model._variational_noise
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), "uint8")
    bins = model.dequantize(images, 0.0)
    normal = np.random.default_rng(0).normal(size=(5, 48))
    u, log_q = noise(bins, normal)
    assert u.shape == images.shape and 0 < np.min(u) < np.max(u) < 1
    again, log_det = noise.bijection.forward_and_log_det(u, noise.features_of(bins))
    np.testing.assert_allclose(again, normal, atol=1e-9)
    log_normal = -0.5 * np.sum(normal**2 + math.log(2 * math.pi), axis=1)
    np.testing.assert_allclose(log_q, log_normal + log_det, rtol=1e-12)
    # It sees the image: of another it is another.
    other, _ = noise(bins[::-1], normal)
    assert np.abs(other - u).max(axis=(1, 2, 3))[[0, 1, 3, 4]].min() > 1e-3


def test_its_density_integrates_to_1(model):
    """By draws of nearly uniform noise, of which the density is known."""
    noise = model._variational_noise
    normal = np.random.default_rng(0).normal(size=(20_000, 4))
    u = 1 / (1 + np.exp(-1.7 * normal))
    log_drawn = -0.5 * (normal**2 + math.log(2 * math.pi)) - np.log(1.7 * u * (1 - u))
    for image in IMAGES[[0, 6]]:
        features = tf.repeat(noise.features_of(image[None] / 128), len(u), axis=0)
        z, log_det = noise.bijection.forward_and_log_det(u.reshape(-1, 2, 2, 1), features)
        log_q = log_det - 0.5 * tf.reduce_sum(z**2 + math.log(2 * math.pi), axis=1)
        ratios = np.exp(log_q - log_drawn.sum(axis=1))
        assert ratios.std() > 0.2  # of equal ones it would be no test
        assert ratios.mean() == pytest.approx(1, abs=5 * ratios.std() / math.sqrt(len(u)))


def test_it_starts_nearly_uniform():
    model = make(scale=0.0)
    _, log_q = model._variational_noise(
        np.zeros((1000, 2, 2, 1)), np.random.default_rng(0).normal(size=(1000, 4))
    )
    assert 0 < np.mean(log_q) < 0.1


# Bounds.


@pytest.mark.usefixtures("eager")
def test_fit_and_evaluate_take_the_density_of_the_noise_off(model):
    """By hand, with the noise that the seed, the batches and the counter make."""
    losses = []
    for start in (0, 10):
        x = model.dequantize(IMAGES[start : start + 10], 0.0)
        normal = dequantization.normal_noise(
            (len(x), 4), "float64", dequantization.EVALUATE, model.seed, start, 0
        )
        u, log_q = model._variational_noise(x, normal)
        losses.extend(log_q - model.latent_and_log_prob(x + u)[1])
    assert model.evaluate(IMAGES, batch_size=10, verbose=0, return_dict=True) == pytest.approx(
        {"loss": np.mean(losses), "bits_per_dim": np.mean(losses) / 4 / math.log(2)}, rel=1e-9
    )
    before = model.get_weights()
    history = model.fit(IMAGES, batch_size=16, shuffle=False, verbose=0).history
    model.set_weights(before)
    x = model.dequantize(IMAGES, 0.0)
    normal = dequantization.normal_noise((16, 4), "float64", dequantization.FIT, model.seed, 0, 0)
    u, log_q = model._variational_noise(x, normal)
    assert history["loss"] == pytest.approx([np.mean(log_q - model.latent_and_log_prob(x + u)[1])])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uniform", "variational"])
def test_bounds_come_to_the_likelihood_itself(kind):
    """From above, as bits go, and one noise is what `evaluate` has."""
    model = make(kind)
    exact = exact_bits(model)
    assert bits(model, 1) == bits(model)
    often = np.tile(IMAGES, (64, 1, 1, 1))  # so that one noise of each is enough to tell
    one, few, many = bits(model, images=often), bits(model, 4, often), bits(model, 1000)
    assert exact + 0.005 < few < one - 0.03
    assert many == pytest.approx(exact, abs=0.02)
    assert bits(model) == bits(model)  # evaluate is as it was


@pytest.mark.slow
def test_bounds_of_vectors_with_whole_numbers_and_a_condition():
    keras.utils.set_random_seed(0)
    model = zoo.NSF((2,), integer_columns=[0], condition_shape=(1,), depth=2, width=8, seed=0)
    x = np.stack(
        [np.random.default_rng(0).integers(0, 4, 40), np.random.default_rng(0).normal(size=40)],
        axis=1,
    )
    condition = np.random.default_rng(0).normal(size=(40, 1))
    model.adapt(x, condition)
    perturb(model, 0.2)
    model.compile()
    one, many = (
        model.evaluate_bound(x, condition, num_samples=count, verbose=0)["loss"]
        for count in (1, 500)
    )
    noises = np.repeat((np.arange(300) + 0.5) / 300, 40)
    noisy = np.tile(x, (300, 1)) + np.stack([noises, 0 * noises], axis=1)
    _, log_prob = model.latent_and_log_prob(noisy, np.tile(condition, (300, 1)))
    exact = -np.mean(np.log(np.mean(np.exp(log_prob).reshape(300, 40), axis=0)))
    assert many == pytest.approx(exact, abs=0.02) and one > exact + 0.05


@pytest.mark.slow
def test_noise_learns_to_tighten_the_bound():
    model = make(scale=0.05)
    model.bijection.trainable = False
    model.compile(keras.optimizers.Adam(0.02))
    images = np.tile(IMAGES, (64, 1, 1, 1))
    exact, before = exact_bits(model), bits(model, images=images)
    density = model.bijection.get_weights()
    model.fit(images, batch_size=128, epochs=15, verbose=0)
    assert all(map(np.array_equal, model.bijection.get_weights(), density))
    after = bits(model, images=images)
    # Of a density drawn at random a little, as there is little to learn of it.
    assert exact < after < before - 0.1 * (before - exact)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_log_prob_and_samples_are_those_of_bin_centres(model):
    uniform = make("uniform")
    uniform.bijection.set_weights(model.bijection.get_weights())
    for method, argument in (("log_prob", IMAGES), ("encode", IMAGES), ("sample", 4)):
        options = {"seed": 1} if method == "sample" else {}
        results = [getattr(each, method)(argument, **options) for each in (model, uniform)]
        np.testing.assert_array_equal(*results)


# Files, and what is refused.


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_files_and_presets_keep_it(model, tmp_path):
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for loaded in (
        keras.models.load_model(tmp_path / "model.keras"),
        Flow.from_preset(tmp_path / "preset"),
    ):
        assert loaded.dequantization == "variational" and same_weights(loaded, model)
    with pytest.raises(ValueError, match=r"values, the model"):
        Flow.from_preset(tmp_path / "preset", dequantization="uniform")
    make("uniform").save_to_preset(tmp_path / "uniform")
    with pytest.raises(ValueError, match=r"values, the model"):
        Flow.from_preset(tmp_path / "uniform", dequantization="variational")


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: zoo.RealNVP((4,), dequantization="variational"), "is for images"),
        (lambda: zoo.NSF((4,), integer_columns=[0], dequantization="variational"), "for images"),
        (
            lambda: zoo.TarFlow((4, 4, 1), noise=0.1, dequantization="variational"),
            "without `noise`.*noise=0.1",
        ),
        (lambda: zoo.NICE((3, 4, 1), dequantization="variational"), "of even height and width"),
        (lambda: zoo.NICE((4, 4, 1), dequantization="normal"), "`dequantization` must be one of"),
    ],
)
def test_what_has_no_such_noise_is_refused(make_model, message):
    with pytest.raises(ValueError, match=message):
        make_model()


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_wrong_number_of_noises_is_refused(model, count):
    with pytest.raises(ValueError, match="`num_samples` must be an integer of at least 1"):
        model.evaluate_bound(IMAGES, num_samples=count)


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: zoo.NICE((4,)),
        lambda: zoo.TarFlow((4, 4, 1), noise=0.1, width=8),
    ],
)
def test_bounds_of_what_is_no_whole_number_are_refused(make_model):
    with pytest.raises(ValueError, match="evaluate_bound is for images without `noise`"):
        make_model().evaluate_bound(np.zeros((2, 4)), num_samples=2)


def test_each_number_of_noises_has_a_graph_that_is_made_once():
    model, traced = make("uniform"), []
    latent_and_log_prob = model.latent_and_log_prob

    def spy(*args):
        traced.append(args)
        return latent_and_log_prob(*args)

    model.latent_and_log_prob = spy
    by_1, by_4 = bits(model, 1), bits(model, 4)
    assert by_1 != by_4
    before, plain = len(traced), bits(model)
    assert plain == by_1 and len(traced) == before + 1
    for _ in range(2):
        assert (bits(model), bits(model, 4), bits(model, 1)) == (plain, by_4, by_1)
    assert len(traced) == before + 1

    model.bijection.trainable = False  # each looks for itself
    assert (bits(model, 4), bits(model), bits(model, 1)) == (by_4, plain, by_1)
    assert len(traced) > before + 3
    before = len(traced)
    model.compile()
    bits(model, 4)
    assert len(traced) > before
