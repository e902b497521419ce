"""Densities integrate to one, fit two moons, and are what samples follow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import data, zoo


def density(model, points):
    return np.exp(model(np.float32(points))["log_prob"]).astype("float64")


def grid(low, high, cells):
    """Centres (cells^2, 2) of a square grid's cells, and their area."""
    width = (high - low) / cells
    centres = low + width * (np.arange(cells) + 0.5)
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2), width**2


@pytest.mark.parametrize(
    ("make", "options", "far", "cells"),
    [
        (zoo.NICE, {"num_hidden": 1}, 40, 400),
        (zoo.RealNVP, {}, 40, 400),
        (zoo.NSF, {}, 8, 800),  # which resolves its narrow bins
        (zoo.Glow, {}, 40, 400),
    ],
)
def test_integrates_to_one_over_the_plane(make, options, far, cells):
    keras.utils.set_random_seed(0)
    model = make((2,), depth=3, width=8, **options)
    perturb(model, scale=0.2)
    # Deviations are below 3; on the kinks of ReLU the midpoint rule was seen to err by 1e-4.
    points, area = grid(-far, far, cells)
    assert abs(density(model, points).sum() * area - 1) < 1e-3


@pytest.mark.slow  # half a minute each, in which TensorFlow vectorises the loops
@pytest.mark.parametrize("reversible", [False, True])
def test_hessians(reversible, float64):
    """Of log_prob, in a tf.function: central differences of its gradient, taken eagerly."""
    keras.utils.set_random_seed(0)
    model = zoo.Glow((2,), depth=2, width=4, reversible=reversible)
    perturb(model, scale=0.3)
    model.adapt(np.random.default_rng(0).normal(size=(16, 2)))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            log_prob = model.log_prob(x)
        return tape.gradient(log_prob, x)

    @tf.function
    def hessian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = gradient(x)
        return tape.batch_jacobian(slope, x)

    x = np.random.default_rng(1).normal(size=(3, 2))
    steps = 1e-5 * np.eye(2)
    differences = [(gradient(tf.constant(x + h)) - gradient(tf.constant(x - h))) for h in steps]
    expected = np.stack(differences, axis=-1) / 2e-5
    actual = hessian(tf.constant(x))
    assert np.abs(actual).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def one_bit():
    """All 16 images of 2x2 cells with one bit, and a Glow with its mass in [0, 2)^4."""
    bits = np.indices((2, 2, 2, 2)).reshape(4, 16).T.reshape(16, 2, 2, 1)
    images = np.uint8(128 * bits)
    keras.utils.set_random_seed(0)
    model = zoo.Glow((2, 2, 1), depth=2, width=8, bits=1, seed=0)
    perturb(model)
    model.adapt(np.repeat(images, 16, axis=0))
    prior = model.bijection.layers[1].levels[-1].layers[-1]
    prior.set_weights([0 * weight for weight in prior.get_weights()])
    latent = model.encode(images).numpy()
    # The images are two deviations of the data from the bounds; now they are five of the prior.
    prior.bias.assign(np.r_[latent.mean(0), np.log(latent.std(0) / np.e)])
    return model, bits, images


@pytest.fixture(scope="module")
def probabilities(one_bit):
    """The integral of the density over the cell of each image, by Gauss and Legendre."""
    model, bits, _ = one_bit
    nodes, weights = np.polynomial.legendre.leggauss(8)
    noise = np.stack(np.meshgrid(*[(nodes + 1) / 2] * 4), axis=-1).reshape(-1, 2, 2, 1)
    weights = np.stack(np.meshgrid(*[weights / 2] * 4), axis=-1).reshape(-1, 4).prod(axis=1)
    points = (bits[:, None] + noise).reshape(-1, 2, 2, 1)
    return np.exp(model.distribution.log_prob(points)).reshape(16, -1) @ weights


def test_sums_to_one_over_all_images(one_bit, probabilities):
    model, _, images = one_bit
    # Mass outside and the quadrature's error were seen to be below 0.002, for several seeds.
    assert abs(probabilities.sum() - 1) < 0.005
    assert probabilities.max() > 3 * probabilities.min() > 0  # not all the same
    # E[exp(log_prob(x + u))] by the model's own noise; five standard errors.
    draws = np.exp(model.log_prob(np.repeat(images, 4096, axis=0), seed=0)).reshape(16, 4096)
    error = np.sqrt((draws.var(axis=1) / 4096).sum())
    assert abs(draws.mean(axis=1).sum() - probabilities.sum()) < 5 * error < 0.2


