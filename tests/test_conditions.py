"""What a density is conditioned on: who reads it, and what is refused."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import Flow, layers, networks, zoo

PAIRS = np.random.default_rng(0).normal(size=(10, 2)).astype("float32")


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x, y: model.fit(x, y, verbose=0),
        lambda model, x, y: model.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0),
        lambda model, x, y: model.fit(x, validation_data=(x, y), verbose=0),
        lambda model, x, y: model.evaluate(x, y, verbose=0),
        lambda model, x, y: model.predict(tf.data.Dataset.from_tensors((x, y)), verbose=0),
        lambda model, x, y: model.adapt(x, y),
        lambda model, x, y: model(x, condition=y),
        lambda model, x, y: model.log_prob(x, condition=y),
        lambda model, x, y: model.encode(x, condition=y),
        lambda model, x, y: model.decode(np.zeros((len(x), 2), "float32"), condition=y),
        lambda model, x, y: model.sample(len(x), condition=y),
    ],
)
def test_labels_that_a_model_does_not_read_are_refused(use, eager):
    model = Flow(layers.DiagonalScaling(), (2,))
    model.compile()
    before = model.get_weights()
    with pytest.raises(ValueError, match="made without `num_classes` and `condition_shape`"):
        use(model, PAIRS, np.arange(len(PAIRS)))
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("condition", [{"num_classes": 3}, {"condition_shape": (3,)}])
def test_a_condition_that_no_layer_reads_is_refused(condition):
    ((name, value),) = condition.items()
    for layer in (layers.LearnedPrior(), layers.AffineCoupling(networks.MLP(4))):
        with pytest.raises(ValueError, match=rf"`{name}` needs .* {name}={re.escape(str(value))}"):
            Flow(layer, (2,), **condition)


def test_a_layer_of_ones_own_may_read_the_condition(eager):
    class ShiftByLabel(layers.DiagonalScaling):
        reads_condition = True

        def forward_and_log_det(self, x, condition=None, training=False):
            shift = tf.cast(condition, x.dtype)[:, None]
            return super().forward_and_log_det(x + shift)

    model = Flow(layers.Repeat(ShiftByLabel(), 2), (2,), num_classes=3)
    x = PAIRS[:3]
    latent = model.encode(x, condition=np.arange(3))
    np.testing.assert_allclose(latent, x + 2 * np.arange(3)[:, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 4, 3)])
def test_reversible_gradients_in_the_condition(shape, float64):
    """Those of the loop that remembers, and of eager steps."""
    rng = np.random.default_rng(0)
    x, condition, weight = (tf.constant(rng.normal(size=(4, *s))) for s in (shape, (2,), shape))

    def gradients(**options):
        keras.utils.set_random_seed(0)
        network = (networks.MLP if len(shape) == 1 else networks.ConvNet)(4)
        coupling = layers.AffineCoupling(network, condition_shape=(2,))
        step = layers.Chain([layers.ActNorm(), coupling, layers.Permute()])
        repeat = layers.Repeat(step, 3, **options)
        repeat.build((None, *shape))
        perturb(repeat, 0.2)

        def compute(x, condition):
            with tf.GradientTape() as tape:
                tape.watch([x, condition])
                z, log_det = repeat.forward_and_log_det(x, condition, training=True)
                loss = tf.reduce_sum(weight * z**2) + tf.reduce_sum(log_det)
            return tape.gradient(loss, [x, condition, *repeat.trainable_variables])

        return compute(x, condition), tf.function(compute, autograph=False)(x, condition)

    (eager, remembering), (_, reversible) = gradients(), gradients(reversible=True)
    assert np.abs(eager[1]).min() > 1e-3
    for wanted, *others in zip(eager, remembering, reversible, strict=True):
        for other in others:
            np.testing.assert_allclose(other, wanted, rtol=1e-10, atol=1e-10)


def test_couplings_see_the_condition_behind_x1(eager):
    """One-hot labels and features alike at all places, maps pooled to the size of the image."""

    @keras.saving.register_keras_serializable(package="tests")
    class Spy(keras.layers.Layer):
        def call(self, inputs):
            self.seen = inputs
            return inputs

    def seen(shape, condition_shape, condition, **options):
        spy = Spy()
        coupling = layers.AdditiveCoupling(spy, condition_shape=condition_shape, **options)
        coupling(np.ones((2, *shape)), condition)
        return spy.seen

    np.testing.assert_array_equal(seen((2,), (3,), np.array([2, 0])), [[1, 0, 0, 1], [1, 1, 0, 0]])
    features = np.array([[3.0, 4.0], [5.0, 6.0]], "float32")
    np.testing.assert_array_equal(seen((7, 2), (2,), features)[1, 3], [1, 5, 6])
    image = seen((2, 2, 1), (2,), features, partition="checkerboard")
    np.testing.assert_array_equal(image[0, 0], [[1, 3, 4, 1], [0, 3, 4, 0]])
    maps = np.arange(32, dtype="float32").reshape(2, 4, 4, 1)
    pooled = maps.reshape(2, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(seen((2, 2, 2), (4, 4, 1), maps)[..., 1], pooled)


@pytest.mark.parametrize(
    ("condition_shape", "condition", "words"),
    [
        (3, None, r"`condition_shape` must be \(n,\)"),
        ((0,), None, r"`condition_shape` must be \(n,\)"),
        ((2, 2), None, r"`condition_shape` must be \(n,\)"),
        ((2, 2, 1), None, "is for images"),
        ((3,), None, "needs `condition`"),
        ((3,), np.zeros((2, 4)), r"shape \(batch, 3\).*\(2, 4\)"),
        ((3,), np.zeros(2), r"shape \(batch, 3\)"),
    ],
)
def test_conditions_that_a_coupling_cannot_read(condition_shape, condition, words):
    with pytest.raises(ValueError, match=words):
        coupling = layers.AffineCoupling(networks.MLP(4), condition_shape=condition_shape)
        coupling.build((None, 4))
        coupling.forward_and_log_det(np.zeros((2, 4), "float32"), condition)
