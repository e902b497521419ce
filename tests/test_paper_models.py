"""The zoo's models compute what the papers' formulas say: `numpy_models`, in float64, to 1e-9."""

import math

import keras
import numpy as np
import numpy_models
import pytest
from conftest import perturb

from keras_flows import dequantization, layers, zoo

LABELS = np.array([2, 0, 1, 1, 2])


def images(shape, bits=8):
    """Dequantised: what the bijection sees."""
    return np.random.default_rng(1).uniform(0, 2**bits, (5, *shape))


def make(kind, shape, **options):
    """In float64, every weight away from its initial value, running statistics included."""
    keras.utils.set_random_seed(0)
    model = kind(shape, dtype="float64", seed=0, **options)
    perturb(model, 0.2)
    return model


def check(model, x, z, log_prob, labels=None, training=False):
    actual, log_det = model.bijection.forward_and_log_det(x, labels, training)
    np.testing.assert_allclose(actual, z, rtol=1e-9, atol=1e-9)
    actual = model.distribution.distribution.log_prob(actual) + log_det
    np.testing.assert_allclose(actual, log_prob, rtol=1e-9)
    if not training:
        back, log_det = model.bijection.inverse_and_log_det(z, labels)
        np.testing.assert_allclose(back, x, rtol=1e-7, atol=1e-6)  # small scales magnify rounding
        density = model.distribution.distribution.log_prob(z)
        np.testing.assert_allclose(density - log_det, log_prob, rtol=1e-9)


def arrays(layer, *names):
    return {name: getattr(layer, name).numpy() for name in names}


# NICE.


@pytest.mark.parametrize(
    ("shape", "depth", "prior", "bits"),
    [((4, 2, 3), 4, "logistic", 8), ((3, 1, 5), 6, "gaussian", 5)],  # D even, odd; in a loop
)
def test_nice(shape, depth, prior, bits):
    model = make(zoo.NICE, shape, depth=depth, width=6, num_hidden=2, prior=prior, bits=bits)
    *couplings, scaling = model.bijection.layers[2:]
    if depth == 6:
        (pairs,) = couplings
        couplings = [coupling for pair in pairs.get_steps() for coupling in pair.layers]

    def dense_layers(coupling):
        dense = [*coupling.network._layers_in_order, coupling._output_layer]
        return [(layer.kernel.numpy(), layer.bias.numpy()) for layer in dense]

    weights = {
        "couplings": [dense_layers(coupling) for coupling in couplings],
        "scaling": scaling.log_scale.numpy(),
    }
    assert len(weights["couplings"]) == depth and len(weights["couplings"][0]) == 3
    x = images(shape, bits)
    check(model, x, *numpy_models.nice(x, weights, prior, bits))


# RealNVP.


@pytest.fixture(scope="module")
def real_nvp():
    """Three scales, the last on 2x1 cells, and its weights for NumPy."""
    model = make(zoo.RealNVP, (8, 4, 2), levels=3, depth=2, width=3, num_blocks=2)

    def norm(layer):
        beta = layer.beta.numpy() if hasattr(layer, "beta") else None
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        return {"mean": mean, "variance": variance, "beta": beta}

    def convolution(layer):
        weights = arrays(layer, "direction")
        if layer.magnitude:
            weights["magnitude"] = layer.magnitude_weight.numpy()
        return {**weights, **(arrays(layer, "bias") if layer.use_bias else {})}

    def coupling_and_norm(coupling, norm_out):
        network = coupling.network
        blocks = [
            {
                "norm_0": norm(norm_0),
                "convolution_0": convolution(convolution_0),
                "norm_1": norm(norm_1),
                "convolution_1": convolution(convolution_1),
                "skip": convolution(skip),
            }
            for (norm_0, convolution_0, norm_1, convolution_1), skip in zip(
                network._blocks, network._skips[1:], strict=True
            )
        ]
        return {
            "norm_in": norm(network._input_norm),
            "net": {
                "in": convolution(network._input_convolution),
                "skip_in": convolution(network._skips[0]),
                "blocks": blocks,
                "norm_out": norm(network._output_norm),
                "out": convolution(coupling._output_layer),
            },
            "bound": float(coupling.bound),
            "norm_out": norm(norm_out),
        }

    def in_turns(chain):
        return [coupling_and_norm(*pair) for pair in zip(chain[0::2], chain[1::2], strict=True)]

    *scales, last = [level.layers for level in model.bijection.layers[2].levels]
    weights = [{"before": in_turns(s[:4]), "after": in_turns(s[5:9])} for s in scales]
    return model, [*weights, {"before": in_turns(last)}]


