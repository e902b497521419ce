"""What a model adapts to; features that hardly vary and images of few bits."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_flows import Flow, layers, zoo

MODELS = {
    "Glow": lambda **options: zoo.Glow((3,), depth=2, width=8, **options),
    "NICE": lambda **options: zoo.NICE((3,), depth=2, width=8, num_hidden=1, **options),
    "RealNVP": lambda **options: zoo.RealNVP((3,), depth=2, width=8, **options),
}
ROWS = np.random.default_rng(0).normal(5, 2, (600, 3)).astype("float32")


def with_feature_2(values):
    return np.column_stack([ROWS[:, :2], np.broadcast_to(values, 600)]).astype("float32")


@pytest.mark.parametrize("of", [lambda x: x, lambda x: tf.data.Dataset.from_tensors(x)])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_constant_feature_is_refused_by_name(make, of):
    model = make()
    model.compile()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"must vary.* Received: feature 2 is constant \(0.1\)$"):
        model.fit(of(with_feature_2(0.1)), verbose=0)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_constant_features_of_adapt_and_of_the_rows_that_are_trained_on():
    model = zoo.Glow((3,), depth=1, width=4)
    with pytest.raises(ValueError, match="feature 0 is constant .*, feature 2 is constant"):
        model.adapt(ROWS[:5] * [0, 1, 0])
    model.compile()
    x = with_feature_2(np.arange(600) >= 300)
    with pytest.raises(ValueError, match="feature 2 is constant"):
        model.fit(x, validation_split=0.5, verbose=0)
    model.adapt(x)
    model.fit(x[:300], verbose=0)  # adapted: whatever comes now


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_feature_that_varies_beyond_the_rows_read_does_not_explode(make):
    """It is 0.1, which no sum of float32 holds exactly, but in one row."""
    keras.utils.set_random_seed(0)
    model = make(adapt_examples=200, seed=1)
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    losses = model.fit(with_feature_2(np.where(np.arange(600) == 300, 1, 0.1)), verbose=0).history
    assert losses["loss"][0] < 100


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_act_norm_leaves_alone_only_what_does_not_vary(scale):
    layer = layers.ActNorm()
    x = np.column_stack([scale * ROWS[:, 0], np.full(600, np.float32(0.1 * scale))])
    layer.adapt(x)
    z = layer(x).numpy()
    np.testing.assert_allclose(z.std(axis=0), [1, 0], atol=0.02)
    further = layer(x + [[0, 1]]).numpy() - z
    np.testing.assert_allclose(further[:, 1], 1, rtol=1e-2)


def test_vectors_are_read_at_random_from_arrays_and_first_from_datasets():
    x = np.concatenate([ROWS, 100 + ROWS])  # the second half shows

    def mean_read(x, adapt_examples=100, seed=0):
        model = Flow(layers.ActNorm(), (3,), adapt_examples=adapt_examples, seed=seed)
        model.adapt(x)
        return -model.bijection.bias.numpy()

    np.testing.assert_allclose(mean_read(x, None), x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(mean_read(x), x.mean(axis=0), atol=20)
    np.testing.assert_array_equal(mean_read(x), mean_read(x))
    assert np.any(mean_read(x) != mean_read(x, seed=1))
    batches = tf.data.Dataset.from_tensor_slices(x).batch(64)
    np.testing.assert_allclose(mean_read(batches), x[:100].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(mean_read(batches, None), x.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("make", [zoo.Glow, zoo.NICE], ids=lambda make: make.__name__)
def test_images_of_as_few_bits_as_the_model(make, dtype):
    """Bytes x are seen as floor(x / 2^(8 - bits)): of 0 and 1, all would be 0."""
    binary = np.random.default_rng(0).integers(0, 2, (16, 4, 4, 1)).astype(dtype)
    model = make((4, 4, 1), bits=1, depth=1, width=2)
    model.compile(run_eagerly=True)
    with pytest.raises(ValueError, match=r"one bin.* bits=1 .* multiplied by 128.* values in 0..1"):
        model.fit(binary, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(128 * binary, verbose=0)
        model.fit(binary, verbose=0)  # no longer read for what it may be
        make((4, 4, 1), depth=1, width=2).adapt(binary)
        make((4, 4, 1), depth=1, width=2, bits=1).adapt(0 * binary)
    with pytest.warns(UserWarning, match="bits=5 .* 0..31, must be multiplied by 8"):
        make((4, 4, 1), depth=1, width=2, bits=5).adapt(31 * binary)


def test_resized_images_are_told_to_be_rounded(eager):
    images = np.full((4, 4, 4, 1), 17.25, "float32")
    with pytest.raises(ValueError, match=r"in \[17.25, 17.25\]. Resized .*tf.round"):
        zoo.NICE((4, 4, 1), depth=1, width=2).log_prob(images)


@pytest.mark.parametrize(("offset", "deviation"), [(1e6, 10), (1e7, 200), (1.7e9, 25_000)])
@pytest.mark.parametrize("kind", [layers.Standardize, layers.ActNorm])
def test_what_is_far_from_0_is_scaled_by_its_own_deviation(kind, offset, deviation):
    """Whose sum float32 rounds by more than that."""
    x = np.random.default_rng(0).normal(size=(10_000, 2))  # TensorFlow adds rows one by one
    x[:, 0] = offset + deviation * x[:, 0]
    layer = kind()
    layer.adapt(x)
    z = layer(x).numpy().astype("float64")
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.02)


FAR = 1.7e9 + np.random.default_rng(1).normal(0, 300, (600, 1))  # float32 has every 128th second
LOST = {
    "time": FAR,
    "a stand-in": np.where(np.arange(600) == 7, 1e20, ROWS[:, 0])[:, None],
    "tiny": 1e-30 * ROWS[:, :1].astype("float64"),
}


@pytest.mark.parametrize("values", LOST.values(), ids=LOST)
def test_features_that_float32_does_not_tell_apart_are_refused(values):
    x = np.concatenate([ROWS[:, :2], values], axis=1)
    model = zoo.NSF((3,), depth=1, width=4)
    of_a_condition = zoo.NSF((2,), depth=1, width=4, condition_shape=(3,))
    for each in (model, of_a_condition):
        each.compile()
    for refused in (
        lambda: model.fit(x, verbose=0),
        lambda: model.fit(tf.data.Dataset.from_tensor_slices(x).batch(64), verbose=0),
        lambda: of_a_condition.adapt(ROWS[:, :2], x),
    ):
        with pytest.raises(ValueError, match="must have a deviation of at least 100 .*feature 2"):
            refused()
    keras.config.set_floatx("float64")
    try:
        precise = zoo.NSF((3,), depth=1, width=4, dtype="float64")
        precise.adapt(x)
        assert np.isfinite(precise.log_prob(x)).all()
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, 738_000 + np.arange(600) % 9),  # days, all of which float32 has
        ({}, 1e6 + ROWS[:, 0] * 10),
        ({"integer_columns": [2]}, 2**21 + np.arange(600) % 3),
        ({"bounds": [None, None, (-3e38, -3e37)]}, -1.5e38 + 1e37 * ROWS[:, 0]),
        ({"integer_columns": [2]}, np.full(600, 2020)),
    ],
)
def test_features_that_float32_tells_apart_are_not_refused(options, values):
    x = np.column_stack([ROWS[:, :2], values])
    model = zoo.NSF((3,), depth=1, width=4, **options)
    model.adapt(x)
    assert np.isfinite(model.log_prob(x)).all()
