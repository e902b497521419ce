"""Columns of vectors that have bounds, and columns of whole numbers."""

import json
import re

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from conftest import perturb, precision, same_weights

from keras_flows import Flow, dequantization, layers, zoo

COLUMNS = {"bounds": [(0, 1), None, None, (0, 2)], "integer_columns": [2, 3]}
NAMES = ["share", "height", "visits", "children"]
SMALL = {"depth": 2, "width": 8, "num_blocks": 1}
MAKE = {
    "NICE": lambda **options: zoo.NICE((4,), depth=2, width=8, num_hidden=1, **options),
    "RealNVP": lambda **options: zoo.RealNVP((4,), **SMALL, **options),
    "NSF": lambda **options: zoo.NSF((4,), bins=4, **SMALL, **options),
    "Glow": lambda **options: zoo.Glow((4,), depth=2, width=8, **options),
}
BAD = {  # feature, value -> what is said of it
    (0, 1.5): "must lie within `bounds`. Received: feature 0{} is 1.5, outside of [0.0, 1",
    (0, -1e-3): "feature 0{} is -0.001, outside of [0.0, 1",
    (3, 3): "feature 3{} is 3.0, outside of [0.0, 2.0]",
    (2, 2.25): "`integer_columns` must hold whole numbers, in magnitude below 2^22 in float32. "
    "Received: feature 2{} is 2.25",
    (2, -1e-9): "feature 2{} is -1e-09",
    (2, 2.0001): "feature 2{} is 2.0001",
    (2, 2**22): "feature 2{} is 4.194304e+06",
}


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    x = [rng.beta(2, 0.5, count), rng.normal(170, 9, count), rng.poisson(3, count) - 1.0]
    x = np.column_stack([*x, rng.integers(0, 3, count)]).astype("float32")
    x[:2, 0] = 0, 1  # data may lie on bounds
    return x


X = rows(12)


def with_value(feature, value):
    x = X.copy()
    x[3, feature] = value
    return x


def compiled(model, **options):
    model.compile(keras.optimizers.SGD(1e-3), **{"run_eagerly": True, **options})
    return model


def adapted(make=MAKE["NICE"], **options):
    keras.utils.set_random_seed(0)
    model = compiled(make(seed=1, **{**COLUMNS, **options}))
    model.adapt(rows(200))
    perturb(model, 0.05)
    return model


@pytest.fixture(scope="module")
def model():
    return adapted()


def assert_are_data(x, low=0, high=1):
    """What `COLUMNS` say, column 0 strictly inside."""
    x = np.asarray(x)
    assert np.all((low < x[:, 0]) & (x[:, 0] < high))
    np.testing.assert_array_equal(x[:, 2:], np.floor(x[:, 2:]))
    assert np.isin(x[:, 3], [0, 1, 2]).all()


# In and out.


