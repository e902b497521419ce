"""What only a GPU can show; `pytest -m gpu` on a machine that has one."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_flows import data, zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU"),
]
SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, *SHAPE), "uint8")


def losses(scope=contextlib.nullcontext, reversible=False, dtype=None, **options):
    keras.utils.set_random_seed(0)
    with scope():
        model = zoo.Glow(
            SHAPE, levels=2, depth=4, width=16, reversible=reversible, seed=0, dtype=dtype
        )
        model.compile(keras.optimizers.SGD(1e-4), **options)
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(16)
    return model, model.fit(batches, epochs=3, verbose=0).history["loss"]


@pytest.mark.parametrize("reversible", [False, True])
def test_xla_is_the_default_and_learns_the_same(reversible):
    compiled, actual = losses(reversible=reversible)
    assert compiled.jit_compile
    plain, desired = losses(reversible=reversible, jit_compile=False)
    assert not plain.jit_compile
    np.testing.assert_allclose(actual, desired, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns_nearly_the_same(dtype):
    _, actual = losses(dtype=dtype)
    _, desired = losses()
    np.testing.assert_allclose(actual, desired, rtol=2e-2)
    assert actual[-1] < actual[0]


@pytest.mark.skipif(len(tf.config.list_physical_devices("GPU")) < 2, reason="needs two GPUs")
def test_mirrored_strategy_learns_nearly_the_same():
    """But for the noise, which differs by replica."""
    _, actual = losses(tf.distribute.MirroredStrategy().scope)
    _, desired = losses(jit_compile=False)
    np.testing.assert_allclose(actual, desired, rtol=2e-2)


@pytest.mark.parametrize(
    "make, options",
    [
        (zoo.NICE, {}),
        (zoo.RealNVP, {"levels": 1, "num_blocks": 1}),
        (zoo.NSF, {"levels": 1, "num_blocks": 1, "dropout": 0.1}),
        (zoo.Glow, {"levels": 2, "dequantization": "variational"}),
        (zoo.Jet, {"patch_size": 2, "num_heads": 2}),
        (zoo.TarFlow, {"patch_size": 2, "num_heads": 2}),
    ],
)
def test_every_family_learns_compiled_by_xla(make, options):
    """All that a step reads must be on the GPU, where TensorFlow has no variables of int32."""
    model = make(SHAPE, depth=2, width=8, num_classes=3, seed=0, **options)
    model.compile(keras.optimizers.Adam(1e-2))
    assert model.jit_compile
    labels = np.arange(len(IMAGES)) % 3
    losses = model.fit(IMAGES, labels, batch_size=16, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert np.isfinite(model.log_prob(IMAGES[:3], labels[:3])).all()
    assert model.sample(3, condition=labels[:3], seed=0).shape == (3, *SHAPE)


def test_real_nvp_from_data_to_export(tmp_path):
    """Batch normalisation's kernel under XLA, shuffled data, samples and a SavedModel."""
    keras.utils.set_random_seed(0)
    model = zoo.RealNVP(SHAPE, levels=1, depth=2, width=8, num_blocks=1, seed=0)
    model.compile(keras.optimizers.Adam(1e-3))
    batches = data.load("digits", split="train", batch_size=64, data_dir=tmp_path, seed=0)
    history = model.fit(batches, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert model.sample(4, seed=1).shape == (4, *SHAPE)
    model.export(tmp_path / "1")
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["log_prob"]
    actual = served(x=tf.constant(IMAGES))["log_prob"]
    np.testing.assert_allclose(actual, model.log_prob(IMAGES), rtol=1e-3)


@pytest.mark.parametrize("reversible", [False, True])
def test_a_deep_glow_inverts(reversible):
    """In full float32: with TF32 W and its inverse would not cancel."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    model = zoo.Glow(SHAPE, levels=2, depth=32, width=16, reversible=reversible, seed=0)
    model.adapt(IMAGES)
    for weight in model.trainable_weights:
        weight.assign_add(tf.random.stateless_normal(weight.shape, (0, 1), stddev=0.01))
    np.testing.assert_array_equal(model.decode(model.encode(IMAGES)), IMAGES)
    tf.config.experimental.enable_tensor_float_32_execution(before)


def test_gpu_and_cpu_give_the_same_likelihoods():
    model, _ = losses()
    with tf.device("CPU:0"):
        on_cpu = model.bijection.forward_and_log_det(tf.cast(IMAGES, tf.float32) + 0.5)[1]
    with tf.device("GPU:0"):
        on_gpu = model.bijection.forward_and_log_det(tf.cast(IMAGES, tf.float32) + 0.5)[1]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3)
