"""Threefry's bits are those published, and what is drawn with them follows its distribution."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from keras_flows import threefry

tfd = tfp.distributions
SEEDS = np.stack([np.full(4000, 7), np.arange(4000)], axis=1).astype("int32")
DRAWS = {
    threefry.uniform: tfd.Uniform,
    threefry.normal: tfd.Normal,
    threefry.logistic: tfd.Logistic,
}
each_draw = pytest.mark.parametrize("draw", DRAWS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.mark.parametrize("compiled", [False, True])
def test_words_are_those_of_random123(compiled):
    """The three lines `threefry2x32 20` of its known answers: counter, key, words."""
    known = """
        00000000 00000000 00000000 00000000 6b200159 99ba4efe
        ffffffff ffffffff ffffffff ffffffff 1cb996fc bb002be7
        243f6a88 85a308d3 13198a2e 03707344 c4923a9c 483df7a0
    """
    words = np.array([int(word, 16) for word in known.split()], "uint32").view("int32")
    *counter, key_0, key_1, first, second = words.reshape(3, 6).T
    block = tf.function(threefry.block, jit_compile=True) if compiled else threefry.block
    np.testing.assert_array_equal(block((key_0, key_1), counter), (first, second))


@each_draw
@each_dtype
def test_draws_follow_their_distribution(draw, dtype):
    """Kolmogorov and Smirnov's distance, and independence of columns, rows and seeds."""
    x = draw(SEEDS, 5, dtype).numpy()
    assert x.dtype == dtype and x.shape == (4000, 5)
    u = np.sort(DRAWS[draw](*np.array([0, 1], dtype)).cdf(x), axis=None)
    assert np.abs(u - (np.arange(u.size) + 0.5) / u.size).max() < 2 / np.sqrt(u.size)
    other = draw(SEEDS + np.int32([1, 0]), 5, dtype).numpy()
    swapped = draw(SEEDS[:, ::-1], 5, dtype).numpy()
    columns = np.concatenate([x[1:], x[:-1], other[1:], swapped[1:]], axis=1)
    for values in (columns, columns**2):
        correlation = np.corrcoef(values.T) - np.eye(20)
        assert np.abs(correlation).max() < 5 / np.sqrt(4000)


@each_draw
@each_dtype
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_row_is_a_function_of_its_seed_alone(draw, dtype, size):
    """To the bit, but for a logarithm or a cosine, which hangs on the place in a CPU's vector."""
    x = draw(SEEDS[:9], size, dtype).numpy()
    tolerance = 0 if draw is threefry.uniform else 8 * np.finfo(dtype).eps
    for rows in (slice(3, 4), slice(None, None, -2)):
        alone = draw(SEEDS[:9][rows], size, dtype)
        np.testing.assert_allclose(alone, x[rows], rtol=tolerance, atol=tolerance)
    assert np.unique(x).size == x.size


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 23), ("float64", 52)])
def test_uniform_numbers_are_the_centres_of_intervals(dtype, bits):
    u = threefry.uniform(SEEDS, 8, dtype).numpy().astype("float64")
    whole = u * 2.0**bits - 0.5
    np.testing.assert_array_equal(whole, np.floor(whole))
    for bit in range(bits):  # each is one in half of them, up to five deviations
        ones = np.floor(whole / 2.0**bit) % 2
        assert abs(ones.mean() - 0.5) < 2.5 / np.sqrt(u.size)


@each_draw
@each_dtype
@pytest.mark.parametrize("word", [0, -1])
def test_no_bits_give_an_end_or_infinity(draw, dtype, word, monkeypatch):
    def block(key, counter):
        return 2 * [tf.fill([1, len(counter[0])], word)]

    monkeypatch.setattr(threefry, "block", block)
    x = draw(SEEDS[:1], 3, dtype).numpy()
    assert np.isfinite(x).all()
    if draw is threefry.uniform:
        half = 2.0 ** (-24 if dtype == "float32" else -53)
        np.testing.assert_array_equal(x, np.full((1, 3), abs(word + half), dtype))
    elif word == 0:
        assert np.abs(x).max() > 5.7
