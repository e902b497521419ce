"""Splines at their ends and between their bins, beyond what holds for every bijection."""

import numpy as np
import pytest
import tensorflow as tf

from keras_flows import layers, networks
from keras_flows.layers.spline_coupling import _Bin, _solve

BINS, BOUND = 5, 2.0
DIRECTIONS = ("transform", "inverse_transform")


def coupling(**options):
    return layers.SplineCoupling(None, bins=BINS, tail_bound=BOUND, **options)


def random_parameters(rows, scale, dtype):
    """Those of `rows` splines, as a network might give them."""
    parameters = np.random.default_rng(0).normal(scale=scale, size=(rows, 3 * BINS - 1))
    return tf.constant(parameters, dtype)


def values_at_ends(dtype):
    """Where something begins or ends with zero parameters, beside it, and what is no number."""
    knots = np.linspace(-BOUND, BOUND, BINS + 1).astype(dtype)
    beside = [np.nextafter(knots, np.array(side, dtype)) for side in (-np.inf, np.inf)]
    rest = np.array([0, 3, -3, 1e30, -np.inf, np.inf, np.nan], dtype)
    return np.concatenate([knots, *beside, rest])[:, None]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", [0, 1, 20])
def test_gradients_are_finite_everywhere(direction, scale):
    """To the second order, of the values and of the slopes."""
    x = tf.constant(values_at_ends("float32"))
    parameters = random_parameters(len(x), scale, "float32")
    with tf.GradientTape() as outer:
        outer.watch([x, parameters])
        with tf.GradientTape(persistent=True) as inner:
            inner.watch([x, parameters])
            z, log_slope = getattr(coupling(), direction)(x, parameters)
        first = [g for y in (z, log_slope) for g in inner.gradient(y, [x, parameters])]
    inside = np.abs(x) < BOUND
    np.testing.assert_array_equal(np.where(inside, 0, z), np.where(inside, 0, x))
    assert np.isfinite(log_slope).all() and np.all(inside | (log_slope == 0))
    for gradient in (*first, *outer.gradient(first, [x, parameters])):
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(first[0], np.exp(log_slope), rtol=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("batched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_second_derivatives(batched, direction):
    """Along some direction, or of a batched Hessian, against differences of the gradient."""
    x = tf.constant([[-1.3], [0.2], [1.1]], "float64")
    point = tf.concat([x, random_parameters(3, 1, "float64")], axis=1)
    along = tf.constant(np.random.default_rng(1).normal(size=point.shape))

    def gradient(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            z, log_slope = getattr(coupling(), direction)(point[:, :1], point[:, 1:])
            total = tf.reduce_sum(tf.sin(z) + log_slope**2)
        return tape.gradient(total, point)

    with tf.GradientTape() as tape:
        tape.watch(point)
        value = gradient(point)
        projected = tf.reduce_sum(value * along)
    if batched:
        actual = tf.linalg.matvec(tape.batch_jacobian(value, point), along)
    else:
        actual = tape.gradient(projected, point)
    difference = (gradient(point + 1e-6 * along) - gradient(point - 1e-6 * along)) / 2e-6
    assert np.linalg.norm(difference) > 1
    np.testing.assert_allclose(actual, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0, 1, 20])
def test_float32_round_trip(scale):
    """To 1e-4, but where the spline is nearly flat: there no float32 tells the values apart."""
    x = np.linspace(-BOUND, BOUND, 2001, dtype="float32")[:, None]
    x = np.concatenate([x, values_at_ends("float32")[:-3]])
    parameters = random_parameters(len(x), scale, "float32")
    z, log_slope = coupling().transform(tf.constant(x), parameters)
    again, inverse_log_slope = coupling().inverse_transform(z, parameters)
    steep = (log_slope.numpy() > np.log(1e-2)) | (np.abs(x) >= BOUND)
    np.testing.assert_allclose(np.where(steep, again, x), x, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(again * np.exp(log_slope), x * np.exp(log_slope), atol=5e-6)
    assert steep.mean() > 0.2
    if scale < 20:
        np.testing.assert_allclose(inverse_log_slope, -log_slope, atol=1e-3)


def test_the_inverse_does_not_cancel_in_bins_as_steep_as_can_be():
    """Nor is its root that of zero, which has no gradient; up to 1, from either corner."""
    rng, size = np.random.default_rng(0), 20000
    slope, left, right = 10.0 ** rng.uniform([[-3], [-3], [-3]], [[3], [1], [1]], (3, size))
    up = 1 - rng.integers(0, 200, size) * 2.0**-24
    up[::2] = rng.random(size // 2)

    def solve(dtype):
        ups, height, *slopes = (tf.constant(v.astype("float32"), dtype) for v in values)
        ones, zeros = tf.ones_like(height), tf.zeros_like(height)
        with tf.GradientTape() as tape:
            tape.watch(slopes)
            across = _solve(ups, _Bin(zeros, ones, zeros, height, *slopes))
        return across, tape.gradient(across, slopes)

    values = (up, slope, left, right)
    across, gradients = solve("float32")
    assert np.isfinite(gradients).all()
    assert np.max(across) < 1 + 1e-6 and np.min(across) >= 0
    difference = np.abs(across.numpy() - solve("float64")[0].numpy())
    assert np.quantile(difference, 0.999) < 2e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_and_slopes_are_continuous(direction):
    """Over the knots, which the sizes of the bins put in other places, and into the tails."""
    row = random_parameters(1, 1, "float64")
    x = np.linspace(-BOUND - 0.1, BOUND + 0.1, 20001)[:, None]
    parameters = tf.repeat(row, len(x), axis=0)
    z, log_slope = getattr(coupling(), direction)(tf.constant(x), parameters)
    rise = np.diff(z, axis=0) / np.diff(x, axis=0)
    assert np.all(rise > 0)
    np.testing.assert_allclose(rise, np.exp((log_slope[1:] + log_slope[:-1]) / 2), rtol=5e-3)
    assert np.abs(np.diff(log_slope, axis=0)).max() < 0.02


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_stays_in_its_row(value):
    layer = layers.SplineCoupling(networks.MLP(4, 1), bins=BINS)
    layer.build((None, 2))
    layer.set_weights([np.full(w.shape, 0.3) for w in layer.weights])
    x = np.array([[0.2, -1.0], [0.5, 1.5], [-0.3, 0.1]], "float32")
    clean = layer.forward_and_log_det(x)
    x[1, 1] = value  # of the part that changes
    z, log_det = layer.forward_and_log_det(x)
    np.testing.assert_array_equal(z[1], [0.5, value])
    assert log_det[1] == 0
    x[1, 0] = value  # of the part that conditions
    for actual, wanted in zip(layer.forward_and_log_det(x), clean, strict=True):
        np.testing.assert_array_equal(np.delete(actual, 1, axis=0), np.delete(wanted, 1, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_xla(direction):
    x = tf.constant(np.random.default_rng(1).normal(size=(50, 1)).astype("float32"))
    parameters = random_parameters(50, 1, "float32")

    def gradients(x, parameters):
        with tf.GradientTape() as tape:
            tape.watch([x, parameters])
            z, log_slope = getattr(coupling(), direction)(x, parameters)
            loss = tf.reduce_sum(z**2) - tf.reduce_sum(log_slope)
        return z, log_slope, *tape.gradient(loss, [x, parameters])

    compiled = tf.function(gradients, autograph=False, jit_compile=True)(x, parameters)
    for actual, wanted in zip(compiled, gradients(x, parameters), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 1}, "bins=1"),
        ({"bins": 1000}, "bins=1000"),
        ({"tail_bound": 0}, "tail_bound=0"),
        ({"tail_bound": float("inf")}, "tail_bound=inf"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        layers.SplineCoupling(None, **options)
