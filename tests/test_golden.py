"""Our models, with the weights of the papers' released code, compute what that code computes.

golden/README.md says what the files hold.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import precision

from keras_flows import layers, zoo
from keras_flows.context import guided_by


def load(name):
    return dict(np.load(pathlib.Path(__file__).parent / "golden" / f"{name}.npz"))


def latent_and_log_prob(model, golden, training=False):
    z, log_det = model.bijection.forward_and_log_det(dequantized(golden), training=training)
    return z.numpy(), (model.distribution.distribution.log_prob(z) + log_det).numpy()


def dequantized(golden):
    return golden["x"] + golden["u"]


def check_log_prob(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-5)


def check_latent(actual, desired):
    np.testing.assert_allclose(actual, np.reshape(desired, np.shape(actual)), atol=1e-4)


# Glow.


@pytest.fixture(scope="module")
def glow_golden():
    return load("glow_affine")


def make_glow(golden, kind):
    """Our Glow with the weights `kind`, "init" or "w"."""

    def get(name):
        return golden[f"{kind}|model/{name}:0"]

    def set_affine(layer, bias, log_scale, arrange=np.asarray):
        layer.bias.assign(arrange(bias).ravel())
        layer.log_scale.assign(arrange(log_scale).ravel())

    def set_convolution(layer, kernel):
        layer.kernel.assign(kernel[:, :, : layer.kernel.shape[2]])
        if layer.kernel_size > 1:
            layer.edge_kernel.assign(kernel[:, :, -1:])

    def set_step(act_norm, conv1x1, coupling, name):
        set_affine(act_norm, get(f"{name}/actnorm_center/b"), get(f"{name}/actnorm_scale/logs"))
        conv1x1.assign_matrix(get(f"{name}/invconv/W"))
        for layer, key in zip(coupling.network._convolutions, ("f1/l_1", "f1/l_2")):
            key = f"{name}/{key}"
            set_convolution(layer, get(f"{key}/W"))
            set_affine(layer, get(f"{key}/actnorm_center/b"), get(f"{key}/actnorm_scale/logs"))
        set_output(coupling, f"{name}/f1/l_last")

    def set_output(coupling, name, sign=1):
        layer = coupling._output_layer
        set_convolution(layer, sign * deinterleave(get(f"{name}/W")))
        set_affine(layer, sign * get(f"{name}/b"), get(f"{name}/logs"), deinterleave)

    def deinterleave(weight):
        """Released, shift and scale take turns; here the shifts come first."""
        return np.concatenate([weight[..., 0::2], weight[..., 1::2]], axis=-1)

    model = zoo.Glow((8, 8, 3), levels=2, depth=2, width=16)
    multi_scale = model.bijection.layers[1]
    for i, level in enumerate(multi_scale.levels):
        _, repeat, prior = level.layers
        steps = repeat.get_steps()
        for j, step in enumerate(steps):
            set_step(*step.layers, f"{i}/{j}")
        repeat.set_steps(steps)
        if i == 0:
            set_output(prior, "pool0/conv", sign=-1)  # mean and log std become shift and scale
        else:
            prior.edge_kernel.assign(get("prior/p/W")[:, :, -1:])
            set_affine(prior, get("prior/p/b"), get("prior/p/logs"))
    return model


def test_glow(glow_golden):
    z, log_prob = latent_and_log_prob(make_glow(glow_golden, "w"), glow_golden)
    check_log_prob(log_prob, glow_golden["log_prob"])
    check_latent(z[:, :96], glow_golden["eps0"])
    check_latent(z[:, 96:], glow_golden["eps1"])


def test_glow_adapts_as_released(glow_golden):
    model = make_glow(glow_golden, "init")
    _, log_prob = latent_and_log_prob(model, glow_golden)
    check_log_prob(log_prob, glow_golden["log_prob_init"])

    expected = model.get_weights()
    for level in model.bijection.layers[1].levels:
        repeat = level.layers[1]
        steps = repeat.get_steps()
        for step in steps:
            act_norm, _, coupling = step.layers
            for layer in (act_norm, *coupling.network._convolutions):
                layer.bias.assign(keras.ops.zeros_like(layer.bias))
                layer.log_scale.assign(keras.ops.zeros_like(layer.log_scale))
        repeat.set_steps(steps)
    model.bijection.adapt(dequantized(glow_golden))
    for actual, weight in zip(model.get_weights(), expected):
        np.testing.assert_allclose(actual, weight, atol=1e-5)


# RealNVP.


@pytest.fixture(scope="module")
def real_nvp_golden():
    return load("realnvp")


def make_real_nvp(golden):
    """Our RealNVP with the released weights, and {name: batch normalisation}."""
    norms = {}

    def get(name):
        return golden[f"w|{name}"]

    def set_norm(layer, name):
        norms[name] = layer
        layer.moving_mean.assign(get(f"{name}/mean"))
        layer.moving_variance.assign(get(f"{name}/var"))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(get(f"{name}/beta"))

    def set_convolution(layer, name):
        layer.direction.assign(get(f"{name}/weights"))
        if layer.magnitude:
            layer.magnitude_weight.assign(get(f"{name}/magnitude"))
        if layer.use_bias:
            layer.bias.assign(get(f"{name}/biases"))

    def set_coupling(coupling, norm, name):
        network = coupling.network
        ((norm1, convolution1, norm2, convolution2),) = network._blocks
        set_norm(network._input_norm, f"{name}/bn_in")
        set_convolution(network._input_convolution, f"{name}/resnet/h_in")
        set_convolution(network._skips[0], f"{name}/resnet/skip_in")
        set_norm(norm1, f"{name}/resnet/block_0/bn_in")
        set_convolution(convolution1, f"{name}/resnet/block_0/h_0")
        set_norm(norm2, f"{name}/resnet/block_0/bn_0")
        set_convolution(convolution2, f"{name}/resnet/block_0/out")
        set_convolution(network._skips[1], f"{name}/resnet/skip_0")
        set_norm(network._output_norm, f"{name}/resnet/bn_pre_out")
        set_convolution(coupling._output_layer, f"{name}/resnet/out")
        set_norm(norm, f"{name}/bn_out")
        kind = "rescaling_scale" if coupling.partition == "checkerboard" else "scale"
        coupling.bound.assign(get(f"{name}/{kind}"))

    model = zoo.RealNVP((8, 8, 3), levels=2, width=8, num_blocks=1)
    for i, numbers in enumerate([(0, 1, 2, 4, 5, 6), (0, 1, 2, 3)]):
        chain = model.bijection.layers[2].levels[i].layers
        couplings = [layer for layer in chain if isinstance(layer, layers.AffineCoupling)]
        batch_norms = [layer for layer in chain if isinstance(layer, layers.BatchNorm)]
        for number, coupling, norm in zip(numbers, couplings, batch_norms, strict=True):
            set_coupling(coupling, norm, f"scale_{i}/coupling_{number}")
    return model, norms


def image_of(z):
    """The latent in the image's shape, as released: the ordered squeeze undone."""
    factored_out, top = (half.reshape(-1, 4, 4, 6) for half in np.split(z, 2, axis=-1))
    squeeze = layers.Squeeze(order="cell")
    squeeze.build((None, 8, 8, 3))
    return squeeze.inverse(np.concatenate([top, factored_out], axis=-1))


