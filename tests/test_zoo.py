"""The papers' models on inputs of many shapes: invertible, with exact log-determinants."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb, what_xla_reads

from keras_flows import layers, zoo
from keras_flows.private import flatten_layers

MLP, CONV = {"depth": 2, "width": 4}, {"depth": 1, "width": 4}
NICE = {**MLP, "num_hidden": 1}
REAL_NVP = {**CONV, "num_blocks": 1}
NSF = {**MLP, "num_blocks": 1, "bins": 3}
JET = {"depth": 2, "width": 4, "num_heads": 2, "partitions": ("channels", "checkerboard")}
TARFLOW = {"depth": 2, "width": 4, "num_layers": 1, "num_heads": 2}

# name -> (model, input_shape, options)
CASES = {
    "nice_2": (zoo.NICE, (2,), NICE),
    "nice_5_gaussian": (zoo.NICE, (5,), {**NICE, "prior": "gaussian"}),
    "nice_image": (zoo.NICE, (3, 1, 2), {**NICE, "bits": 3, "logit_alpha": 1e-3}),
    "real_nvp_2": (zoo.RealNVP, (2,), {**MLP, "batch_norm": True}),
    "real_nvp_5_no_batch_norm": (zoo.RealNVP, (5,), MLP),
    # What a model hands on to `Flow`, as `prior` here, is part of its config, too.
    "real_nvp_logistic": (zoo.RealNVP, (2,), {**MLP, "prior": "logistic"}),
    "glow_logistic": (
        zoo.Glow,
        (4,),
        {**MLP, "prior": "logistic", "coupling": "bounded_affine"},
    ),
    "real_nvp_odd": (
        zoo.RealNVP,
        (3, 1, 1),
        {**REAL_NVP, "levels": 1, "batch_norm": False, "logit_alpha": None},
    ),
    "real_nvp_3_levels": (zoo.RealNVP, (4, 4, 2), {**REAL_NVP, "levels": 3, "bits": 5}),
    "nsf_2": (zoo.NSF, (2,), {**NSF, "dropout": 0.1}),
    "nsf_5_reversible": (zoo.NSF, (5,), {**NSF, "reversible": True, "standardize": False}),
    "nsf_image": (zoo.NSF, (4, 4, 1), {**NSF, "levels": 2, "bits": 5, "dropout": 0.1}),
    "nsf_image_of_one_scale": (zoo.NSF, (4, 4, 1), {**NSF, "levels": 2, "multi_scale": False}),
    "jet": (zoo.Jet, (4, 4, 1), {**JET, "bits": 5, "reversible": True, "num_classes": 3}),
    "jet_sequences": (zoo.Jet, (2, 4, 1), {**JET, "condition_shape": (5, 2), "max_scale": 3.0}),
    "tarflow": (
        zoo.TarFlow,
        (4, 4, 1),
        {**TARFLOW, "bits": 5, "num_classes": 3, "label_dropout": 0.2, "patch_size": 2},
    ),
    "tarflow_noise": (
        zoo.TarFlow,
        (1, 2, 3),
        {**TARFLOW, "condition_shape": (2,), "noise": 0.1, "guidance_schedule": "constant"},
    ),
    "nice_classes": (zoo.NICE, (4,), {**NICE, "num_classes": 3}),
    "real_nvp_features": (zoo.RealNVP, (3,), {**MLP, "condition_shape": (2,)}),
    "real_nvp_maps": (
        zoo.RealNVP,
        (4, 4, 2),
        {**REAL_NVP, "levels": 2, "condition_shape": (4, 4, 1)},
    ),
    "nsf_features": (zoo.NSF, (3,), {**NSF, "reversible": True, "condition_shape": (2,)}),
    "glow_features": (
        zoo.Glow,
        (4, 4, 1),
        {**CONV, "levels": 2, "coupling": "bounded_affine", "condition_shape": (2,)},
    ),
    "glow_2": (zoo.Glow, (2,), MLP),
    "glow_5_additive": (zoo.Glow, (5,), {**MLP, "coupling": "additive"}),
    "glow_5_classes": (zoo.Glow, (5,), {**MLP, "num_classes": 3}),
    "glow_gray": (zoo.Glow, (4, 8, 1), {**CONV, "levels": 2}),
    "glow_2_channels": (zoo.Glow, (6, 2, 2), {**CONV, "levels": 1, "bits": 1, "logit_alpha": 0.01}),
    "glow_3_channels_classes": (
        zoo.Glow,
        (4, 4, 3),
        {**CONV, "levels": 2, "num_classes": 3, "classifier_weight": 0.01},
    ),
    "glow_5_channels_additive": (
        zoo.Glow,
        (2, 2, 5),
        {**CONV, "levels": 1, "coupling": "additive"},
    ),
}


def data(model, batch=3):
    """A dequantised batch, and its condition, if the model wants one, as the bijection gets it."""
    rng = np.random.default_rng(0)
    shape = (batch, *model.input_shape)
    x = rng.uniform(0, unit(model), shape) if model.is_image else rng.normal(size=shape)
    condition = None
    if model.num_classes is not None:
        condition = np.arange(batch) % model.num_classes
    elif model.is_conditional:
        condition = rng.normal(size=(batch, *model.condition_shape))
        condition = model.features_of(tf.constant(condition, model.compute_dtype))
    return tf.constant(x, model.compute_dtype), condition


def unit(model):
    return 2**model.bits if model.is_image else 1


def of_each_push(name):
    """What takes its inverse token by token takes long."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith("tarflow") else name


