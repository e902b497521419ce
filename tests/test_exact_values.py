"""Small examples with their results written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_flows import layers, networks


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def randomize(layer):
    for i, weight in enumerate(layer.weights):
        weight.assign(np.random.default_rng(i).normal(scale=0.3, size=weight.shape))


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


def constant_output(values):
    """An output layer that gives the same values for every input."""
    bias = keras.initializers.Constant(np.asarray(values, "float32"))
    return keras.layers.Dense(len(values), kernel_initializer="zeros", bias_initializer=bias)


# Partitions: what a coupling that adds 1 has changed.


@pytest.mark.parametrize(
    ("partition", "swap", "changed"),
    [
        ("half", False, [0, 0, 1, 1, 1]),  # the smaller half conditions
        ("half", True, [1, 1, 0, 0, 0]),
        ("even_odd", False, [0, 1, 0, 1, 0]),
        ("even_odd", True, [1, 0, 1, 0, 1]),
    ],
)
@pytest.mark.parametrize("space", [(), (2, 3)])
def test_channels_that_change(partition, swap, changed, space):
    shift = constant_output(np.ones(sum(changed)))
    layer = layers.AdditiveCoupling(None, partition=partition, swap=swap, output_layer=shift)
    x = random(2, *space, 5)
    close(layer(x) - x, np.broadcast_to(changed, x.shape))


@pytest.mark.parametrize(
    ("swap", "changed"),
    [(False, [[0, 1, 0], [1, 0, 1]]), (True, [[1, 0, 1], [0, 1, 0]])],
)
def test_cells_of_a_checkerboard_that_change(swap, changed):
    shift = constant_output([1, 1])
    layer = layers.AdditiveCoupling(None, partition="checkerboard", swap=swap, output_layer=shift)
    x = random(2, 2, 3, 2)
    close(layer(x) - x, np.broadcast_to(np.array(changed)[..., None], x.shape))


@pytest.mark.parametrize("swap", [False, True])
def test_a_checkerboards_network_sees_the_kept_cells_and_the_mask(swap):
    class Network(keras.layers.Layer):
        def compute_output_shape(self, input_shape):
            return input_shape

        def call(self, inputs):
            self.seen = inputs
            return inputs

    network = Network()
    x = random(2, 2, 3, 2)
    layers.AdditiveCoupling(network, partition="checkerboard", swap=swap)(x)
    mask = (np.indices((2, 3)).sum(axis=0) + swap + 1) % 2
    mask = np.broadcast_to(mask[..., None], (2, 2, 3, 1))
    close(network.seen, np.concatenate([x * mask, mask], axis=-1))


# Affine couplings: shift first, then scale.


@pytest.mark.parametrize(
    ("scale", "log_scale"),
    [
        ("sigmoid", lambda h: -np.log1p(np.exp(-h - 2))),
        ("half_sigmoid", lambda h: np.log(0.5 + 0.5 / (1 + np.exp(-h - 2)))),
        ("tanh", lambda h: 0.7 * np.tanh(h)),
        ("exp", lambda h: h),
    ],
)
def test_affine_coupling(scale, log_scale):
    shift, h = np.array([0.5, -1.0]), np.array([0.3, -2.0])
    layer = layers.AffineCoupling(
        None,
        scale=scale,
        output_layer=constant_output([*shift, *h]),
        bound_initializer=keras.initializers.Constant(0.7),
    )
    x = random(3, 4)
    close(layer(x)[:, :2], x[:, :2])
    close(layer(x)[:, 2:], (x[:, 2:] + shift) * np.exp(log_scale(h)))
    close(layer.forward_log_det_jacobian(x), np.full(3, log_scale(h).sum()))


# Squeezes. The pixel in row y, column x and channel c has the value 100 c + 10 y + x.


@pytest.mark.parametrize(
    ("order", "first", "right"),
    [
        ("channel", [0, 1, 10, 11, 100, 101, 110, 111], [2, 3, 12, 13, 102, 103, 112, 113]),
        ("cell", [0, 100, 11, 111, 1, 101, 10, 110], [2, 102, 13, 113, 3, 103, 12, 112]),
    ],
)
def test_squeeze(order, first, right):
    row, column, channel = np.indices((4, 6, 2))
    image = (100 * channel + 10 * row + column)[None]
    z = layers.Squeeze(order=order)(image)
    assert z.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(z[0, 0, 0], first)
    np.testing.assert_array_equal(z[0, 0, 1], right)
    np.testing.assert_array_equal(z[0, 1, 0], np.add(first, 20))


def test_squeeze_by_more():
    row, column, channel = np.indices((6, 9, 2))
    z = layers.Squeeze(3)((100 * channel + 10 * row + column)[None])
    assert z.shape == (1, 2, 3, 18)
    cells = np.array([0, 1, 2, 10, 11, 12, 20, 21, 22])
    np.testing.assert_array_equal(z[0, 0, 0], [*cells, *(100 + cells)])
    np.testing.assert_array_equal(z[0, 1, 2], np.array([*cells, *(100 + cells)]) + 36)


# What else has fixed values.


def test_permute():
    np.testing.assert_array_equal(layers.Permute([2, 0, 1])(np.array([[5, 6, 7]])), [[7, 5, 6]])
    np.testing.assert_array_equal(layers.Permute()(np.array([[5, 6, 7]])), [[7, 6, 5]])


@pytest.mark.parametrize("space", [(), (2, 3)])
def test_standardize(space):
    """A constant channel, and one whose variance float32 cannot hold, keep their scale."""
    layer, x = layers.Standardize(), 100 + 3 * random(50, *space, 4)
    x[..., 2:] = 0.1, 0
    x[0, ..., 3] = 1e-30
    layer.adapt(x)
    axes = tuple(range(x.ndim - 1))
    mean, deviation = x.mean(axes, dtype="float64"), x.std(axes, dtype="float64")
    deviation[2:] = 1
    y = x + random(*x.shape)
    np.testing.assert_allclose(layer(y), (y - mean) / deviation, atol=1e-4)
    log_det = -np.prod(space) * np.log(deviation).sum()
    close(layer.forward_log_det_jacobian(y), np.full(50, log_det))
    assert not layer.trainable_weights


def test_rescale():
    layer, x = layers.Rescale(1 / 4, -0.5), random(3, 2, 2, 1)
    close(layer(x), x / 4 - 0.5)
    close(layer.forward_log_det_jacobian(x), np.full(3, -4 * np.log(4)))


def test_logit():
    layer, x = layers.Logit(), np.array([[0.0, 0.5], [0.25, 1.0]], "float32")
    p = 0.05 + 0.9 * x
    close(layer(x), np.log(p / (1 - p)))
    close(layer.forward_log_det_jacobian(x), np.log(0.9 / p / (1 - p)).sum(axis=1))
    far = np.array([[-1e3, 1e3]], "float32")
    assert np.isfinite(layer.inverse(far)).all()
    assert np.isfinite(layer.inverse_log_det_jacobian(far)).all()


BOUNDS = {"low": [-1, None, 0], "high": [3, None, 100]}


@pytest.mark.parametrize("tokens", [(), (2,)])
def test_logit_between_bounds(tokens):
    layer, x = layers.Logit(**BOUNDS), np.array([[0.0, -7.0, 25.0], [2.9, 8.0, 99.0]], "float32")
    x = np.broadcast_to(x.reshape(2, *[1 for _ in tokens], 3), (2, *tokens, 3))
    z = np.stack([np.log((x[..., 0] + 1) / (3 - x[..., 0])), x[..., 1]], axis=-1)
    close(layer(x)[..., :2], z)
    close(layer(x)[..., 2], np.log(x[..., 2] / (100 - x[..., 2])))
    slope = 1 / (x[..., 0] + 1) + 1 / (3 - x[..., 0])
    slope = slope * (1 / x[..., 2] + 1 / (100 - x[..., 2]))
    log_det = np.log(slope).reshape(2, -1).sum(axis=1)
    close(layer.forward_log_det_jacobian(x), log_det)
    close(layer.inverse(layer(x)), x)


def test_logit_keeps_a_millionth_from_its_bounds():
    layer, end = layers.Logit(**BOUNDS), np.log(1e6)
    x = tf.constant(
        [[-1, 0, 100], [-np.inf, -np.inf, 101], [0, np.nan, np.nan], [1, 1, 4e-6]], "float32"
    )
    with tf.GradientTape() as tape:
        tape.watch(x)
        z, log_det = layer.forward_and_log_det(x)
        total = tf.reduce_sum(z[:2]) + tf.reduce_sum(log_det[:2])
    middle = np.log(1 / 3)
    wanted = [[-end, 0, end], [-end, -np.inf, end], [middle, np.nan, np.nan], [0, 1, -end]]
    np.testing.assert_allclose(z, wanted, rtol=1e-3)
    np.testing.assert_allclose(log_det[:2], np.full(2, 2 * end - np.log(4 * 100)), rtol=1e-3)
    assert np.isnan(log_det[2]) and np.isfinite(tape.gradient(total, x)[:2]).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 0), (1000, 1001), (-1e30, 1e-30)])
def test_samples_fall_inside_of_bounds(low, high):
    layer = layers.Logit(low=low, high=high)
    layer.build((None, 1))
    z = np.concatenate([np.linspace(-20, 20, 401), [-1e30, 1e30, -np.inf, np.inf]])
    x = layer.inverse(z[:, None]).numpy()
    assert np.all((np.float32(low) < x) & (x < np.float32(high)))
    assert np.all(np.diff(x[:401], axis=0) >= 0)


def test_logit_is_exact_near_its_bounds():
    x = -np.array([[1e-4, 2e-5, 3e-6]], "float32")
    layer = layers.Logit(low=-1, high=0)
    layer.build(x.shape)
    z, log_det = layer.forward_and_log_det(x)
    exact = x.astype("float64")
    np.testing.assert_allclose(z, np.log1p(exact) - np.log(-exact), rtol=1e-6)
    np.testing.assert_allclose(log_det, -np.sum(np.log1p(exact) + np.log(-exact)), rtol=1e-6)
    np.testing.assert_allclose(layer.inverse(z), x, rtol=1e-5)


def test_logit_of_a_wide_range_is_exact_in_its_middle():
    x = np.random.default_rng(0).uniform(3e5, 7e5, (20_000, 1)).astype("float32")
    layer = layers.Logit(low=0, high=1e6)
    layer.build(x.shape)
    assert abs(layer.inverse(layer(x)) - x).numpy().max() < 0.2


def test_chain_applies_in_the_order_of_the_list():
    x = random(3, 2)
    close(layers.Chain([layers.Rescale(2.0), layers.Rescale(1.0, 5.0)])(x), 2 * x + 5)


def test_multi_scale_factors_out_the_second_half_first():
    x = np.arange(8.0).reshape(1, 8)
    layer = layers.MultiScale([layers.Rescale(1.0), layers.Rescale(10.0), layers.Rescale(10.0)])
    np.testing.assert_array_equal(layer(x), [[4, 5, 6, 7, 20, 30, 0, 100]])


@pytest.mark.parametrize(
    "name",
    [
        *("ActNorm", "DiagonalScaling", "LearnedPrior", "Standardize"),
        *("AffineCoupling", "SplineCoupling"),
    ],
)
def test_identity_at_the_start(name):
    arguments = {
        "AffineCoupling": {"network": networks.ConvNet(4), "scale": "exp"},
        "SplineCoupling": {"network": networks.ConvNet(4)},
    }
    layer, x = getattr(layers, name)(**arguments.get(name, {})), random(3, 2, 4, 3)
    close(layer(x), x)
    close(layer.forward_log_det_jacobian(x), np.zeros(3))


def test_batch_norm_moves_its_averages():
    layer, x = layers.BatchNorm(momentum=0.9, epsilon=0.5), random(6, 2, 2, 3)
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    close(layer(x, training=True), (x - mean) / np.sqrt(variance + 0.5))
    close(layer.moving_mean, 0.1 * mean)
    close(layer.moving_variance, 0.9 + 0.1 * variance)
    z, log_det = layer.forward_and_log_det(x)
    close(z, (x - 0.1 * mean) / np.sqrt(1.4 + 0.1 * variance))
    close(log_det, np.full(6, -2 * np.log(1.4 + 0.1 * variance).sum()))
    close(layer.moving_mean, 0.1 * mean)  # inference moves nothing


@pytest.mark.parametrize("partition", [None, "half", "checkerboard"])
def test_batch_norm_of_a_single_cell_is_by_the_running_averages(partition):
    shape = (1, 1, 4) if partition == "checkerboard" else (4,)
    layer, x = layers.BatchNorm(partition=partition, swap=True), random(6, *shape)
    layer(10 + 3 * x, training=True)
    averages = layer.get_weights()
    for one in (x[:1], x[1:2]):
        with tf.GradientTape() as tape:
            tape.watch(one := tf.constant(one))
            z, log_det = layer.forward_and_log_det(one, training=True)
        assert np.any(tape.gradient(z, one))
        close(z, layer.forward_and_log_det(one)[0])
        close(log_det, layer.forward_and_log_det(one)[1])
    for value, before in zip(layer.get_weights(), averages, strict=True):
        close(value, before)
    assert not np.allclose(layer(x[:2], training=True), layer(x[:2]))


def test_frozen_batch_norm_keeps_its_averages():
    layer, x = layers.BatchNorm(trainable=False), random(6, 3)
    close(layer(x, training=True), x / np.sqrt(1 + 1e-4))
    close(layer.moving_mean, np.zeros(3))


def test_batch_norm_counts_the_kept_cells_of_a_checkerboard_as_zeros():
    layer, x = layers.BatchNorm(partition="checkerboard", momentum=0), random(6, 2, 2, 3)
    layer(x, training=True)
    x[:, [0, 1], [0, 1]] = 0
    close(layer.moving_mean, x.mean(axis=(0, 1, 2)))
    close(layer.moving_variance, x.var(axis=(0, 1, 2)))


def test_learned_prior_of_classes():
    layer = layers.LearnedPrior(num_classes=2)
    layer.build((None, 1))
    layer.class_terms.assign([[1.0, 0.0], [3.0, np.log(2)]])
    x = np.array([[7.0], [7.0]])
    close(layer(x, np.array([0, 1])), [[6], [2]])
    log_det = layer.forward_log_det_jacobian(x, condition=np.array([0, 1]))
    close(log_det, [0, -np.log(2)])


def test_learned_prior_without_labels():
    with pytest.raises(ValueError, match="needs the labels"):
        layers.LearnedPrior(num_classes=2)(random(3, 4))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_invertible_conv1x1_starts_as_a_rotation(shape):
    layer, x = layers.InvertibleConv1x1(), random(3, *shape)
    z, log_det = layer.forward_and_log_det(layer(x))
    close(np.linalg.norm(z, axis=-1), np.linalg.norm(x, axis=-1))
    close(log_det, np.zeros(3))
    assert not np.allclose(z, x)


def test_invertible_conv1x1_draws_from_the_global_seed():
    def draw(seed):
        keras.utils.set_random_seed(seed)
        return layers.InvertibleConv1x1()(np.eye(3)).numpy()

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.allclose(draw(1), draw(2))


def test_assign_matrix():
    layer, matrix = layers.InvertibleConv1x1(), random(4, 4)
    layer.build((None, 2, 3, 4))
    layer.assign_matrix(matrix)
    x = random(2, 2, 3, 4)
    z, log_det = layer.forward_and_log_det(x)
    close(z, x @ matrix)
    close(log_det, np.full(2, 6 * np.linalg.slogdet(matrix).logabsdet))


# Networks.


def test_residual_mlp():
    layer, x = networks.ResidualMLP(4, 2), random(3, 5)
    layer.build(x.shape)
    randomize(layer)
    h = x @ layer.weights[0] + layer.weights[1]
    for i in (2, 6):
        first, first_bias, last, last_bias = layer.weights[i : i + 4]
        inner = np.maximum(np.maximum(h, 0) @ first + first_bias, 0)
        h = h + inner @ last + last_bias
    close(layer(x, training=True), h)


def test_residual_conv_net():
    layer, x = networks.ResidualConvNet(4, 2), random(2, 3, 5, 2)
    layer.build(x.shape)
    randomize(layer)
    of = {name: iter([w for w in layer.weights if w.name == name]) for name in ("kernel", "bias")}
    offsets = iter([weight for weight in layer.weights if weight.name == "beta"])

    def convolve(h):
        return tf.nn.conv2d(h, next(of["kernel"]), 1, "SAME") + next(of["bias"])

    def normalise_and_rectify(h):
        axes = (0, 1, 2)
        return tf.nn.relu((h - np.mean(h, axes)) / np.sqrt(np.var(h, axes) + 1e-3) + next(offsets))

    h = convolve(x)
    for _ in range(2):
        h = h + convolve(normalise_and_rectify(convolve(normalise_and_rectify(h))))
    close(layer(x, training=True), h)


def test_residual_mlps_blocks_start_near_zero():
    layer, x = networks.ResidualMLP(8), random(3, 5)
    np.testing.assert_allclose(layer(x), x @ layer.weights[0], atol=0.1)
    lasts = [layer.weights[i] for i in (4, 8)]
    assert np.abs(lasts).max() < 1e-3 and not np.allclose(*lasts, atol=1e-5)


def test_dropout_of_inner_units_in_training():
    layer, x = networks.ResidualMLP(6, 1, dropout=0.25), np.ones((4000, 2), "float32")
    layer.build(x.shape)
    layer.set_weights([np.eye(*w.shape) if w.ndim == 2 else w for w in layer.get_weights()])
    close(layer(x), np.tile([2, 2, 0, 0, 0, 0], (4000, 1)))
    first, second = (layer(x, training=True).numpy()[:, :2] for _ in range(2))
    assert np.mean(first != second) > 0.3  # drawn anew
    for outputs in (first, second):
        close(np.unique(outputs), [1, 1 + 1 / 0.75])
        np.testing.assert_allclose(np.mean(outputs == 1, axis=0), 0.25, atol=0.03)


# Convolutions and the ResNet.


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_scaled_conv_is_a_convolution_with_a_channel_of_the_padding(kernel_size):
    layer, x, pad = networks.ScaledConv2D(2, kernel_size), random(2, 3, 4, 3), kernel_size // 2
    layer.build(x.shape)
    randomize(layer)
    inside = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = np.concatenate(
        [np.pad(x, inside), np.pad(np.zeros((2, 3, 4, 1)), inside, constant_values=1)], axis=-1
    )
    edge = layer.edge_kernel if pad else np.zeros((1, 1, 1, 2))
    kernel = np.concatenate([layer.kernel, edge], axis=2)
    expected = np.zeros((2, 3, 4, 2))
    for i, j in np.ndindex(3, 4):
        window = padded[:, i : i + kernel_size, j : j + kernel_size]
        expected[:, i, j] = np.tensordot(window, kernel, 3)
    close(layer(x), (expected + layer.bias) * np.exp(3 * layer.log_scale.numpy()))


def test_scaled_conv_draws_its_kernels_independently():
    layer = networks.ScaledConv2D(4, 3, kernel_initializer="random_normal")
    layer.build((None, 4, 4, 1))
    assert np.abs(np.corrcoef(np.ravel(layer.kernel), np.ravel(layer.edge_kernel))[0, 1]) < 0.5


@pytest.mark.parametrize("magnitude", [False, True])
def test_weight_norm(magnitude):
    layer = networks.WeightNormConv2D(4, 3, magnitude=magnitude)
    layer.build((None, 3, 3, 2))
    randomize(layer)
    layer.bias.assign([1, 2, 3, 4])
    # One image for each cell and channel: the responses in the middle are the kernel.
    impulses = np.eye(18).reshape(18, 3, 3, 2)
    kernel = layer(impulses)[:, 1, 1] - [1, 2, 3, 4]
    norm = np.abs(layer.magnitude_weight) if magnitude else np.ones(4)
    close(np.linalg.norm(kernel, axis=0), norm)
    direction = np.reshape(layer.direction, (18, 4))
    direction = direction / np.linalg.norm(direction, axis=0)
    close(kernel, direction * (layer.magnitude_weight.numpy() if magnitude else 1))


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.03)])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("shape", [(1, 1, 2), (24, 1, 1), (4, 3, 2)])
def test_res_nets_batch_norm_in_one_kernel(shape, channels, policy, tolerance):
    """As in float64, which Keras writes out; outputs, gradients and moving averages."""
    x, weight = random(*shape, channels), random(*shape, channels)
    x = tf.cast(tf.cast(x, "bfloat16"), "float64")  # the same at all precisions

    def results(policy):
        norm = networks.ResNet(4, 1, dtype=policy)._output_norm
        norm.build(x.shape)
        norm.beta.assign(np.arange(channels) % 3 + 1)
        inputs = tf.cast(x, norm.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = norm(inputs, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, "float64") ** 2 * weight)
        gradients = tape.gradient(loss, [inputs, norm.beta.value])
        assert outputs.dtype == gradients[0].dtype == norm.compute_dtype
        return [tf.cast(t, "float64") for t in (outputs, *gradients, *norm.non_trainable_weights)]

    actual = results(policy)
    for a, b in zip(actual, results("float64"), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    moving_variance = 0.9 + 0.1 * np.var(x, axis=(0, 1, 2))
    np.testing.assert_allclose(actual[4], moving_variance, atol=1e-5)  # float32 in all policies


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_res_nets_batch_norm_of_a_single_cell_is_by_the_running_averages(policy):
    norm, x = networks.ResNet(4, 1, dtype=policy)._output_norm, random(6, 1, 1, 3)
    norm(10 + 3 * x, training=True)
    averages = norm.get_weights()
    close(norm(x[:1], training=True), norm(x[:1]))
    for value, before in zip(norm.get_weights(), averages, strict=True):
        close(value, before)
    assert not np.allclose(norm(x[:2], training=True), norm(x[:2]))


@pytest.mark.parametrize("masked", [False, True])
def test_res_net_takes_the_input_and_its_negative(masked, monkeypatch):
    seen = []
    original = networks.WeightNormConv2D.call

    def spy(self, inputs):
        seen.append(inputs)
        return original(self, inputs)

    monkeypatch.setattr(networks.WeightNormConv2D, "call", spy)
    x = random(2, 3, 4, 3)
    networks.ResNet(4, 1, masked=masked)(x)
    normal = x / np.sqrt(1 + 1e-4)
    if masked:
        normal, mask = 2 * normal[..., :2], x[..., 2:]
    else:
        mask = x[..., 3:]
    close(seen[0], tf.nn.relu(np.concatenate([normal, -normal, mask], axis=-1)))


# What is refused, and in which words.


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: layers.AffineCoupling(None, scale="softplus"), ValueError, "scale='softplus'"),
        (lambda: layers.AffineCoupling(None, partition="third"), ValueError, "partition='third'"),
        (lambda: layers.AdditiveCoupling("mlp"), TypeError, "network='mlp'"),
        (lambda: layers.AdditiveCoupling(None, output_layer=3), TypeError, "output_layer=3"),
        (lambda: layers.BatchNorm(momentum=2), ValueError, "momentum=2"),
        (lambda: layers.Chain([]), TypeError, "layers"),
        (lambda: layers.Chain([keras.layers.Dense(3)]), TypeError, "layers"),
        (lambda: layers.MultiScale([]), TypeError, "levels"),
        (lambda: layers.Logit(0.5), ValueError, "alpha=0.5"),
        (lambda: layers.Logit(0.1, low=0, high=1), ValueError, "alpha=0.1"),
        (lambda: layers.Logit(low=0), ValueError, "logarithm.* high=None"),
        (lambda: layers.Logit(low=[0, None], high=1), ValueError, r"logarithm.*\[0.0, None\]"),
        (lambda: layers.Logit(low=[0, 0], high=[1, 1, 1]), ValueError, "as many"),
        (lambda: layers.Logit(low=1, high=1), ValueError, "`low` below `high`"),
        (lambda: layers.Logit(low=[0, 2], high=[1, 1]), ValueError, r"low=\[0.0, 2.0\]"),
        (lambda: layers.Logit(low=0, high=np.inf), ValueError, "finite"),
        (lambda: layers.Logit(low="a", high=1), ValueError, "`low` must be a number"),
        (lambda: layers.Permute([1, 1]), ValueError, r"permutation=\[1, 1\]"),
        (lambda: layers.Rescale(0), ValueError, "scale=0"),
        (lambda: layers.Squeeze(order="row"), ValueError, "order='row'"),
        (lambda: layers.Squeeze(1), ValueError, "size=1"),
        (lambda: layers.Squeeze(3, order="cell"), ValueError, "order='cell', size=3"),
        (lambda: layers.BatchNorm(partition="third"), ValueError, "partition='third'"),
        (lambda: layers.AffineCoupling(None, partition=3), ValueError, "partition=3"),
        (lambda: networks.MLP(0), ValueError, "width=0"),
        (lambda: networks.ConvNet(2.5), ValueError, "width=2.5"),
        (lambda: networks.ResidualMLP(4, 0), ValueError, "num_blocks=0"),
        (lambda: networks.ResidualMLP(4, dropout=1), ValueError, "dropout=1"),
        (lambda: networks.ResNet(4, 0), ValueError, "num_blocks=0"),
    ],
)
def test_refused_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (lambda: layers.Logit(low=0, high=[1, 2]), (3,), "each of 3 features"),
        (lambda: layers.Squeeze(), (3, 4, 1), "even height and width"),
        (lambda: layers.Squeeze(), (4,), "images"),
        (lambda: layers.Squeeze(3), (6, 4, 1), "height and width that 3 divides"),
        (lambda: layers.AdditiveCoupling(None, partition="checkerboard"), (3, 4), "for images"),
        (lambda: layers.Permute([1, 0]), (3,), "3 channels"),
        (lambda: layers.AffineCoupling(None), (1,), "at least 2"),
        (lambda: layers.AdditiveCoupling(None, partition="checkerboard"), (4,), "for images"),
        (lambda: layers.BatchNorm(partition="checkerboard"), (4,), "for images"),
        (
            lambda: layers.AffineCoupling(None, output_layer=keras.layers.Dense(2)),
            (4,),
            "4 channels",
        ),
        (lambda: layers.MultiScale([layers.ActNorm(), layers.ActNorm()]), (3,), "even"),
    ],
)
def test_refused_shapes(layer, shape, words):
    with pytest.raises(ValueError, match=words):
        layer().build((None, *shape))