def test_real_nvp(real_nvp_golden):
    model, _ = make_real_nvp(real_nvp_golden)
    z, log_prob = latent_and_log_prob(model, real_nvp_golden)
    check_log_prob(log_prob, real_nvp_golden["log_prob_eval"])
    check_latent(image_of(z), real_nvp_golden["z_eval"])


def test_real_nvp_in_training(real_nvp_golden):
    model, norms = make_real_nvp(real_nvp_golden)
    z, log_prob = latent_and_log_prob(model, real_nvp_golden, training=True)
    check_log_prob(log_prob, real_nvp_golden["log_prob_train"])
    check_latent(image_of(z), real_nvp_golden["z_train"])

    after = {k: v for k, v in real_nvp_golden.items() if k.startswith("after_train|")}
    assert len(norms) == 50
    for name, norm in norms.items():
        mean, variance = (after.pop(f"after_train|{name}/{kind}") for kind in ("mean", "var"))
        np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, variance, atol=1e-5)
    assert not after


# Splines.


def test_rational_quadratic_spline():
    """One coupling's transform, each row a spline of its own, in float64."""
    golden = load("rational_quadratic_spline")
    minimum = golden["min_derivative"]
    parameters = [golden[f"unnormalized_{name}"] for name in ("widths", "heights", "derivatives")]
    parameters[2] -= np.log(np.expm1(1 - minimum))  # ours are zero where the slope is 1
    parameters = keras.ops.convert_to_tensor(np.concatenate(parameters, axis=1))
    layer = layers.SplineCoupling(None, bins=8, tail_bound=float(golden["tail_bound"]))
    x = keras.ops.convert_to_tensor(golden["x"][:, None])
    y, log_slope = layer.transform(x, parameters)
    np.testing.assert_allclose(y[:, 0], golden["y"], atol=1e-12)
    np.testing.assert_allclose(log_slope[:, 0], golden["log_det"], atol=1e-9)
    again, inverse_log_slope = layer.inverse_transform(y, parameters)
    np.testing.assert_allclose(again, x, atol=1e-9)  # of the flattest slope, 4e-6
    np.testing.assert_allclose(inverse_log_slope, -log_slope, atol=1e-9)


