"""One harness for every bijection in the table of cases, in float64 with perturbed weights."""

import inspect
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import BATCH, CASES
from conftest import perturb

from keras_flows import Bijection, check_bijection, layers

tfb, tfd = tfp.bijectors, tfp.distributions

TFP_METHODS = ("forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian")


pytestmark = pytest.mark.usefixtures("float64")


SLOW = {"causal_affine_of_classes"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES],
)
def case(request, float64):
    """A built layer with random weights, a batch, and where forward takes it."""
    make, shape, condition = CASES[request.param]
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    layer = make()
    layer.build((None, *shape))
    perturb(layer, 0.2)
    x = tf.constant(rng.uniform(0.1, 0.9, (BATCH, *shape)))
    z, log_det = layer.forward_and_log_det(x, condition)
    return SimpleNamespace(
        layer=layer, shape=shape, x=x, condition=condition, z=z, log_det=log_det, rng=rng
    )


def close(actual, desired, tolerance=1e-9):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def test_table_has_every_public_bijection():
    public = {
        value
        for value in vars(layers).values()
        if inspect.isclass(value) and issubclass(value, Bijection)
    }
    assert public
    assert public <= {type(make()) for make, *_ in CASES.values()}


def test_round_trip(case):
    x, log_det = case.layer.inverse_and_log_det(case.z, case.condition)
    close(x, case.x)
    close(log_det, -case.log_det)

    z = case.z + case.rng.normal(scale=0.1, size=case.z.shape)  # not from forward
    x, log_det = case.layer.inverse_and_log_det(z, case.condition)
    again, again_log_det = case.layer.forward_and_log_det(x, case.condition)
    close(again, z)
    close(log_det, -again_log_det)


def test_check_bijection(case):
    check_bijection(case.layer, case.x, case.condition)


def test_shapes(case):
    layer, shape, latent = case.layer, case.shape, tuple(case.z.shape[1:])
    assert layer.event_shape == shape
    assert layer.latent_shape == latent
    assert layer.compute_output_shape((None, *shape)) == (None, *latent)
    assert layer.forward_min_event_ndims == len(shape)
    assert layer.inverse_min_event_ndims == len(latent)
    assert layer.forward_event_ndims(len(shape)) == len(latent)
    assert layer.inverse_event_ndims(len(latent)) == len(shape)
    for batch in ((), (7,), (7, 2)):
        assert layer.forward_event_shape((*batch, *shape)) == (*batch, *latent)
        assert layer.inverse_event_shape((*batch, *latent)) == (*batch, *shape)
        assert tuple(layer.forward_event_shape_tensor((*batch, *shape))) == (*batch, *latent)
        assert tuple(layer.inverse_event_shape_tensor((*batch, *latent))) == (*batch, *shape)


def test_traced_on_other_batch_sizes(case):
    def there_and_back(x, condition=None):
        z, log_det = case.layer.forward_and_log_det(x, condition)
        return z, log_det, *case.layer.inverse_and_log_det(z, condition)

    inputs = [case.x] if case.condition is None else [case.x, tf.constant(case.condition)]
    signature = [tf.TensorSpec((None, *value.shape[1:]), value.dtype) for value in inputs]
    traced = tf.function(there_and_back, input_signature=signature, autograph=False)
    for size in (1, 3):
        z, log_det, x, inverse_log_det = traced(*[value[:size] for value in inputs])
        close(z, case.z[:size])
        close(log_det, case.log_det[:size])
        close(x, case.x[:size])
        close(inverse_log_det, -case.log_det[:size])


def test_every_weight_gets_a_gradient(case):
    with tf.GradientTape() as tape:
        z, log_det = case.layer.forward_and_log_det(case.x, case.condition)
        loss = tf.reduce_sum(z**2) + tf.reduce_sum(log_det)
    weights = case.layer.trainable_weights
    for weight, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights])):
        assert gradient is not None, weight.path
        gradient = tf.convert_to_tensor(gradient)  # of a gather it is sparse
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient), weight.path


def test_config_round_trip(case):
    layer = type(case.layer).from_config(case.layer.get_config())
    layer.build((None, *case.shape))
    layer.set_weights(case.layer.get_weights())
    z, log_det = layer.forward_and_log_det(case.x, case.condition)
    close(z, case.z)
    close(log_det, case.log_det)


