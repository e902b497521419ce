"""What only a GPU can show; `pytest -m gpu` on a machine that has one."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_flows import zoo

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


def test_mirrored_strategy_learns_the_same():
    strategy = tf.distribute.MirroredStrategy(["GPU:0"])
    _, actual = losses(strategy.scope)
    _, desired = losses(jit_compile=False)
    np.testing.assert_allclose(actual, desired, rtol=1e-3)


def test_gpu_and_cpu_give_the_same_likelihoods():
    model, _ = losses()
    with tf.device("CPU:0"):
        on_cpu = model.bijection.forward_and_log_det(tf.cast(IMAGES, tf.float32) + 0.5)[1]
    with tf.device("GPU:0"):
        on_gpu = model.bijection.forward_and_log_det(tf.cast(IMAGES, tf.float32) + 0.5)[1]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3)