@pytest.mark.parametrize("training", [False, True])
def test_real_nvp(real_nvp, training):
    model, weights = real_nvp
    x = images(model.input_shape)
    check(model, x, *numpy_models.real_nvp(x, weights, training), training=training)


# Glow.


def make_glow(**options):
    """Two levels, the last on 2x1 cells, and its weights for NumPy."""
    model = make(zoo.Glow, (8, 4, 2), levels=2, depth=2, width=6, **options)

    def convolution(layer, sign=1):
        kernel = layer.kernel.numpy()
        if layer.kernel_size > 1:
            kernel = np.concatenate([kernel, layer.edge_kernel], axis=2)
        weights = arrays(layer, "bias", "log_scale")
        return {**weights, "kernel": sign * kernel, "bias": sign * weights["bias"]}

    def step(act_norm, conv1x1, coupling):
        w = arrays(conv1x1, "permutation", "lower", "upper", "sign", "log_s")
        lower, upper = np.tril(w["lower"], -1), np.triu(w["upper"], 1)
        diagonal = np.diag(w["sign"] * np.exp(w["log_s"]))
        return {
            "act_norm": arrays(act_norm, "bias", "log_scale"),
            "matrix": w["permutation"] @ (lower + np.eye(len(lower))) @ (upper + diagonal),
            "hidden": [convolution(layer) for layer in coupling.network._convolutions],
            "out": convolution(coupling._output_layer),
        }

    levels = []
    for level in model.bijection.layers[1].levels:
        _, repeat, prior = level.layers
        levels.append({"steps": [step(*each.layers) for each in repeat.get_steps()]})
        if isinstance(prior, layers.AffineCoupling):
            # (z + t) exp(s) is (z - mean) / exp(log_std).
            levels[-1]["prior"] = convolution(prior._output_layer, sign=-1)
    weights = {
        "levels": levels,
        "top": {**arrays(prior, "bias", "log_scale"), "kernel": prior.edge_kernel.numpy()},
    }
    if model.num_classes:
        kernel, bias, log_scale = prior.class_terms, prior.class_bias, prior.class_log_scale
        classes = {"kernel": kernel, "bias": bias, "log_scale": log_scale}
        weights["classes"] = {name: weight.numpy() for name, weight in classes.items()}
    if model.classifier_weight:
        weights["classifier"] = arrays(model._classifier, "kernel", "bias", "log_scale")
        weights["classifier"]["kernel"] = weights["classifier"]["kernel"][0, 0]
    return model, weights


def test_affine_glow():
    model, weights = make_glow()
    x = images(model.input_shape)
    z, log_prob, _ = numpy_models.glow(x, weights)
    check(model, x, z, log_prob)


@pytest.fixture(scope="module")
def conditional_glow():
    options = {"bits": 5, "num_classes": 3, "classifier_weight": 0.01}
    return make_glow(coupling="additive", **options)


def test_conditional_additive_glow(conditional_glow):
    model, weights = conditional_glow
    x = images(model.input_shape, bits=5)
    z, log_prob, cross_entropy = numpy_models.glow(x, weights, bits=5, labels=LABELS)
    check(model, x, z, log_prob, labels=LABELS)
    actual = model.auxiliary_loss(z, LABELS)
    np.testing.assert_allclose(actual, 0.01 * model.size * cross_entropy, rtol=1e-9)


def test_classifier_sees_no_labels_and_is_saved(conditional_glow, tmp_path):
    model, _ = conditional_glow
    x = images(model.input_shape, bits=5)
    of_labels = [
        model.class_logits(model.bijection.forward(x, condition=labels), labels)
        for labels in (LABELS, 0 * LABELS)
    ]
    np.testing.assert_allclose(*of_labels, rtol=1e-9)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    z = model.bijection.forward(x, condition=LABELS)
    np.testing.assert_allclose(loaded.class_logits(z, LABELS), of_labels[0], rtol=1e-9)


