"""What a density is conditioned on: who reads it, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from keras_flows import Flow, layers, zoo

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
        lambda model, x, y: model(x, labels=y),
        lambda model, x, y: model.log_prob(x, labels=y),
        lambda model, x, y: model.encode(x, labels=y),
        lambda model, x, y: model.decode(np.zeros((len(x), 2), "float32"), labels=y),
        lambda model, x, y: model.sample(len(x), labels=y),
    ],
)
def test_labels_that_a_model_does_not_read_are_refused(use, eager):
    model = Flow(layers.DiagonalScaling(), (2,))
    model.compile()
    before = model.get_weights()
    with pytest.raises(ValueError, match="made without `num_classes`"):
        use(model, PAIRS, np.arange(len(PAIRS)))
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: zoo.NICE((4,), depth=1, width=2, **options),
        lambda **options: zoo.RealNVP((4, 4, 1), levels=1, depth=1, width=2, **options),
        lambda **options: zoo.RealNVP((4,), width=2, reversible=True, batch_norm=False, **options),
        lambda **options: Flow(layers.LearnedPrior(), (2,), **options),
    ],
)
def test_classes_that_no_layer_reads_are_refused(make):
    make()
    with pytest.raises(ValueError, match=r"`num_classes` needs .* num_classes=3"):
        make(num_classes=3)


def test_a_layer_of_ones_own_may_read_the_condition(eager):
    class ShiftByLabel(layers.DiagonalScaling):
        reads_condition = True

        def forward_and_log_det(self, x, condition=None, training=False):
            shift = tf.cast(condition, x.dtype)[:, None]
            return super().forward_and_log_det(x + shift)

    model = Flow(layers.Repeat(ShiftByLabel(), 2), (2,), num_classes=3)
    x = PAIRS[:3]
    latent = model.encode(x, labels=np.arange(3))
    np.testing.assert_allclose(latent, x + 2 * np.arange(3)[:, None], rtol=1e-5)