# Jet.


def make_jet(golden, **options):
    """Our Jet with the released weights."""
    layer_norms = ("encoder_norm", "LayerNorm_0", "LayerNorm_1")

    def set_step(coupling, get):
        def set_dense(layer, name):
            layer.kernel.assign(np.reshape(get(f"{name}/kernel"), layer.kernel.shape))
            layer.bias.assign(np.ravel(get(f"{name}/bias")))

        def set_norm(layer, name):
            assert name.split("/")[-1] in layer_norms
            layer.gamma.assign(get(f"{name}/scale"))
            layer.beta.assign(get(f"{name}/bias"))

        network = coupling.network
        set_dense(network._input_layer, "init_proj")
        network.places.assign(get("posemb")[0])
        for i, (norm_1, attention, norm_2, wide, narrow) in enumerate(network._blocks):
            block = f"vit/encoderblock_{i}"
            set_norm(norm_1, f"{block}/LayerNorm_0")
            for layer in (attention._query, attention._key, attention._value, attention._out):
                set_dense(layer, f"{block}/MultiHeadDotProductAttention_0/{layer.name}")
            set_norm(norm_2, f"{block}/LayerNorm_1")
            set_dense(wide, f"{block}/MlpBlock_0/Dense_0")
            set_dense(narrow, f"{block}/MlpBlock_0/Dense_1")
        set_norm(network._output_norm, "vit/encoder_norm")
        set_dense(coupling._output_layer, "final_proj")

    def set_partition(partition, channels, tokens):
        """The tokens' order is the kind's; that of channels was drawn."""
        elements = np.arange(partition.order.shape[0]).reshape(len(tokens), len(channels))
        if tokens[0] >= 0:
            np.testing.assert_array_equal(partition.order, elements[tokens].ravel())
        else:
            order = np.ravel(np.split(elements[:, channels], 2, axis=1))
            partition.order.assign(order)
            partition.back.assign(np.argsort(order))

    model = zoo.Jet(golden["x"].shape[1:], partitions=golden["partitions"].tolist(), **options)
    repeat = model.bijection.layers[2]
    steps = repeat.get_steps()
    for i, step in enumerate(steps):
        set_step(step, lambda name, i=i: golden[f"w|{name}"][i])
        orders = (golden[f"{kind}_permutations"][i] for kind in ("channel", "token"))
        set_partition(step.partition, *orders)
    repeat.set_steps(steps)
    return model


@pytest.mark.parametrize(
    ("name", "options", "policy"),
    [
        pytest.param(name, options, policy, marks=() if quick else pytest.mark.slow)
        for name, options in [
            ("jet", {"patch_size": 4, "width": 32, "num_blocks": 2}),
            ("jet_nonsquare", {"patch_size": 2, "width": 16, "max_scale": 3.0}),
        ]
        for policy in ("float32", "float64")
        for quick in [(name, policy) == ("jet_nonsquare", "float64")]
    ],
    indirect=["policy"],
)
def test_jet(name, options, policy):
    golden, bits = load(name), policy.removeprefix("float")
    model = make_jet(golden, depth=9, num_heads=2, **options)
    tolerance = {"32": 3e-6, "64": 1e-9}[bits]
    # Their input is in single precision.
    x = (golden["scaled"].astype(policy) + 1) * 127.5
    np.testing.assert_allclose(x, dequantized(golden), atol=1e-4)
    z, log_det = model.bijection.forward_and_log_det(x)
    expected = np.reshape(golden[f"z_{bits}"], z.shape)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(z / scale, expected / scale, atol=tolerance)
    expected = golden[f"log_det_{bits}"] - model.size * np.log(127.5)
    np.testing.assert_allclose(log_det, expected, rtol=tolerance)
    log_prob = model.distribution.distribution.log_prob(z) + log_det
    np.testing.assert_allclose(log_prob, golden[f"log_prob_{bits}"], rtol=tolerance)
    back, inverse_log_det = model.bijection.inverse_and_log_det(z)
    np.testing.assert_allclose(back, x, atol=127.5 * 10 * tolerance)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=tolerance)


# TarFlow.