@pytest.fixture(scope="module", params=map(of_each_push, CASES))
def model(request):
    """Adapted, then with noise on every weight, running statistics included."""
    keras.utils.set_random_seed(0)
    make, shape, options = CASES[request.param]
    model = make(shape, adapt_examples=9, seed=1, name="mine", **options)
    model.bijection.adapt(*data(model, batch=20))
    perturb(model)
    return model


@pytest.fixture(scope="module")
def exact(model):
    """The same in float64, restored from its config."""
    config = json.loads(json.dumps({**model.get_config(), "dtype": "float64"}))
    exact = type(model).from_config(config)
    exact.set_weights(model.get_weights())
    return exact


def test_round_trip(model):
    x, condition = data(model)
    z, log_det = model.bijection.forward_and_log_det(x, condition)
    assert z.shape == (3, model.size) and log_det.shape == (3,)
    back, inverse_log_det = model.bijection.inverse_and_log_det(z, condition)
    np.testing.assert_allclose(back, x, atol=1e-4 * unit(model))
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-4, atol=1e-3)


def test_xla_can_read_all_variables_on_a_gpu(model):
    """TensorFlow keeps those of int32 on the CPU, where a program that XLA made finds none."""
    assert "int32" not in {keras.backend.standardize_dtype(each.dtype) for each in model.variables}