@pytest.mark.parametrize("name", MAKE)
def test_every_model_of_vectors(name, eager):
    model = adapted(MAKE[name])
    first = [type(layer).__name__ for layer in model.bijection.layers[:2]]
    assert first == ["Logit", "Standardize"]
    sample = model.sample(300, temperature=3, seed=1).numpy()
    assert_are_data(sample)
    assert np.ptp(sample, axis=0).min() > 0.9
    decoded = model.decode(model.encode(X)).numpy()
    np.testing.assert_allclose(decoded, X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(decoded[:, 2:], X[:, 2:])
    config = json.loads(json.dumps(model.get_config()))
    assert config["bounds"] == [[0, 1], None, None, [0, 2]]
    assert config["integer_columns"] == [2, 3]


@pytest.mark.parametrize(
    ("low", "high", "whole"),
    [
        (0, 1e6, False),
        (1e6, 1e6 + 10, False),
        (-3e38, 3e37, False),
        (0, 1e6, True),
        (1e6, 1e6 + 10, True),
        (-(2**22) + 1, -(2**22) + 3, True),
    ],
)
def test_samples_of_any_range(low, high, whole, eager):
    options = {"bounds": [(low, high)] * 2, "integer_columns": [0, 1] if whole else None}
    model = zoo.NICE((2,), depth=1, width=4, num_hidden=1, **options)
    model.adapt(np.round(np.random.default_rng(0).uniform(low, high, (100, 2))))
    perturb(model, 0.2)
    for temperature in (1, 3, 1e6):
        x = model.sample(500, temperature=temperature, seed=0).numpy()
        if whole:
            assert np.all((low <= x) & (x <= high) & (x == np.floor(x)))
        else:
            assert np.all((np.float32(low) < x) & (x < np.float32(high)))
        assert np.isfinite(model.log_prob(x)).all()  # they are data
    if whole and high - low < 11:
        assert {low, high} <= {*x.ravel().tolist()}


def test_whole_numbers_are_kept_in_bounds():
    """By a bijection that does not."""
    model = Flow(layers.DiagonalScaling(), (4,), **COLUMNS)
    z = np.array([[-1, 1.5, -2.5, -0.1], [2, -0.5, 7.9, 3.0]], "float32")
    np.testing.assert_array_equal(model.decode(z), [[-1, 1.5, -3, 0], [2, -0.5, 7, 2]])


def test_dtypes_of_data(model, eager):
    expected = model.log_prob(X)
    for dtype in ("float64", "float32"):
        np.testing.assert_array_equal(model.log_prob(X.astype(dtype)), expected)
    whole = np.maximum(np.floor(X), 0)
    with_three = np.maximum(whole, [0, 0, 0, 3])
    for dtype in ("int64", "uint8", "float16"):
        np.testing.assert_array_equal(model.log_prob(whole.astype(dtype)), model.log_prob(whole))
        with pytest.raises(ValueError, match="feature 3 is 3"):
            model.log_prob(with_three.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bound_is_rounded_as_data_are(dtype):
    """0.1 is more in float32 than in float64, and less in float16."""
    flow = Flow(layers.Logit(low=[0.1], high=[0.7]), (1,), bounds=[(0.1, 0.7)], dtype=dtype)
    for precise in ("float16", "float32", "float64"):
        assert np.isfinite(flow.log_prob(np.array([[0.1], [0.7]], precise))).all()
        with pytest.raises(ValueError, match="within `bounds`"):
            flow.log_prob(np.array([[0.099]], precise))


# Densities.


def test_a_density_within_bounds_integrates_to_one(eager):
    keras.utils.set_random_seed(0)
    model = zoo.NSF((2,), bounds=[(-1, 1), (0, 5)], bins=4, **SMALL)
    rng = np.random.default_rng(0)
    model.adapt(np.column_stack([rng.uniform(-0.9, 0.8, 200), rng.beta(3, 2, 200) * 5]))
    perturb(model, 0.1)
    cells = (np.arange(100) + 0.5) / 100
    grid = np.stack(np.meshgrid(2 * cells - 1, 5 * cells), axis=-1).reshape(-1, 2)
    total = np.exp(model.log_prob(grid.astype("float32"))).sum() * (2 / 100) * (5 / 100)
    np.testing.assert_allclose(total, 1, atol=5e-3)


def test_probabilities_of_whole_numbers(eager):
    """P(k) is the integral of the density over [k, k + 1), of which noise gives a bound."""
    chain = [layers.Logit(low=[0], high=[6]), layers.DiagonalScaling()]
    flow = Flow(layers.Chain(chain), (1,), bounds=[(0, 5)], integer_columns=[0], seed=0)
    chain[1].log_scale.assign([0.7])
    numbers = np.arange(6.0)[:, None]
    within = (np.arange(1000) + 0.5) / 1000
    density = flow.distribution.prob(np.float32(numbers + within)[..., None])
    exact = np.mean(density, axis=1)
    np.testing.assert_allclose(exact.sum(), 1, atol=1e-3)
    drawn = flow.log_prob(np.repeat(numbers, 20_000, axis=0), seed=0).numpy().reshape(6, -1)
    errors = 5 * np.exp(drawn).std(axis=1) / np.sqrt(20_000)
    assert np.all(abs(np.exp(drawn).mean(axis=1) - exact) < errors + 1e-6)
    assert np.all(drawn.mean(axis=1) < np.log(exact))
    centres = flow.distribution.log_prob(np.float32(numbers + 0.5))
    np.testing.assert_allclose(flow.log_prob(numbers), centres, rtol=1e-5)


def test_noise_is_of_whole_numbers_alone(model, eager):
    centre = X + np.float32([0, 0, 0.5, 0.5])
    expected = model.distribution.log_prob(centre)
    np.testing.assert_allclose(model.log_prob(X), expected, rtol=1e-5)
    np.testing.assert_allclose(model(X)["log_prob"], expected, rtol=1e-5)
    u = model.data_spec.noise(X, dequantization.LOG_PROB, 7).numpy()
    assert not u[:, :2].any() and len(np.unique(u[:, 2:])) == 24
    assert u.min() >= 0 and 0.5 < u.max() < 1
    expected = model.distribution.log_prob(X + u)
    np.testing.assert_allclose(model.log_prob(X, seed=7), expected, rtol=1e-5)
    assert np.all(abs(model.log_prob(X, seed=8) - expected) > 1e-6)


def test_fit_and_evaluate_draw_noise(eager):
    """Of a uniform density of whole numbers; of another, the loss is the mean over the noise."""
    seen = []

    class Spy(layers.DiagonalScaling):
        def forward_and_log_det(self, x, condition=None, training=False):
            seen.append(np.array(x))
            return super().forward_and_log_det(x, condition, training)

    flow = compiled(Flow(Spy(), (4,), integer_columns=[2, 3], seed=0))
    flow.adapt(X)
    flow.fit(X, batch_size=12, shuffle=False, verbose=0)
    loss, _ = flow.evaluate(X, verbose=0)
    noises = [x - X for x in seen if len(x) == 12]
    for noise in noises[:3]:
        assert not noise[:, :2].any()
        assert noise.min() >= 0 and noise.max() < 1 and len(np.unique(noise[:, 2:])) > 20
    assert all(abs(noises[0] - other).max() > 0.1 for other in noises[1:3])
    expected = -np.mean(flow.distribution.log_prob(X + noises[2]))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# What is refused.


@pytest.mark.parametrize("bad", BAD)
def test_values_are_named(bad):
    model = compiled(Flow(layers.DiagonalScaling(), (4,), **COLUMNS))
    before = model.get_weights()
    for method in ("log_prob", "encode", "__call__", "predict", "evaluate", "adapt", "fit"):
        with pytest.raises(ValueError, match=re.escape(BAD[bad].format(""))):
            getattr(model, method)(with_value(*bad))
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("bad", [(0, 1.5), (2, 2.25)])
def test_columns_of_a_data_frame_are_named(bad, eager):
    model = compiled(MAKE["NICE"](**COLUMNS))
    good, frame = (pandas.DataFrame(x, columns=NAMES) for x in (X, with_value(*bad)))
    message = re.escape(BAD[bad].format(f" ({NAMES[bad[0]]!r})"))
    for learn in (model.fit, model.adapt):  # before the model knows them, too
        with pytest.raises(ValueError, match=message):
            learn(frame)
    assert model.data_spec.columns is None
    model.fit(good, verbose=0)
    for x in (frame, with_value(*bad)):
        with pytest.raises(ValueError, match=message):
            model.log_prob(x)


@pytest.mark.parametrize("method", ["predict", "evaluate", "fit"])
def test_values_in_a_graph(method):
    model = compiled(Flow(layers.DiagonalScaling(), (4,), **COLUMNS), run_eagerly=False)
    model.adapt(X)
    before = model.get_weights()
    for bad, words in (((0, 1.5), "must lie within"), ((2, 2.25), "must hold whole numbers")):
        x = np.concatenate([X, with_value(*bad)])  # fit looks at the first
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            getattr(model, method)(x, batch_size=24, verbose=0)
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_a_constant_column_of_whole_numbers_has_a_density(eager):
    constant = X.copy()
    constant[:, 3] = 1
    model = compiled(MAKE["NICE"](**COLUMNS))
    assert np.isfinite(model.fit(constant, verbose=0).history["loss"])
    constant[:, 0] = 0.5
    with pytest.raises(ValueError, match=r"feature 0 is constant \(0.5\)$"):
        model.adapt(constant)


# Files, servers, precision.


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda model, path: (
            model.save(path / "model.keras") or keras.models.load_model(path / "model.keras")
        ),
        lambda model, path: (
            model.save_to_preset(path / "preset") or Flow.from_preset(path / "preset")
        ),
        lambda model, path: keras.models.clone_model(model),
    ],
    ids=["keras", "preset", "clone"],
)
def test_files(duplicate, model, tmp_path, eager):
    other = duplicate(model, tmp_path)
    other.set_weights(model.get_weights())
    assert other.get_config() == model.get_config() and same_weights(other, model)
    np.testing.assert_array_equal(other.log_prob(X, seed=1), model.log_prob(X, seed=1))
    with pytest.raises(ValueError, match="within `bounds`"):
        other.log_prob(X + 2)