def make_tarflow(golden, **options):
    """Our TarFlow with the released weights."""

    def set_dense(layer, get, name):
        layer.kernel.assign(get(f"{name}.weight").T)
        layer.bias.assign(get(f"{name}.bias"))

    def set_norm(layer, get, name):
        layer.gamma.assign(get(f"{name}.weight"))
        layer.beta.assign(get(f"{name}.bias"))

    def set_step(block, get):
        network = block.network
        set_dense(network._input_layer, get, "proj_in")
        network.places.assign(get("pos_embed"))
        network.condition_vectors.assign(get("class_embed")[:, 0])
        for i, (norm_1, attention, norm_2, wide, narrow) in enumerate(network._blocks):
            name = f"attn_blocks.{i}"
            set_norm(norm_1, get, f"{name}.attention.norm")
            set_dense(attention._query_key_value, get, f"{name}.attention.qkv")
            set_dense(attention._out, get, f"{name}.attention.proj")
            set_norm(norm_2, get, f"{name}.mlp.norm")
            set_dense(wide, get, f"{name}.mlp.main.0")
            set_dense(narrow, get, f"{name}.mlp.main.2")
        set_dense(block._output_layer, get, "proj_out")

    size = {"patch_size": 4, "depth": 4, "width": 32, "num_layers": 2, "num_heads": 2}
    model = zoo.TarFlow(golden["x"].shape[1:], num_classes=3, **size, **options)
    repeat = model.bijection.layers[2]
    steps = repeat.get_steps()
    for i, step in enumerate(steps):
        set_step(step, lambda name, i=i: golden[f"w|blocks.{i}.{name}"])
    repeat.set_steps(steps)
    return model


@pytest.fixture(scope="module", params=["64", pytest.param("32", marks=pytest.mark.slow)])
def tarflow(request):
    """(golden numbers, our model, its bits, tolerance)."""
    golden = load("tarflow")
    with precision(f"float{request.param}"):
        yield golden, make_tarflow(golden), request.param, {"32": 3e-6, "64": 1e-9}[request.param]


def scaled_error(actual, desired):
    return (
        np.abs(np.subtract(actual, np.reshape(desired, np.shape(actual)))).max()
        / np.abs(desired).max()
    )


def test_tarflow(tarflow):
    golden, model, bits, tolerance = tarflow
    x = golden["x"] + golden["u"].astype(model.compute_dtype)
    labels = {"": golden["labels"]}
    if bits == "64":
        labels |= {"_none": np.full(4, -1), "_dropped": golden["labels_dropped"]}
    for kind, condition in labels.items():

        def get(name, kind=kind):
            return golden[f"{name}{kind}_{bits}"]

        z, log_det = model.bijection.forward_and_log_det(x, condition)
        assert scaled_error(z, get("z")) < tolerance
        # Theirs is a mean over the dimensions, and of pixels scaled to [-1, 1].
        per_dimension = log_det / model.size
        np.testing.assert_allclose(per_dimension, get("log_det") - np.log(128), rtol=tolerance)
        loss = 0.5 * np.mean(z**2) - np.mean(per_dimension) - np.log(128)
        np.testing.assert_allclose(loss, get("loss"), rtol=tolerance)
        log_prob = (model.distribution.distribution.log_prob(z) + log_det).numpy()
        np.testing.assert_allclose(log_prob, get("log_prob"), rtol=tolerance)
        bits_per_dim = -log_prob / (model.size * np.log(2))
        np.testing.assert_allclose(bits_per_dim, get("bits_per_dim"), rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["linear", "constant", "plain", "none"],
)
def test_samples_of_tarflow(name, tarflow):
    """Guided, by either schedule, or not; and without labels."""
    golden, model, bits, tolerance = tarflow
    z = golden["sample_z"].reshape(4, -1).astype(model.compute_dtype)
    labels = np.full(4, -1) if name == "none" else golden["labels"]
    guidance = None if name in ("plain", "none") else tf.fill([4], tf.constant(2, z.dtype))
    block = model.bijection.layers[2].step
    block.guidance_schedule = "constant" if name == "constant" else "linear"
    with guided_by(guidance):  # sooner traced than token by token
        inverse = tf.function(model.bijection.inverse_and_log_det, autograph=False)
        x, _ = inverse(tf.constant(z), tf.constant(labels))
    assert scaled_error(x / 128 - 1, golden[f"sample_{name}_{bits}"]) < 10 * tolerance


@pytest.mark.slow
def test_denoised_samples_of_tarflow():
    golden = load("tarflow")
    with precision("float64"):
        model = make_tarflow(golden, noise=0.05)
        x = tf.constant((golden["sample_plain_64"] + 1) * 127.5)
        # In a graph, of which the served one is made.
        denoised = tf.function(model.denoised, autograph=False)(x, golden["labels"])
    assert scaled_error(denoised / 127.5 - 1, golden["denoised_64"]) < 1e-9