def test_keras_file_round_trip(case, tmp_path):
    inputs = [keras.Input(case.shape)]
    arrays = [case.x.numpy()]
    if case.condition is not None:
        inputs.append(keras.Input(case.condition.shape[1:], dtype=case.condition.dtype.name))
        arrays.append(case.condition)
    model = keras.Model(inputs, case.layer(*inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    close(loaded(arrays), case.z)


def test_checkpoints_hold_all_weights(case, tmp_path):
    checkpoint, weights = tf.train.Checkpoint(case.layer), case.layer.get_weights()
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    case.layer.set_weights([np.zeros_like(weight) for weight in weights])
    checkpoint.read(path)
    for weight, same in zip(case.layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_transformed_distribution_agrees_with_the_sum(case):
    base = tfd.Sample(tfd.Normal(tf.zeros((), tf.float64), 1), case.z.shape[1:])
    distribution = tfd.TransformedDistribution(base, tfb.Invert(case.layer))
    log_prob = distribution.log_prob(case.x, bijector_kwargs={"condition": case.condition})
    close(log_prob, base.log_prob(case.z) + case.log_det)
    assert distribution.event_shape == case.shape


def test_changed_weight_changes_the_answer(case):
    def answers():
        inputs = (case.x, case.z, case.x, case.z)
        return [
            getattr(case.layer, method)(value, condition=case.condition)
            for method, value in zip(TFP_METHODS, inputs)
        ]

    before, weights = answers(), case.layer.get_weights()
    perturb(case.layer, 0.2)
    after = answers()
    z, log_det = case.layer.forward_and_log_det(case.x, case.condition)
    x, inverse_log_det = case.layer.inverse_and_log_det(case.z, case.condition)
    case.layer.set_weights(weights)
    for actual, desired in zip(after, (z, x, log_det, inverse_log_det)):
        close(actual, desired)
    assert np.allclose(before[0], after[0]) != bool(weights)


def test_no_leading_axis(case):
    condition = None if case.condition is None else case.condition[0]
    check_tfp_methods(case.layer, case.x[0], condition, case.z[0], case.log_det[0])


def test_two_leading_axes(case):
    x, z, log_det, condition = in_pairs(case)
    check_tfp_methods(case.layer, x, condition, z, log_det)


def test_larger_event_ndims_sum(case):
    x, z, log_det, condition = in_pairs(case)
    layer, ndims, latent_ndims = case.layer, len(case.shape), case.z.ndim - 1
    sums = np.sum(log_det, axis=1)
    close(layer.forward_log_det_jacobian(x, ndims + 1, condition=condition), sums)
    close(layer.inverse_log_det_jacobian(z, latent_ndims + 2, condition=condition), -sum(sums))
    with pytest.raises(ValueError, match="event_ndims"):
        layer.forward_log_det_jacobian(x, ndims - 1, condition=condition)


def in_pairs(case):
    """The batch with two leading axes."""
    values = (case.x, case.z, case.log_det, case.condition)
    return [a if a is None else np.reshape(a, (2, BATCH // 2, *a.shape[1:])) for a in values]


def check_tfp_methods(layer, x, condition, z, log_det):
    close(layer.forward(x, condition=condition), z)
    close(layer.inverse(z, condition=condition), x)
    close(layer.forward_log_det_jacobian(x, condition=condition), log_det)
    close(layer.inverse_log_det_jacobian(z, condition=condition), -log_det)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("batch_norm")])
def test_batch_norm_in_training(name):
    """With momentum 0 the batch's statistics are the moving ones, and inference repeats them."""
    make, shape, _ = CASES[name]
    layer = type(make()).from_config({**make().get_config(), "momentum": 0})
    layer.build((None, *shape))
    x = np.random.default_rng(0).normal(1, 2, (BATCH, *shape))
    z, log_det = layer.forward_and_log_det(x, training=True)
    assert not np.allclose(layer.moving_mean, 0)
    inference, inference_log_det = layer.forward_and_log_det(x)
    close(z, inference)
    close(log_det, inference_log_det)
    close(layer.inverse(z), x)