def test_served(tmp_path):
    ends = {"low": [0, None, None, 0], "high": [1, None, None, 3]}
    chain = [layers.Logit(**ends), layers.Standardize(), layers.DiagonalScaling()]
    model = adapted(lambda **options: Flow(layers.Chain(chain), (4,), **options))
    model.export(tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1").signatures
    x = np.concatenate([X, *(with_value(*bad)[3:4] for bad in BAD)])
    good = np.arange(len(x)) < len(X)
    latent, log_prob = model.encode(X), model.log_prob(X)
    for name, expected in (("encode", {"latent": latent}), ("log_prob", {"log_prob": log_prob})):
        for result, value in ((served[name](x=x)[key], v) for key, v in expected.items()):
            np.testing.assert_allclose(result[: len(X)], value, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(np.isnan(result).reshape(len(x), -1).all(1), ~good)
    decoded = served["decode"](z=latent)["x"]
    assert decoded.dtype == "float32"
    np.testing.assert_array_equal(decoded[:, 2:], X[:, 2:])
    np.testing.assert_allclose(decoded, model.decode(latent), rtol=1e-5)
    seeds = np.array([[3, i] for i in range(9)], "int32")
    sample = served["sample"](seed=seeds, temperature=np.full(9, 2, "float32"))["x"]
    assert_are_data(sample)
    np.testing.assert_allclose(sample, model.sample(9, temperature=2, seed=3), rtol=1e-5)


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_precision(policy, eager):
    with precision(policy):
        model = adapted(MAKE["NICE"])
    x = np.floor(X.astype("float64"))
    if policy == "float64":
        x[0, 2] = 2.0**40 + 1
    decoded = model.decode(model.encode(x))
    assert decoded.dtype == model.log_prob(x).dtype == model.compute_dtype
    np.testing.assert_array_equal(decoded[:, 2:], x[:, 2:])
    assert_are_data(model.sample(50, temperature=3, seed=0))


@pytest.mark.slow
def test_jit_compile():
    """XLA's noise is another: what it learns is compared without."""
    losses = []
    for options in ({"jit_compile": False}, {"jit_compile": True}):
        model = compiled(adapted(integer_columns=None), run_eagerly=False, **options)
        losses.append(model.fit(X, batch_size=4, epochs=2, shuffle=False, verbose=0).history)
    np.testing.assert_allclose(losses[1]["loss"], losses[0]["loss"], rtol=1e-4)
    model = compiled(adapted(), run_eagerly=False, jit_compile=True)
    assert np.isfinite(model.fit(X, batch_size=4, verbose=0).history["loss"]).all()
    sample = tf.function(lambda: model.sample(50, temperature=3, seed=0), jit_compile=True)()
    assert_are_data(sample)
