"""Interpolation, attributes, neighbours, and scores of what is unlike the training data."""

import importlib.util
import math
import re
import zlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from keras_flows import latent

A, B = np.random.default_rng(0).normal(size=(2, 6))


@pytest.mark.parametrize("how", ["linear", "spherical"])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_interpolation_ends_where_it_should(how, shape):
    a, b = A.reshape(shape), B.reshape(shape)
    z = latent.interpolate(a, b, 5, how)
    assert z.shape == (5, *shape)
    np.testing.assert_allclose(z[[0, -1]], [a, b], atol=1e-12)
    assert latent.interpolate(tf.constant(a, tf.float32), b.astype("float32"), 2).dtype == "float32"


def test_integers_are_numbers_as_others():
    np.testing.assert_allclose(latent.interpolate([0, 0], [2, 4], 3), [[0, 0], [1, 2], [2, 4]])
    unsigned = np.array([[1], [9]], "uint8")
    _, distances = latent.nearest(np.array([[5]], "uint8"), unsigned, k=2)
    np.testing.assert_allclose(distances, [[4, 4]])
    _, distances = latent.nearest(np.float16([[300]]), np.float16([[-300]]))
    np.testing.assert_allclose(distances, [[600]])  # whose square is no half


def test_linear_interpolation_has_equal_steps():
    steps = np.diff(latent.interpolate(A, B, 5), axis=0)
    np.testing.assert_allclose(steps, np.tile((B - A) / 4, (4, 1)), atol=1e-12)


def test_spherical_interpolation_turns_by_equal_angles():
    z = latent.interpolate(A, 3 * B, 5, "spherical")
    radii = np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(np.diff(radii, n=2), 0, atol=1e-12)  # which change steadily
    unit = z / radii[:, None]
    angles = np.arccos(np.sum(unit[1:] * unit[:-1], axis=1))
    whole = np.arccos(A @ B / np.linalg.norm(A) / np.linalg.norm(B))
    np.testing.assert_allclose(angles, whole / 4, atol=1e-9)


def test_spherical_interpolation_between_the_same_is_that():
    np.testing.assert_allclose(latent.interpolate(A, A, 3, "spherical"), [A, A, A], atol=1e-12)
    np.testing.assert_allclose(latent.interpolate(A, 2 * A, 3, "spherical")[1], 1.5 * A)


def test_a_direction_leads_from_those_without_to_those_with():
    rng = np.random.default_rng(1)
    has = np.arange(2000) % 3 == 0
    z = rng.normal(size=(2000, 4)) + np.where(has[:, None], [3.0, 0, 0, -1], 0)
    np.testing.assert_allclose(latent.direction(z, has), [3, 0, 0, -1], atol=0.15)
    np.testing.assert_array_equal(latent.direction(z, has.astype(int)), latent.direction(z, has))
    z = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 7.0]])
    np.testing.assert_allclose(latent.direction(z, [True, False, False]), [-2.5, -4])


def test_the_nearest_come_first():
    among = np.array([[0.0, 0], [3, 4], [0, 1], [0, -1]])
    indices, distances = latent.nearest(np.array([[0.0, 0.1], [3, 3]]), among, k=3)
    np.testing.assert_array_equal(indices, [[0, 2, 3], [1, 2, 0]])
    np.testing.assert_allclose(distances[0], [0.1, 0.9, 1.1])
    indices, distances = latent.nearest(np.empty((0, 2)), among, k=2)
    assert indices.shape == distances.shape == (0, 2)


def test_typicality_is_the_distance_from_the_entropy():
    scores = latent.typicality([-10.0, -14.0, -11.0, math.nan], [-11.0, -13.0])
    np.testing.assert_allclose(scores, [2, 2, 1, math.inf])
    np.testing.assert_allclose(latent.typicality([-10.0, -14.0, -9, -9], [-12.0], batch=2), [0, 3])


def test_a_ratio_is_by_how_much_another_knows_data_better():
    scores = latent.likelihood_ratio([-10.0, -20.0, -math.inf], [-12.0, -12.0, -12.0])
    np.testing.assert_allclose(scores, [-2, 8, math.inf])