def test_log_det_is_that_of_the_jacobian(model, exact):
    x, condition = data(exact)
    size = exact.size
    copies = tf.repeat(x, size, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        z, log_det = exact.bijection.forward_and_log_det(
            copies, None if condition is None else np.repeat(condition, size, axis=0)
        )
        # Copy k of an example has the gradient of z_k, as examples do not depend on each other.
        diagonal = tf.linalg.trace(tf.reshape(z, (-1, size, size)))
    jacobian = tf.reshape(tape.gradient(diagonal, copies), (-1, size, size)).numpy()
    expected = np.repeat(np.linalg.slogdet(jacobian)[1], size)
    np.testing.assert_allclose(log_det, expected, rtol=1e-9, atol=1e-9)
    # Perturbed enough to tell the models from elementwise ones, for which much would hold.
    assert np.all(np.count_nonzero(jacobian, axis=(1, 2)) > size)

    single = model.bijection.forward_and_log_det(*data(model))
    np.testing.assert_allclose(single[0], z[::size], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(single[1], log_det[::size], rtol=1e-4, atol=1e-3)


def test_config_is_complete(model, exact, request):
    make, shape, options = CASES[request.node.callspec.params["model"]]
    given = {**options, "input_shape": shape, "seed": 1, "adapt_examples": 9, "name": "mine"}
    for restored in (model, exact):
        assert type(restored) is make
        for name, value in given.items():
            assert getattr(restored, name) == value
    configs = [{**m.get_config(), "dtype": None} for m in (model, exact)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (zoo.NICE, (2,)),
        (zoo.NICE, (1, 3, 1)),
        (zoo.RealNVP, (2,)),
        (zoo.RealNVP, (4, 6, 3)),
        (zoo.NSF, (3,)),
        (zoo.NSF, (4, 6, 1)),
        (zoo.Glow, (5,)),
        (zoo.Glow, (4, 12, 3)),
        (zoo.Jet, (2, 4, 1)),
        (zoo.TarFlow, (2, 4, 1)),
    ],
)
def test_input_shape_is_enough(make, shape):
    model = make(shape)
    assert model.built and model.input_shape == shape
    assert model.bijection.latent_shape == (np.prod(shape),)


@pytest.mark.parametrize(("shape", "batch_norm"), [((3,), False), ((2, 2, 1), True)])
def test_real_nvp_normalises_batches_of_images_by_default(shape, batch_norm):
    model = zoo.RealNVP(shape, depth=1, width=1)
    assert model.batch_norm == batch_norm
    assert batch_norm == any(type(m) is layers.BatchNorm for m in flatten_layers(model))


@pytest.mark.parametrize(
    ("make", "shape", "levels"),
    [
        (zoo.Glow, (5,), 1),
        (zoo.Glow, (6, 4, 1), 1),
        (zoo.Glow, (12, 20, 1), 2),
        (zoo.Glow, (16, 16, 1), 3),
        (zoo.RealNVP, (5,), 1),
        (zoo.RealNVP, (3, 5, 1), 1),
        (zoo.RealNVP, (8, 8, 1), 2),
    ],
)
def test_levels_by_default(make, shape, levels):
    options = {"num_blocks": 1, "batch_norm": False} if make is zoo.RealNVP else {}
    assert make(shape, depth=1, width=1, **options).levels == levels


@pytest.mark.parametrize(
    ("make", "shape", "levels", "fit"),
    [
        (zoo.Glow, (3, 4, 1), None, "none: both must be even"),
        (zoo.Glow, (4, 3, 1), 1, "none: both must be even"),
        (zoo.Glow, (12, 8, 1), 3, r"1\.\.2.*levels=3"),
        (zoo.Glow, (8, 8, 1), 4, r"1\.\.3.*levels=4"),
        (zoo.RealNVP, (3, 4, 1), 2, r"1\.\.1.*levels=2"),
        (zoo.RealNVP, (8, 4, 1), 4, r"1\.\.3.*levels=4"),
        (zoo.Glow, (4,), 2, "1 for vectors.*levels=2"),
        (zoo.RealNVP, (4,), 2, "1 for vectors.*levels=2"),
        (zoo.Glow, (4, 4, 1), 0, "levels=0"),
    ],
)
def test_levels_that_do_not_fit(make, shape, levels, fit):
    with pytest.raises(ValueError, match=fit):
        make(shape, levels=levels)


@pytest.mark.parametrize(
    "options",
    [{"classifier_weight": -1, "num_classes": 2}, {"classifier_weight": np.nan}]
    + [{"classifier_weight": 0.01}]
    + [
        {
            "classifier_weight": 1,
            "num_classes": 2,
            "condition_network": keras.layers.Embedding(2, 3),
        }
    ],
)
def test_classifier_weights_that_do_not_fit(options):
    with pytest.raises(ValueError, match="`classifier_weight` must be.*Received"):
        zoo.Glow((4,), **options)


def test_there_are_no_logits_without_a_classifier():
    with pytest.raises(ValueError, match="classifier_weight=0"):
        zoo.Glow((4,), num_classes=2, **MLP).class_logits(np.zeros((1, 4)), [0])


def test_coupling_and_prior_are_those_asked_for():
    def kinds(model):
        return {type(layer) for layer in flatten_layers(model)}

    affine, additive = (zoo.Glow((4,), coupling=name, **MLP) for name in ("affine", "additive"))
    assert layers.AffineCoupling in kinds(affine) and layers.AffineCoupling not in kinds(additive)
    assert layers.AdditiveCoupling in kinds(additive)
    (bounded,) = {
        layer.scale
        for layer in flatten_layers(zoo.Glow((4,), coupling="bounded_affine", **MLP))
        if isinstance(layer, layers.AffineCoupling)
    }
    assert bounded == "half_sigmoid"
    zero = np.zeros((1, 2))
    for prior, log_prob in (("gaussian", -np.log(2 * np.pi)), ("logistic", -2 * np.log(4))):
        base = zoo.NICE((2,), prior=prior, **NICE).distribution.distribution
        np.testing.assert_allclose(base.log_prob(zero), [log_prob], rtol=1e-6)


def test_bounded_scales_keep_far_samples_finite():
    lost = {}
    for coupling in ("affine", "bounded_affine"):
        keras.utils.set_random_seed(0)
        model = zoo.Glow((4,), depth=4, width=16, coupling=coupling)
        perturb(model, 0.5)
        z = 5 * np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
        lost[coupling] = int(keras.ops.sum(model.data_and_overflow(z)[1]))
    assert lost["affine"] > 10 and lost["bounded_affine"] == 0


@pytest.mark.parametrize(
    ("make", "options"),
    [(zoo.NICE, NICE), (zoo.RealNVP, REAL_NVP), (zoo.Glow, CONV), (zoo.NSF, NSF)],
)
@pytest.mark.parametrize("bits", [None, 3])
def test_images_are_scaled_to_the_unit_interval(make, options, bits):
    model = make((2, 2, 1), bits=bits, **options)
    assert model.bits == (bits or 8)
    low, high = model.bijection.layers[0](np.float32([0, unit(model)]).reshape(2, 1, 1, 1))
    np.testing.assert_allclose(high - low, 1, rtol=1e-6)


def test_real_nvp_penalises_its_weight_norms():
    model = zoo.RealNVP((2, 2, 1), levels=2, **REAL_NVP)
    magnitudes = [weight for weight in model.weights if weight.name == "magnitude"]
    bounds = sum(weight.name == "bound" for weight in model.weights)
    expected = 5e-5 * sum(float(keras.ops.sum(keras.ops.square(m))) for m in magnitudes)
    assert magnitudes and bounds
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    assert not zoo.RealNVP((2,), **MLP).losses


OF_ANY_SIZE = [
    ("NICE", (3,), {}),
    ("RealNVP", (3,), {}),
    ("NSF", (3,), {"dropout": 0.1}),
    ("Glow", (3,), {}),
    ("NICE", (2, 2, 1), {}),
    ("RealNVP", (4, 4, 1), {"levels": 1, "num_blocks": 1}),
    ("NSF", (2, 2, 1), {}),
    ("Glow", (2, 2, 1), {"dequantization": "variational"}),
    ("Jet", (4, 4, 1), {}),
    ("TarFlow", (4, 4, 1), {"num_layers": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "options"), OF_ANY_SIZE)
def test_xla_trains_on_batches_of_any_size(name, shape, options):
    """The last batch of an array is smaller: the number of rows is not known when it is traced."""
    model = getattr(zoo, name)(
        shape, **{"depth": 6, "width": 4, "condition_shape": (2,), **options}
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (13, *shape), "uint8") if model.is_image else rng.normal(size=(13, 3))
    condition = rng.normal(size=(13, 2))
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=True)
    losses = model.fit(x, condition, batch_size=8, epochs=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


ONE_STEP_BY_XLA = """
import json, sys
import numpy as np
from keras_flows import zoo

for name, shape, options in json.loads(sys.argv[1]):
    model = getattr(zoo, name)(shape, depth=2, width=4, **options)
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), "uint8")
    model.compile("sgd", jit_compile=True)
    model.fit(x if model.is_image else x / 256, verbose=0)
"""


@pytest.mark.slow
def test_xla_makes_no_constants_of_weights():
    """Else it would compile each step anew."""
    assert what_xla_reads(ONE_STEP_BY_XLA, json.dumps(OF_ANY_SIZE)) == {"parameter", "resource"}
