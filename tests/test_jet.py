"""Jet and what it is made of: transformers, patches, partitions of tokens."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import Flow, layers, networks, zoo
from keras_flows.networks.vit import _gelu

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 8, 1), dtype="uint8")
SMALL = {"depth": 3, "width": 8, "num_heads": 2, "seed": 0}


def built(layer, shape):
    layer.build((None, *shape))
    return layer


# Patches.


@pytest.mark.parametrize("order", ["cell", "channel"])
def test_patches_are_tokens_row_by_row(order):
    x = np.arange(4 * 6 * 3.0, dtype="float32").reshape(1, 4, 6, 3)
    tokens = built(layers.Patchify(2, order=order), (4, 6, 3)).forward(x).numpy()
    assert tokens.shape == (1, 6, 12)
    for token in range(6):
        row, column = divmod(token, 3)
        patch = x[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = patch if order == "cell" else np.moveaxis(patch, -1, 0)
        np.testing.assert_array_equal(tokens[0, token], expected.ravel())


# Partitions.


def halves(kind, grid, channels=2):
    """Which (row, column, channel) are in each half, as rows of it."""
    partition = built(layers.TokenPartition(kind, grid), (np.prod(grid), channels))
    places = np.stack(np.indices((*grid, channels)), axis=-1).reshape(np.prod(grid), channels, 3)
    places = 100 * places[..., 0] + 10 * places[..., 1] + places[..., 2]
    return [half[0].numpy() for half in partition.split(places[None].astype("float32"))]


@pytest.mark.parametrize(
    ("kind", "grid", "first"),
    [
        ("checkerboard", (2, 3), [(0, 0), (0, 2), (1, 1)]),
        ("checkerboard-inv", (2, 3), [(0, 1), (1, 0), (1, 2)]),
        ("vstripes", (3, 2), [(0, 0), (1, 0), (2, 0)]),
        ("vstripes-inv", (3, 2), [(0, 1), (1, 1), (2, 1)]),
        ("hstripes", (2, 3), [(0, 0), (0, 1), (0, 2)]),
        ("hstripes-inv", (2, 3), [(1, 0), (1, 1), (1, 2)]),
    ],
)
def test_tokens_of_each_half(kind, grid, first):
    """A token of two channels is two rows of one."""
    actual, other = halves(kind, grid)
    expected = [[100 * i + 10 * j + k] for i, j in first for k in range(2)]
    np.testing.assert_array_equal(actual, expected)
    assert len(np.intersect1d(actual, other)) == 0


def test_all_tokens_have_the_same_channels_in_a_half():
    keras.utils.set_random_seed(1)
    first, second = halves("channels", (2, 3), channels=10)
    assert first.shape == second.shape == (6, 5)
    channels = np.concatenate([first, second], axis=1) % 10
    assert (channels == channels[0]).all() and (channels[0] != np.arange(10)).any()
    assert sorted(channels[0]) == list(range(10))
    np.testing.assert_array_equal(first // 10, np.repeat([[0], [1], [2], [10], [11], [12]], 5, 1))


def test_steps_of_a_repeat_take_the_kinds_in_turn():
    def make():
        keras.utils.set_random_seed(0)
        partition = layers.TokenPartition(("channels", "hstripes", "channels"), (2, 2))
        return built(layers.Repeat(layers.AffineCoupling(None, partition=partition), 5), (4, 12))

    repeat = make()
    orders = [step.partition.order.numpy() for step in repeat.get_steps()]
    stripes = built(layers.TokenPartition("hstripes", (2, 2)), (4, 12)).order
    same = [np.array_equal(order, stripes) for order in orders]
    assert same == [False, True, False, False, True]
    assert len({tuple(order) for order in orders}) == 4  # of the channels, each step its own
    for weight, again in zip(repeat.weights, make().weights, strict=True):
        np.testing.assert_array_equal(weight, again)


@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_gradients_are_those_of_differences(policy):
    """Of steps one by one, in a loop, and in one that inverts."""
    x, weight = (tf.constant(RNG.normal(size=(2, 4, 2))) for _ in range(2))

    def gradients_of(trace, reversible=False):
        keras.utils.set_random_seed(0)
        partition = layers.TokenPartition(("channels", "vstripes"), (2, 2))
        coupling = layers.AffineCoupling(networks.MLP(3, 1), partition=partition)
        repeat = built(layers.Repeat(coupling, 2, reversible=reversible), (4, 2))
        perturb(repeat, 0.3)

        def compute(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                z, log_det = repeat.forward_and_log_det(x, training=True)
                loss = tf.reduce_sum(weight * z) + tf.reduce_sum(log_det)
            return loss, tape.gradient(loss, [x, *repeat.trainable_variables])

        compute = tf.function(compute, autograph=False) if trace else compute
        loss, gradients = compute(x)
        kernel, step = repeat.trainable_variables[-2], 1e-6
        direction = RNG.normal(size=kernel.shape)
        kernel.assign_add(step * direction)
        difference = float(compute(x)[0] - loss) / step
        assert difference == pytest.approx(np.sum(gradients[-2] * direction), rel=1e-4)
        return gradients

    wanted = gradients_of(trace=False)
    for options in ({}, {"reversible": True}):
        for actual, desired in zip(gradients_of(True, **options), wanted, strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kinds", "grid", "shape", "words"),
    [
        ("channel", None, (4, 2), "`kinds` must be one or several of .* kinds='channel'"),
        ((), None, (4, 2), r"`kinds` must be one or several of .* kinds=\(\)"),
        (3, None, (4, 2), "`kinds` must be one or several of .* kinds=3"),
        ("channels", None, (4, 3), r"even number of channels. Received: shape \(None, 4, 3\)"),
        ("channels", None, (4,), r"needs tokens .* Received: shape \(None, 4\)"),
        ("vstripes", None, (4, 2), "`grid` must be .*4 tokens, for 'vstripes'.*grid=None"),
        ("vstripes", (2, 3), (4, 2), r"`grid` must be .*4 tokens, for 'vstripes'.*\(2, 3\)"),
        ("vstripes", (2, 3), (6, 2), r"'vstripes' does not .* grid=\(2, 3\)"),
        ("checkerboard", (3, 3), (9, 2), r"'checkerboard' does not .* grid=\(3, 3\)"),
    ],
)
def test_tokens_that_cannot_be_halved(kinds, grid, shape, words):
    with pytest.raises(ValueError, match=words):
        built(layers.TokenPartition(kinds, grid), shape)


def test_a_partition_divides_one_shape():
    shared = layers.TokenPartition("channels")
    first, second = (layers.AffineCoupling(networks.MLP(4), partition=shared) for _ in range(2))
    first.build((None, 4, 6))
    with pytest.raises(ValueError, match=r"divides data of shape \(4, 6\).*Received: \(4, 2\)"):
        second.build((None, 4, 2))


# The network.


def test_gelu_is_that_of_the_tanh_formula_with_gradients_of_any_order():
    def formula(x):
        return 0.5 * x * (1 + tf.tanh(tf.cast(np.sqrt(2 / np.pi), x.dtype) * (x + k * x**3)))

    k, x = tf.constant(0.044715, "float64"), tf.constant(np.linspace(-6, 6, 41))

    def derivatives(function):
        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            inner.watch(x), outer.watch(x)
            y = function(x)
            slope = inner.gradient(y, x)
        return y, slope, outer.gradient(slope, x)

    for actual, expected in zip(derivatives(_gelu), derivatives(formula), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


def test_tokens_look_at_each_other_and_at_the_condition():
    network = networks.ViT(8, num_heads=2)
    x, condition = (tf.constant(RNG.normal(size=(2, n, 3)), "float32") for n in (4, 5))
    y = network(x, condition)
    assert y.shape == (2, 4, 8)
    np.testing.assert_array_equal(y, network(x, 2 * condition))  # at the start
    perturb(network, 0.3)
    with tf.GradientTape() as tape:
        tape.watch([x, condition])
        one = network(x, condition)[0, 1, 2]
    for gradient in tape.gradient(one, [x, condition]):
        assert np.abs(gradient[0]).min() > 0 and not np.any(gradient[1])


def test_transformers_compute_in_half_what_they_compute():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    full, half = networks.ViT(32, 2), networks.ViT(32, 2, dtype="mixed_bfloat16")
    y = full(x)
    assert half(x).dtype == "bfloat16"
    half.set_weights(full.get_weights())
    # Of deviation 1, as it is normalised; a bfloat16 has 8 bits.
    error = np.sqrt(np.mean((np.float32(half(x)) - y) ** 2))
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "`num_heads` must divide `width`. Received: num_heads=3, width=8"),
        ({"num_heads": 0}, "`num_heads` must be an integer of at least 1"),
        ({"num_blocks": 0}, "`num_blocks` must be an integer of at least 1"),
        ({"width": 2.5}, "`width` must be an integer of at least 1"),
    ],
)
def test_transformers_of_sizes_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        networks.ViT(**{"width": 8, **options})


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (None, 2)])
def test_transformers_of_what_is_no_tokens(shape):
    with pytest.raises(ValueError, match=r"ViT needs tokens .*Received: shape \(None, "):
        networks.ViT(8)(keras.KerasTensor((None, *shape)))


@pytest.mark.slow
@pytest.mark.parametrize("network", [networks.MLP, networks.ResidualMLP, networks.ViT])
def test_xla_trains_networks_of_tokens(network):
    """Of a number of rows that is not known when it is traced."""
    coupling = layers.AffineCoupling(network(4))
    chain = layers.Chain([layers.Patchify(2), layers.Repeat(coupling, 2), layers.Flatten()])
    model = Flow(chain, (4, 4, 1))
    model.compile("adam", jit_compile=True)
    x = IMAGES[:, :, :4]
    assert np.isfinite(model.fit(x, batch_size=4, verbose=0).history["loss"]).all()


# The model.


def test_jet_starts_as_the_identity():
    model = zoo.Jet((4, 8, 1), **SMALL)
    x = IMAGES.astype("float32")
    patches = built(layers.Patchify(4), (4, 8, 1)).forward(x / 127.5 - 1)
    z, log_det = model.bijection.forward_and_log_det(x)
    np.testing.assert_allclose(z, np.reshape(patches, (6, 32)), atol=1e-6)
    np.testing.assert_allclose(log_det, -32 * np.log(127.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "patch_size", "halves_tokens"),
    [
        ((8, 8, 1), 4, True),
        ((28, 28, 1), 2, True),  # 7x7 patches of 4x4 are odd
        ((6, 6, 1), 2, False),
        ((3, 4, 2), 1, True),
        ((5, 5, 2), 1, False),
    ],
)
def test_patches_and_partitions_by_default(shape, patch_size, halves_tokens):
    model = zoo.Jet(shape, depth=1, width=2, num_heads=1)
    assert model.patch_size == patch_size
    assert ("checkerboard" in model.partitions) == halves_tokens


@pytest.mark.slow
def test_reversible_jet_learns_the_same():
    """Of the condition's network, too, by way of the transformers that look at what it gives."""

    def losses(**options):
        keras.utils.set_random_seed(0)
        network = layers.Patchify(2)
        condition = {"condition_shape": (4, 4, 1), "condition_network": network}
        model = zoo.Jet((4, 4, 1), patch_size=2, **condition, **SMALL, **options)
        perturb(model)
        model.compile(keras.optimizers.SGD(1e-3))
        data = (x, y), (x, 2 * y)
        return [model.train_on_batch(*batch, return_dict=True)["loss"] for batch in data]

    x, y = IMAGES[:, :, :4], RNG.normal(size=(6, 4, 4, 1))
    np.testing.assert_allclose(losses(reversible=True), losses(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_jet_learns_digits_under_conditions_of_any_kind(dtype):
    from keras_flows import data

    images, labels = zip(*data.load("digits", split="train", batch_size=500, labels=True))
    x, labels = np.concatenate(images), np.concatenate(labels)
    one_hot = np.eye(10, dtype="float32")[labels]
    of_kind = {
        "num_classes": (10, labels),
        "condition_shape": ((10,), one_hot),
        "tokens": ((2, 5), one_hot.reshape(-1, 2, 5)),
    }
    for name, (value, condition) in of_kind.items():
        keras.utils.set_random_seed(0)
        argument = {"condition_shape" if name == "tokens" else name: value}
        model = zoo.Jet((8, 8, 1), bits=4, **argument, **SMALL, dtype=dtype)
        model.compile(keras.optimizers.Adam(3e-3))
        bits = model.fit(x, condition, epochs=4, verbose=0).history["bits_per_dim"]
        assert bits[-1] < bits[0] - 0.5, name
        assert model.sample(2, condition=condition[:2], seed=0).shape == (2, 8, 8, 1)