def test_classifier_is_part_of_the_loss_but_not_of_bits_per_dim(conditional_glow):
    model, weights = conditional_glow
    x = np.random.default_rng(1).integers(0, 256, (5, *model.input_shape), dtype="uint8")
    model._adapted.assign(True)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)

    def expected(kind):
        noise = dequantization.uniform_noise(x.shape, "float64", kind, model.seed, 0, 0)
        _, log_prob, entropy = numpy_models.glow(x // 8 + noise.numpy(), weights, 5, LABELS)
        loss = np.mean(0.01 * model.size * entropy - log_prob)
        return {"loss": loss, "bits_per_dim": -log_prob.mean() / (model.size * math.log(2))}

    actual = model.evaluate(x, LABELS, verbose=0, return_dict=True)
    assert actual == pytest.approx(expected(dequantization.EVALUATE), rel=1e-6)

    # The same in training, where the gradient in a bias says that the loss is what is minimised.
    before = model.get_weights()
    model.reset_metrics()
    actual = model.train_on_batch(x, LABELS, return_dict=True)
    change = model._classifier.bias.numpy() - weights["classifier"]["bias"]
    model.set_weights(before)
    at_once = expected(dequantization.FIT)
    assert actual == pytest.approx(at_once, rel=1e-6)
    bias = weights["classifier"]["bias"]
    for i in range(3):
        losses = []
        for step in (1e-3, -1e-3):
            weights["classifier"]["bias"] = bias + step * np.eye(3)[i]
            losses.append(expected(dequantization.FIT)["loss"])
        weights["classifier"]["bias"] = bias
        slope = (losses[0] - losses[1]) / 2e-3
        assert change[i] == pytest.approx(-slope, rel=1e-3)


# Of transformers.


def dense(layer):
    return arrays(layer, "kernel", "bias")


def norm(layer):
    return arrays(layer, "gamma", "beta")


# Jet.


@pytest.mark.parametrize(
    ("shape", "patch_size", "partitions", "options"),
    [
        ((6, 4, 3), 2, ("channels", "checkerboard-inv"), {"bits": 5}),
        pytest.param(
            *((4, 8, 1), 2, ("vstripes", "hstripes-inv", "channels", "checkerboard")),
            {"max_scale": 3.0, "num_blocks": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_jet(shape, patch_size, partitions, options):
    """The first has a grid of an odd number of rows."""
    model = make(
        *(zoo.Jet, shape),
        **{"patch_size": patch_size, "partitions": partitions, "depth": len(partitions)},
        **{"width": 6, "num_heads": 2, **options},
    )

    def coupling(kind, layer):
        channels = patch_size**2 * shape[-1]
        order = layer.partition.order.numpy().reshape(2, -1, channels // 2)
        network, blocks = layer.network, []
        for norm_1, attention, norm_2, wide, narrow in network._blocks:
            inner = {
                name: getattr(attention, f"_{name}") for name in ("query", "key", "value", "out")
            }
            block = {"norm_1": norm(norm_1), "norm_2": norm(norm_2), "num_heads": 2}
            block |= {name: dense(each) for name, each in inner.items()}
            blocks.append({**block, "wide": dense(wide), "narrow": dense(narrow)})
        net = {
            "in": dense(network._input_layer),
            "places": network.places.numpy(),
            "blocks": blocks,
            "norm_out": norm(network._output_norm),
            "out": dense(layer._output_layer),
        }
        # Of the first token, whose channels are the first elements.
        return {"kind": kind, "order": order[:, 0].ravel(), "network": net}

    steps = model.bijection.layers[2].get_steps()
    weights = [coupling(*each) for each in zip(partitions, steps, strict=True)]
    grid = [size // patch_size for size in shape[:2]]
    x = images(shape, model.bits)
    z, log_prob = numpy_models.jet(x, weights, patch_size, grid, model.max_scale, model.bits)
    check(model, x, z, log_prob)


# TarFlow.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 6, 3), {"patch_size": 2, "bits": 5, "num_classes": 3}),
        ((8, 4, 1), {"patch_size": 4, "num_layers": 2}),
    ],
)
def test_tarflow(shape, options):
    model = make(zoo.TarFlow, shape, depth=3, width=6, num_heads=2, **options)

    def block(layer):
        network, blocks = layer.network, []
        for norm_1, attention, norm_2, wide, narrow in network._blocks:
            maps = arrays(attention._query_key_value, "kernel", "bias")
            parts = {name: np.split(value, 3, axis=-1) for name, value in maps.items()}
            inner = {"norm_1": norm(norm_1), "norm_2": norm(norm_2), "num_heads": 2}
            for i, name in enumerate(("query", "key", "value")):
                inner[name] = {kind: part[i] for kind, part in parts.items()}
            last = {"out": attention._out, "wide": wide, "narrow": narrow}
            blocks.append({**inner, **{name: dense(each) for name, each in last.items()}})
        net = {"in": dense(network._input_layer), "out": dense(layer._output_layer)}
        if model.num_classes:
            net["classes"] = network.condition_vectors.numpy()
        return {**net, "places": network.places.numpy(), "blocks": blocks}

    weights = [block(step) for step in model.bijection.layers[2].get_steps()]
    x, labels = images(shape, model.bits), np.array([2, 0, -1, 1, 2]) if model.num_classes else None
    z, log_prob = numpy_models.tarflow(x, weights, model.patch_size, model.bits, labels)
    check(model, x, z, log_prob, labels)