def test_a_compressor_s_log_prob_is_the_length_of_its_code():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3), "uint8")
    flat = np.full((32, 32, 3), 7, "uint8")
    ramp = np.uint8(np.add.outer(np.arange(32), np.arange(32))[..., None] * [1, 2, 3])
    nats = latent.compressor_log_prob(np.stack([noise, flat, ramp]))
    sizes = -nats / (8 * math.log(2))
    np.testing.assert_allclose(sizes, np.round(sizes))  # whole bytes
    assert noise.size < sizes[0] < 1.02 * noise.size and sizes[1] < 40
    # Of a ramp PNG predicts each pixel by the one before; zlib cannot.
    assert sizes[2] < len(zlib.compress(ramp.tobytes(), 9)) / 2
    assert latent.compressor_log_prob(noise.reshape(1, 16, 24, 8)).shape == (1,)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: latent.interpolate(A, B[:3]), "`a` and `b` must have one shape.*a=(6,), b=(3,)"),
        (lambda: latent.interpolate(A, B, 1), "`n` must be an integer of at least 2"),
        (lambda: latent.interpolate(A, B, how="round"), "`how` must be one of ('linear', 'sph"),
        (lambda: latent.interpolate(A, -A, how="spherical"), "`b` must not be opposite"),
        (lambda: latent.interpolate(A, 0 * A, how="spherical"), "`b` must not be zero"),
        (lambda: latent.direction(A[None], [1, 0]), "(n, D) and (n,). Received: z=(1, 6), has=(2"),
        (lambda: latent.direction(np.stack([A, B]), [1, 1]), "`has` must be bool.*values=[1]"),
        (lambda: latent.direction(np.stack([A, B]), [3, 1]), "`has` must be bool.*values=[1, 3]"),
        (lambda: latent.nearest(A[None], B[None, :2]), "(m, D). Received: z=(1, 6), among=(1, 2)"),
        (lambda: latent.nearest(A[None], B[None], k=2), "`k` must be at most 1"),
        (lambda: latent.typicality([1.0, 2, 3], [1.0], batch=2), "multiple of batch=2"),
        (lambda: latent.typicality([1.0], []), "`reference` must be (n,) and (m,)"),
        (
            lambda: latent.typicality([1.0], [math.nan, 1]),
            "`reference` must be finite",
        ),
        (lambda: latent.likelihood_ratio([1.0], [1.0, 2]), "one shape (n,).*(1,), other=(2,)"),
        (lambda: latent.likelihood_ratio([1.0], [math.nan]), "`other` must be finite"),
        (lambda: latent.compressor_log_prob(np.zeros((2, 4, 4, 1))), "uint8.*dtype='float64'"),
        (lambda: latent.compressor_log_prob(np.zeros((4, 4, 1), "uint8")), "shape=(4, 4, 1)"),
    ],
)
def test_bad_arguments(call, message):
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(ValueError, match=pattern):
        call()


# The example.


@pytest.fixture(scope="module")
def example():
    path = ROOT / "tools" / "examples" / "out_of_distribution.py"
    spec = importlib.util.spec_from_file_location("out_of_distribution", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_auroc_is_how_often_the_strange_one_scores_higher(example):
    assert example.auroc(np.array([1.0, 2, 3]), np.array([2.0, 9])) == (1.5 + 3) / 6
    assert example.auroc(np.array([1.0, 2]), np.array([math.inf, 3])) == 1


def test_images_of_other_data_are_given_the_shape_of_a_model_s(example):
    images = np.random.default_rng(0).integers(1, 256, (2, 4, 4, 3), "uint8")
    larger = example.shaped(images[..., :1], (8, 8, 3))
    np.testing.assert_array_equal(larger[:, 2:6, 2:6], images[..., :1].repeat(3, axis=3))
    assert larger.shape == (2, 8, 8, 3) and not larger[:, :2].any() and not larger[:, :, 6:].any()
    smaller = example.shaped(images, (2, 2, 1))
    np.testing.assert_array_equal(smaller[..., 0], np.uint8(images[:, 1:3, 1:3].mean(axis=-1)))


def test_changed_images(example):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), "uint8")
    kinds = example.changed(images, 0)
    assert all(x.shape == images.shape and x.dtype == np.uint8 for x in kinds.values())
    np.testing.assert_array_equal(kinds["inverted"], ~images)
    np.testing.assert_array_equal(kinds["turned by 90 degrees"][0, -1, :, 0], images[0, :, 0, 0])
    blocks = kinds["4 x 4 blocks"].reshape(30, 2, 4, 2, 4)
    assert np.ptp(blocks, axis=(2, 4)).max() == 0
    np.testing.assert_allclose(blocks[0, 1, 0, 1, 0], images[0, 4:, 4:].mean(), atol=1)
    assert np.ptp(kinds["flat"], axis=(1, 2)).max() == 0 < np.ptp(kinds["flat"])
    share = np.mean(example.noisy(images, 0) != images)
    assert abs(share - example.NOISE) < 0.03


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_the_example_from_end_to_end(example, tmp_path, monkeypatch, capsys):
    digits = example.digits
    monkeypatch.setattr(example, "digits", lambda split: [each[:100] for each in digits(split)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["example", "--seeds", "1", "--epochs", "1"])
    example.main()
    printed = capsys.readouterr().out
    (row,) = re.findall(r"\| digits 5-9 \|(.*) \|", printed)
    values = [float(value) for value in row.split("|")]
    assert len(values) == 6 and all(0 <= value <= 1 for value in values[1:])
    picture = tmp_path / "demo" / "out_of_distribution_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