def test_sampled_images_have_their_probabilities(one_bit, probabilities):
    model, _, images = one_bit
    samples = model.sample(4000, seed=0).numpy()
    matches = np.all(samples[:, None] == images, axis=(2, 3, 4))
    assert np.all(matches.sum(axis=1) == 1)
    assert_counts_follow(matches.sum(axis=0), probabilities)


def assert_counts_follow(counts, probabilities):
    """Pearson's statistic has mean df and variance 2 df: at most five deviations above."""
    expected = counts.sum() * probabilities / probabilities.sum()
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)


# Two moons.


@pytest.fixture(scope="module")
def moons(data_dir):
    """The arrays of both splits, and a flow trained on most of the first."""
    train, test = (
        data.load("moons", split=split, batch_size=400, data_dir=data_dir, seed=0)
        for split in ("train", "test")
    )
    model = zoo.RealNVP.from_preset("realnvp_moons")
    return model, *(np.concatenate(list(split)).astype("float64") for split in (train, test))


def kernel_log_density(centres, x, bandwidth):
    distance = sum((a[:, None] - b) ** 2 for a, b in zip(x.T, centres.T))
    exponent = -0.5 * distance / bandwidth**2
    most = exponent.max(axis=1, keepdims=True)  # against underflow
    mean = np.exp(exponent - most).mean(axis=1)
    return most[:, 0] + np.log(mean / (2 * np.pi * bandwidth**2))


def test_has_learned_moons(moons):
    model, train, test = moons
    flow = np.mean(model.log_prob(test))

    deviation = test - train.mean(axis=0)
    covariance = np.cov(train.T)
    distance = (deviation @ np.linalg.inv(covariance) * deviation).sum(axis=1).mean()
    gaussian = -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert flow > gaussian + 0.7

    centres, held_out = train[:5000], train[5000:5500]
    bandwidth = max(
        (0.03, 0.05, 0.08),
        key=lambda bandwidth: kernel_log_density(centres, held_out, bandwidth).mean(),
    )
    assert flow > kernel_log_density(train, test, bandwidth).mean() - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("make", [zoo.NICE, zoo.RealNVP, zoo.NSF, zoo.Glow])
def test_a_last_batch_of_any_size_trains(make):
    """A row or two more than whole batches have end where whole ones do."""
    rows = np.concatenate(list(data.load("moons", split="train", batch_size=514).take(1)))
    unseen = np.concatenate(list(data.load("moons", split="test", batch_size=500)))

    def loss(count):
        keras.utils.set_random_seed(0)
        model = make((2,), seed=0)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(rows[:count], batch_size=64, epochs=25, verbose=0)
        return model.evaluate(unseen, verbose=0, return_dict=True)["loss"]

    whole = loss(512)
    for count in (513, 514):
        assert loss(count) < whole + 0.3


def test_samples_follow_the_learned_density(moons):
    model, _, _ = moons
    points, area = grid(-2, 3, 200)
    p = density(model, points) * area
    assert 0.99 < p.sum() < 1.001
    samples = model.sample(4000, seed=0).numpy()

    # Squares of 0.5 x 0.5, those with few samples and what lies outside as one.
    def by_square(points, weights=None):
        edges = np.linspace(-2, 3, 11)
        return np.histogram2d(*points.T, bins=(edges, edges), weights=weights)[0].ravel()

    probabilities, counts = by_square(points, p), by_square(samples)
    often = probabilities > 0.01
    probabilities = np.append(probabilities[often], 1 - probabilities[often].sum())
    assert_counts_follow(np.append(counts[often], 4000 - counts[often].sum()), probabilities)

    # The mean log-likelihood of samples is minus the entropy, up to five standard errors (and the
    # entropy of what lies outside).
    log_prob = model.log_prob(samples).numpy()
    negative_entropy = (p * np.log(p / area + 1e-30)).sum()
    assert abs(log_prob.mean() - negative_entropy) < 5 * log_prob.std() / np.sqrt(4000)
