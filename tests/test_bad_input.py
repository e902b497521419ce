"""Mistakes end in errors that name the argument or the rule, and what was received."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import contents, perturb, same_weights
from test_flow import small_glow, small_image_flow

from keras_flows import Flow, layers, networks, zoo

IMAGES = np.zeros((4, 2, 2, 1), "uint8")
FLOATS = IMAGES.astype("float32")
VECTORS = np.arange(12, dtype="float32").reshape(4, 3) / 9
LABELS = np.array([0, 1, 2, 1])


@pytest.fixture(scope="module")
def image_flow():
    model = small_image_flow()
    model.compile(run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def vector_flow():
    model = Flow(layers.Chain([layers.DiagonalScaling()]), (3,))
    model.compile(run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def class_flow():
    model = Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3)
    model.compile(run_eagerly=True)
    return model


def dataset(*arrays, batch_size=2):
    data = tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else arrays[0])
    return data.batch(batch_size)


def fails(call, kind, words, received):
    """`call` raises `kind` with `words` before and `received` after "Received"."""
    pattern = f"(?s){re.escape(words)}.*Received.*{re.escape(str(received))}"
    with pytest.raises(kind, match=pattern):
        call()


# Constructors.


@pytest.mark.parametrize(
    ("make", "shape", "options", "words", "received"),
    [
        (zoo.Glow, (6, 7, 1), {}, "Each of the levels must halve", "levels=None"),
        (zoo.Glow, (8, 12, 1), {"levels": 3}, "levels that fit are 1..2", "levels=3"),
        (zoo.RealNVP, (8, 6, 1), {"levels": 3}, "levels that fit are 1..2", "levels=3"),
        (zoo.Glow, (3,), {"levels": 2}, "`levels` must be 1 for vectors", "levels=2"),
        (zoo.Glow, (3,), {"dtype": "float16"}, "`dtype` must keep variables", "float16"),
        (zoo.Glow, (3,), {"levels": 0}, "`levels` must be an integer of at least 1", "levels=0"),
        (zoo.NICE, (3,), {"depth": 0}, "`depth` must be an integer of at least 1", "depth=0"),
        (zoo.RealNVP, (3,), {"depth": -1}, "`depth` must be an integer", "depth=-1"),
        (zoo.Glow, (3,), {"depth": 1.5}, "`depth` must be an integer", "depth=1.5"),
        (zoo.NICE, (3,), {"width": 0}, "`width` must be an integer of at least 1", "width=0"),
        (zoo.RealNVP, (2, 2, 1), {"width": 0}, "`width` must be an integer", "width=0"),
        (zoo.Glow, (3,), {"width": "8"}, "`width` must be an integer", "width='8'"),
        (zoo.NICE, (3,), {"num_hidden": 0}, "`num_hidden` must be", "num_hidden=0"),
        (zoo.RealNVP, (3,), {"num_blocks": 0}, "`num_blocks` must be", "num_blocks=0"),
        (zoo.Glow, (3,), {"coupling": "add"}, "`coupling` must be one of", "coupling='add'"),
        (zoo.NICE, (3,), {"prior": "normal"}, "`prior` must be one of", "prior='normal'"),
        (zoo.NICE, (3,), {"prior": ["gaussian"]}, "`prior` must be one of", "['gaussian']"),
        (zoo.NICE, (3,), {"logit_alpha": 0.1}, "`logit_alpha` is for images", "alpha=0.1"),
        (zoo.Glow, (3,), {"logit_alpha": 0.1}, "`logit_alpha` is for images", "input_shape=(3,)"),
        (
            zoo.NICE,
            (2, 2, 1),
            {"logit_alpha": 0.5},
            "`alpha` must be a number in [0",
            "alpha=0.5",
        ),
        (zoo.NICE, (1,), {}, "must be at least 2", "event shape (1,)"),
        (zoo.RealNVP, (1,), {}, "must be at least 2", "event shape (1,)"),
        (zoo.Glow, (1,), {}, "must be at least 2", "event shape (1,)"),
        (zoo.Glow, (8, 8), {}, "`input_shape` must be (D,) or (height, width, channels)", "(8, 8)"),
        (zoo.Glow, (None, 8, 1), {}, "`input_shape` must be", "(None, 8, 1)"),
        (zoo.Jet, (8,), {}, "`input_shape` must be (height, width, channels): Jet is", "(8,)"),
        (zoo.Jet, (6, 8, 1), {"patch_size": 4}, "those that fit are [2]", "patch_size=4"),
        (zoo.Jet, (9, 9, 2), {"patch_size": 2}, "those that fit are [1, 3, 9]", "patch_size=2"),
        (zoo.Jet, (3, 4, 1), {}, "those that fit are none", "patch_size=None"),
        (zoo.Jet, (4, 4, 1), {"patch_size": 0}, "`patch_size` must be an integer", "patch_size=0"),
        (zoo.Jet, (4, 4, 1), {"num_heads": 3}, "must divide `width`", "num_heads=3"),
        (zoo.Jet, (4, 4, 1), {"depth": 0}, "`depth` must be an integer of at least 1", "depth=0"),
        (zoo.Jet, (4, 4, 1), {"num_blocks": 0}, "`num_blocks` must be", "num_blocks=0"),
        (zoo.Jet, (4, 4, 1), {"max_scale": 0}, "`max_scale` must be a number in (0, inf)", "=0"),
        (zoo.Jet, (4, 4, 1), {"bits": 9}, "`bits` must be an integer in 1..8", "bits=9"),
        (zoo.Jet, (4, 4, 1), {"partitions": "rows"}, "`kinds` must be one or several", "'rows'"),
        (
            zoo.Jet,
            (6, 6, 1),
            {"partitions": ("vstripes",), "patch_size": 2},
            "`kinds` must halve the tokens",
            "grid=(3, 3)",
        ),
        (
            zoo.Jet,
            (4, 4, 1),
            {"condition_shape": (4, 4, 1)},
            "Jet reads conditions of shape (n,) or (tokens, n)",
            "condition_shape=(4, 4, 1)",
        ),
        (zoo.TarFlow, (8,), {}, "`input_shape` must be (height, width, channels): TarFlow", "(8,)"),
        (zoo.TarFlow, (6, 8, 1), {"patch_size": 4}, "those that fit are [1, 2]", "patch_size=4"),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"num_heads": 3},
            "`num_heads` must divide `width`",
            "num_heads=3",
        ),
        (zoo.TarFlow, (4, 4, 1), {"patch_size": 4}, "those that fit are [1, 2]", "patch_size=4"),
        (zoo.TarFlow, (1, 1, 3), {}, "those that fit are none", "patch_size=None"),
        (zoo.TarFlow, (4, 4, 1), {"depth": 0}, "`depth` must be an integer of", "depth=0"),
        (zoo.TarFlow, (4, 4, 1), {"num_layers": 0}, "`num_layers` must be", "num_layers=0"),
        (zoo.TarFlow, (4, 4, 1), {"noise": -0.1}, "`noise` must be a number", "noise=-0.1"),
        (zoo.TarFlow, (4, 4, 1), {"noise": np.nan}, "`noise` must be a number", "noise=nan"),
        (zoo.TarFlow, (4, 4, 1), {"noise": 0.1, "bits": 5}, "all 8 bits only", "bits=5"),
        (zoo.NICE, (4,), {"noise": 0.1}, "`noise` is for images", "noise=0.1, input_shape=(4,)"),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"label_dropout": 0.1},
            "for models with `num_classes` only",
            "label_dropout=0.1",
        ),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"label_dropout": 1, "num_classes": 2},
            "`label_dropout` must be a number in [0, 1)",
            "label_dropout=1",
        ),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"guidance_schedule": "annealed"},
            "`guidance_schedule` must be one of",
            "'annealed'",
        ),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"num_classes": 2, "condition_network": keras.layers.Embedding(2, 3)},
            "`condition_network` is for floats",
            "num_classes=2",
        ),
        (
            zoo.TarFlow,
            (4, 4, 1),
            {"condition_shape": (4, 4, 1)},
            "TarFlow reads conditions of shape (n,)",
            "condition_shape=(4, 4, 1)",
        ),
        (zoo.NICE, (0,), {}, "`input_shape` must be", "(0,)"),
        (zoo.NICE, 784, {}, "`input_shape` must be", "784"),
        (zoo.Glow, (2, 2, 1), {"bits": 0}, "`bits` must be an integer in 1..8", "bits=0"),
        (zoo.NICE, (2, 2, 1), {"bits": 9}, "`bits` must be an integer in 1..8", "bits=9"),
        (zoo.RealNVP, (3,), {"bits": 8}, "is for images only", "bits=8"),
        (zoo.Jet, (4, 4, 1), {"bits": 0}, "`bits` must be an integer in 1..8", "bits=0"),
        (zoo.Glow, (2, 2, 1), {"bits": "8"}, "`bits` must be an integer in 1..8", "bits='8'"),
        (zoo.TarFlow, (4, 4, 1), {"bits": True}, "`bits` must be an integer", "bits=True"),
        (zoo.NICE, (2, 2, 1), {"bits": 5.0}, "`bits` must be an integer in 1..8", "bits=5.0"),
        (
            zoo.RealNVP,
            (2, 2, 1),
            {"noise": 0.1},
            "`noise` needs logit_alpha=None",
            "noise=0.1, logit_alpha=0.05",
        ),
        (
            zoo.Glow,
            (2, 2, 1),
            {"noise": 0.1, "logit_alpha": 1e-6},
            "`noise` needs logit_alpha=None",
            "noise=0.1",
        ),
        (zoo.Glow, (3,), {"num_classes": 0}, "`num_classes` must be", "num_classes=0"),
        (zoo.Glow, (3,), {"adapt_examples": 0}, "`adapt_examples` must be", "adapt_examples=0"),
        (zoo.Glow, (3,), {"seed": -1}, "`seed` must be an integer of at least 0", "seed=-1"),
        (zoo.Glow, (3,), {"seed": 2**31}, "`seed` must be", f"seed={2**31}"),
        (zoo.NICE, (2, 2, 1), {"bounds": [None]}, "`bounds` is for vectors only", "(2, 2, 1)"),
        (
            zoo.Glow,
            (2, 2, 1),
            {"integer_columns": [0]},
            "`integer_columns` is for vectors only",
            "integer_columns=[0]",
        ),
    ],
)
def test_arguments_of_models(make, shape, options, words, received):
    fails(lambda: make(shape, **options), ValueError, words, received)


PAIRS = "`bounds` must have a pair of numbers"
HALF_OPEN = "for one that is bounded on one side only give None, and as data its logarithm"
IN_ORDER = "`bounds` must have finite pairs (low, high), low below high in float32"
WHOLE = "`bounds` must have whole numbers for `integer_columns`, in magnitude below 2^22 in float32"
INDICES = "`integer_columns` must be a list of different integers in 0..1"


@pytest.mark.parametrize(
    ("bounds", "integer_columns", "words", "received"),
    [
        ([(0, 1)], None, "`bounds` must be a list of 2", "bounds=[(0, 1)]"),
        ([None] * 3, None, "`bounds` must be a list of 2", "bounds=[None, None, None]"),
        ({0: (0, 1), 1: None}, None, "`bounds` must be a list of 2", "bounds={0"),
        ((0, 1), None, PAIRS, "bounds[0]=0"),
        ([None, (0, 1, 2)], None, PAIRS, "bounds[1]=(0, 1, 2)"),
        ([None, (0, "1")], None, PAIRS, "bounds[1]=(0, '1')"),
        ([None, (False, True)], None, PAIRS, "bounds[1]=(False, True)"),
        ([(0, None), None], None, HALF_OPEN, "bounds[0]=(0, None)"),
        ([None, (None, 1)], None, HALF_OPEN, "bounds[1]=(None, 1)"),
        ([(0, np.inf), None], None, HALF_OPEN, "bounds[0]=(0, inf)"),
        ([(1, 0), None], None, IN_ORDER, "bounds=[[1.0, 0.0], None]"),
        ([None, (1, 1)], None, IN_ORDER, "[1.0, 1.0]"),
        ([None, (1, 1)], [1], IN_ORDER, "[1.0, 1.0]"),
        ([(0, np.nan), None], None, IN_ORDER, "nan"),
        ([(np.nan, 0), None], None, IN_ORDER, "nan"),
        ([(-np.inf, np.inf), None], None, IN_ORDER, "inf"),
        ([(0, 1e39), None], None, IN_ORDER, "1e+39"),
        ([(-3e38, 3e38), None], None, IN_ORDER, "3e+38"),  # whose range is infinite in float32
        ([(2**25, 2**25 + 1), None], None, IN_ORDER, "33554433.0"),  # which it does not tell apart
        ([(0, 1.5), None], [0], WHOLE, "[0.0, 1.5]"),
        ([None, (0, 2**22)], [1], WHOLE, "integer_columns=[1]"),
        (None, [2], INDICES, "[2]"),
        (None, [-1], INDICES, "[-1]"),
        (None, [1, 1], INDICES, "[1, 1]"),
        (None, [0.0], INDICES, "[0.0]"),
        (None, [True], INDICES, "[True]"),
        (None, 1, INDICES, "integer_columns=1"),
        (None, "a", INDICES, "'a'"),
    ],
)
def test_columns_of_vectors(bounds, integer_columns, words, received):
    for make in (
        lambda **options: zoo.NICE((2,), **options),
        lambda **options: Flow(layers.DiagonalScaling(), (2,), **options),
    ):
        fails(
            lambda make=make: make(bounds=bounds, integer_columns=integer_columns),
            ValueError,
            words,
            received,
        )


@pytest.mark.parametrize(
    ("make", "shape", "more"),
    [
        (zoo.NICE, (4, 4, 2), {"num_hidden": 1}),
        (zoo.RealNVP, (4, 4, 2), {"levels": 2, "num_blocks": 1}),
        (zoo.RealNVP, (3,), {"num_blocks": 1}),
        (zoo.Glow, (4, 4, 2), {"levels": 1}),
        (zoo.NSF, (3,), {"num_blocks": 1, "bins": 4}),
        (zoo.Jet, (4, 4, 2), {"patch_size": 2, "num_blocks": 1, "num_heads": 2}),
        (zoo.TarFlow, (4, 4, 2), {"patch_size": 2, "num_layers": 1, "num_heads": 2}),
    ],
)
def test_integers_may_be_numpy_s(make, shape, more, tmp_path):
    """As the shapes and the largest labels of arrays are, and what a search draws."""
    integers = {"depth": 2, "width": 4, "num_classes": 3, "seed": 0, "adapt_examples": 8, **more}
    integers = {name: np.int64(value) for name, value in integers.items()}
    model = make(tuple(np.int64(shape)), **integers)
    plain = make(shape, **{name: int(value) for name, value in integers.items()})
    assert [w.shape for w in model.weights] == [w.shape for w in plain.weights]
    model.save(tmp_path / "model.keras")
    assert same_weights(keras.models.load_model(tmp_path / "model.keras"), model)


def test_unknown_options():
    with pytest.raises(ValueError, match="(?s)Glow.*'wdth': 3"):
        zoo.Glow((3,), wdth=3)
    with pytest.raises(TypeError, match="positional"):
        zoo.Glow((3,), 2)


def test_bijections_that_make_no_flow():
    dense = keras.layers.Dense(3, name="dense")
    fails(lambda: Flow(dense, (3,)), TypeError, "`bijection` must be a Bijection", "Dense")
    fails(
        lambda: Flow(layers.ActNorm(), (2, 2, 1)),
        ValueError,
        "`bijection` must map data of shape (2, 2, 1) to flat latents (batch, 4)",
        "(None, 2, 2, 1)",
    )


@pytest.mark.parametrize(
    ("make", "shape", "words", "received"),
    [
        (layers.Squeeze, (3, 4, 1), "even height and width", "(None, 3, 4, 1)"),
        (layers.Squeeze, (4,), "needs images", "(None, 4)"),
        (lambda: layers.AffineCoupling(None), (1,), "at least 2", "(1,)"),
        (
            lambda: layers.AdditiveCoupling(networks.ConvNet(2)),
            (4, 4, 1),
            "at least 2",
            "(4, 4, 1)",
        ),
        (
            lambda: layers.AdditiveCoupling(None, partition="checkerboard"),
            (4,),
            "is for images",
            "(4,)",
        ),
        (
            lambda: layers.MultiScale([layers.ActNorm(), layers.ActNorm()]),
            (4, 4, 3),
            "must be even",
            "(None, 4, 4, 3)",
        ),
        (
            lambda: layers.AdditiveCoupling(None, output_layer=keras.layers.Dense(5)),
            (4,),
            "`output_layer` must map the network's features to 2 channels",
            "(None, 5)",
        ),
        (lambda: layers.Permute([1, 0]), (3,), "`permutation` must have one index", "2"),
    ],
)
def test_shapes_that_layers_cannot_take(make, shape, words, received):
    fails(lambda: make().build((None, *shape)), ValueError, words, received)


@pytest.mark.parametrize(
    ("make", "kind", "words", "received"),
    [
        (
            lambda: layers.AffineCoupling(None, partition="third"),
            ValueError,
            "`partition` must be one of",
            "partition='third'",
        ),
        (
            lambda: layers.AffineCoupling(None, scale="relu"),
            ValueError,
            "`scale` must be one of",
            "scale='relu'",
        ),
        (lambda: layers.AffineCoupling("mlp"), TypeError, "`network` must be", "network='mlp'"),
        (lambda: layers.Squeeze(order="row"), ValueError, "`order` must be", "order='row'"),
        (lambda: layers.Permute([0, 0]), ValueError, "`permutation` must hold", "[0, 0]"),
        (
            lambda: layers.Logit(0.5),
            ValueError,
            "`alpha` must be a number in [0",
            "alpha=0.5",
        ),
        (lambda: layers.Rescale(0), ValueError, "`scale` must not be zero", "scale=0"),
        (lambda: layers.Rescale(np.nan), ValueError, "`scale` must be a number", "scale=nan"),
        (lambda: layers.Rescale(1, "2"), ValueError, "`offset` must be a number", "offset='2'"),
        (lambda: layers.BatchNorm(epsilon=0), ValueError, "`epsilon` must be", "epsilon=0"),
        (
            lambda: layers.SplineCoupling(None, tail_bound="3"),
            ValueError,
            "`tail_bound` must be a number in (0, inf)",
            "tail_bound='3'",
        ),
        (lambda: networks.ResidualMLP(4, dropout=1), ValueError, "`dropout` must be", "dropout=1"),
        (
            lambda: layers.LearnedPrior(num_classes=0),
            ValueError,
            "`num_classes` must be an integer of at least 1",
            "num_classes=0",
        ),
        (
            lambda: layers.CausalAffine(networks.CausalTransformer(4), condition_shape=4),
            ValueError,
            "`condition_shape` must be (n,)",
            "condition_shape=4",
        ),
        (
            lambda: networks.ScaledConv2D(4, 2),
            ValueError,
            "`kernel_size` must be odd",
            "kernel_size=2",
        ),
        (
            lambda: networks.ScaledConv2D(4, (3, 3)),
            ValueError,
            "`kernel_size` must be an integer of at least 1",
            "kernel_size=(3, 3)",
        ),
        (
            lambda: networks.WeightNormConv2D(0, 3),
            ValueError,
            "`filters` must be an integer of at least 1",
            "filters=0",
        ),
        (lambda: layers.BatchNorm(momentum=2), ValueError, "`momentum` must be", "momentum=2"),
        (lambda: layers.Chain([]), TypeError, "`layers` must be a list", "layers=[]"),
        (
            lambda: layers.MultiScale([keras.layers.Dense(2, name="dense")]),
            TypeError,
            "`levels` must be a list",
            "Dense",
        ),
        (lambda: networks.MLP(0), ValueError, "`width` must be", "width=0"),
        (lambda: networks.ConvNet(-1), ValueError, "`width` must be", "width=-1"),
        (lambda: networks.ResNet(2, 0), ValueError, "`num_blocks` must be", "num_blocks=0"),
    ],
)
def test_arguments_of_layers(make, kind, words, received):
    fails(make, kind, words, received)


# Data.

METHODS = ("log_prob", "encode", "__call__", "predict", "evaluate", "adapt", "fit")
CHECK_VALUES = [name for name in METHODS if name != "evaluate"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "kind", "received"),
    [
        (IMAGES[0], ValueError, "(2, 2, 1)"),
        (np.zeros((4, 2, 2, 3), "uint8"), ValueError, "(4, 2, 2, 3)"),
        (np.zeros((4, 2, 4, 1), "uint8"), ValueError, "(4, 2, 4, 1)"),
        (IMAGES > 0, TypeError, "bool"),
        (IMAGES.astype("complex64"), TypeError, "complex64"),
    ],
)
def test_shapes_and_dtypes_of_data(method, x, kind, received, image_flow):
    words = {ValueError: "in batches of shape (batch, 2, 2, 1)", TypeError: "must be uint8 images"}
    fails(lambda: getattr(image_flow, method)(x), kind, words[kind], received)


@pytest.mark.parametrize("method", [*sorted({*METHODS} - {"__call__"}), "train_on_batch"])
def test_masked_values(method, vector_flow):
    masked = np.ma.masked_equal(VECTORS, 0)
    fails(lambda: getattr(vector_flow, method)(masked), ValueError, "no masked values", "1 of them")
    vector_flow.log_prob(np.ma.masked_equal(VECTORS, 77))  # none is


def test_masked_latents(vector_flow):
    masked = np.ma.masked_equal(np.eye(3), 0)
    words = "Latents must have no masked values"
    fails(lambda: vector_flow.decode(masked), ValueError, words, "6 of them")


def test_masked_conditions():
    model = zoo.NICE((3,), depth=1, width=4, condition_shape=(3,))
    model.compile()
    model.adapt(VECTORS, VECTORS)
    masked = np.ma.masked_equal(VECTORS, 0)
    for refused in (
        lambda: model.fit(VECTORS, masked, verbose=0),
        lambda: model.log_prob(VECTORS, condition=masked),
    ):
        fails(refused, ValueError, "Condition must have no masked values", "1 of them")


def test_arrays_that_keras_would_round():
    model = zoo.NICE((3,), depth=1, width=4, dtype="float64", condition_shape=(3,))
    model.compile(run_eagerly=True)
    x, rounded = VECTORS / np.float64(3), VECTORS
    model.adapt(x, x)
    for refused in (
        lambda: model.fit(x, rounded, verbose=0),
        lambda: model.fit(rounded, x, verbose=0),
        lambda: model.fit(rounded, rounded, validation_data=(x, rounded), verbose=0),
        lambda: model.evaluate(x, rounded, verbose=0),
    ):
        fails(refused, ValueError, "Keras rounds arrays to its `floatx`, float32", "float64")
    model.fit(dataset(x, x), verbose=0)
    expected = -np.mean(model.log_prob(x, condition=x))
    assert model.evaluate(dataset(x, x), verbose=0)[0] == pytest.approx(expected, rel=1e-7)
    keras.config.set_floatx("float64")
    try:
        model.fit(x, x, verbose=0)
        expected = -np.mean(model.log_prob(x, condition=x))
        assert model.evaluate(x, x, verbose=0)[0] == pytest.approx(expected, rel=1e-7)
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("method", ["predict", "evaluate", "adapt", "fit"])
def test_specs_of_datasets(method, image_flow):
    call = getattr(image_flow, method)
    for x, received in ((IMAGES[..., 0], "(None, 2, 2)"), (IMAGES[:, :1], "(None, 1, 2, 1)")):
        fails(lambda x=x: call(dataset(x)), ValueError, "(batch, 2, 2, 1)", received)
    unbatched = tf.data.Dataset.from_tensor_slices(IMAGES)
    fails(lambda: call(unbatched), ValueError, "in batches of shape", "(2, 2, 1)")
    fails(lambda: call(dataset(IMAGES > 0)), TypeError, "must be uint8 images", "bool")
    # As TFDS itself has them.
    named = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS}).batch(2)
    fails(lambda: call(named), TypeError, "elements x or (x, condition)", "'image'")


@pytest.mark.parametrize("method", CHECK_VALUES)
@pytest.mark.parametrize(
    ("x", "received"),
    [
        (FLOATS + 0.25, r"[0.25, 0.25]. Images scaled to [0, 1] have lost"),
        (FLOATS + 256, "float32 values in [256.0, 256.0]"),
        (IMAGES.astype("int32") - 1, "int32 values in [-1, -1]"),
        (FLOATS + 7.5, "float32 values in [7.5, 7.5]"),
        (FLOATS + np.nan, "NaN"),
    ],
)
def test_values_of_images(method, x, received, image_flow):
    words = "Data must be finite" if received == "NaN" else "whole numbers in 0..255"
    fails(lambda: getattr(image_flow, method)(x), ValueError, words, received)


@pytest.mark.parametrize("method", ["log_prob", "encode", "__call__"])
@pytest.mark.parametrize(
    ("x", "received"),
    [
        ((IMAGES, LABELS), "tuple"),
        ([IMAGES[0], IMAGES[0, :1]], "list"),
        (tf.RaggedTensor.from_tensor(IMAGES, lengths=[2, 2, 1, 2]), "RaggedTensor"),
    ],
)
def test_data_that_is_no_tensor(method, x, received, image_flow):
    words = "as an argument of its own, `model(x, condition=y)`"
    fails(lambda: getattr(image_flow, method)(x), TypeError, words, received)


@pytest.mark.parametrize("method", ["predict", "evaluate", "adapt", "fit"])
def test_ragged_datasets(method, image_flow):
    ragged = tf.RaggedTensor.from_tensor(IMAGES, lengths=[2, 2, 1, 2])
    fails(
        lambda: getattr(image_flow, method)(dataset(ragged)),
        TypeError,
        "Data must be one tensor: resize images before they are batched",
        "RaggedTensorSpec",
    )


def test_images_by_other_conventions_are_told_a_way(image_flow):
    """Channels first, and 16 bits; what a mere wrong shape or value is told, has no such end."""
    model = Flow(layers.Flatten(), (4, 6, 3))
    for images in (np.zeros((2, 3, 4, 6), "uint8"), dataset(np.zeros((2, 3, 4, 6), "uint8"))):
        with pytest.raises(ValueError, match=r"3, 4, 6\). Channels come last.*moveaxis\(x, 1, -1"):
            model.evaluate(images)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 3, 6\)$"):
        model.log_prob(np.zeros((2, 4, 3, 6), "uint8"))
    for dtype in ("uint16", "int32", "float32"):
        with pytest.raises(ValueError, match=r"Of 16-bit images, .*x // 256.*uint8"):
            image_flow.log_prob(IMAGES.astype(dtype) + 256)
    with pytest.raises(ValueError, match=r"\[65536, 65536\]$"):
        image_flow.log_prob(IMAGES.astype("int32") + 2**16)


@pytest.fixture(scope="module")
def traced_flow():
    model = small_image_flow()
    model.compile()
    model.adapt(FLOATS)  # or `fit` looks at all of them before
    return model


@pytest.mark.parametrize("method", ["predict", "evaluate", "fit"])
@pytest.mark.parametrize("value", [0.25, -1.0, 256.0, np.nan])
def test_values_of_images_in_a_graph(method, value, traced_flow):
    """Which are known when it runs: those of `fit` beyond the first, and all of the others."""
    before = traced_flow.get_weights()
    x = FLOATS.copy()
    x[-1, 0, 0, 0] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match="whole numbers in 0..255"):
        getattr(traced_flow, method)(x, verbose=0)
    for weight, same in zip(traced_flow.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("method", CHECK_VALUES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_of_vectors(method, value, vector_flow):
    x = VECTORS.astype("float64")  # in which 1e39 is finite, and in the model's float32 not
    x[0, 2] = value
    fails(lambda: getattr(vector_flow, method)(x), ValueError, "Data must be finite", "NaN or inf")


@pytest.mark.parametrize(
    ("refused", "received"),
    [
        (
            lambda model, x: model.fit(x, sample_weight=np.arange(500.0)),
            "ndarray of shape (500,), fl",
        ),
        (lambda model, x: model.fit(x, sample_weight=[*range(500)]), "[0, 1, 2, 3, 4, 5, 6, 7"),
        (lambda model, x: model.sample(x), "ndarray of shape (500, 3), float64"),
        (lambda model, x: zoo.NICE(x), "ndarray of shape (500, 3), float64"),
        (lambda model, x: Flow.from_preset(x), "ndarray of shape (500, 3), float64"),
        (lambda model, x: model.log_prob(np.where(x > 17, np.inf, x)), "inf at [7, 2], and 1,4"),
        (lambda model, x: model.log_prob(x, np.arange(500) // 2), "3 at [6], and 493 more"),
    ],
)
def test_arrays_are_not_printed_whole(refused, received, class_flow):
    x = np.arange(1500).reshape(500, 3) - 5.0
    with pytest.raises(ValueError, match="Received: ") as error:
        refused(class_flow, x)
    assert received in str(error.value) and len(str(error.value)) < 1600


# Models with statistics, their data, and what the second batch breaks.


def bad_vectors():
    x = np.random.default_rng(0).normal(size=(8, 3))
    x[6, 1] = 1e39  # infinite in float32
    return Flow(layers.Chain([layers.BatchNorm(), layers.DiagonalScaling()]), (3,)), (x,), "finite"


def bad_images():
    x = np.full((8, 2, 2, 1), 7.0)
    x[6] = 0.5
    chain = layers.Chain([layers.Flatten(), layers.BatchNorm(), layers.DiagonalScaling()])
    return Flow(chain, (2, 2, 1), seed=1), (x,), "whole numbers in 0..255"


def bad_labels():
    flow = Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3)
    x = np.random.default_rng(0).normal(size=(8, 3))
    return flow, (x, np.array([0, 1, 2, 0, 1, 2, 3, 0])), "must be in 0..2"


def bad_features():
    """The condition's."""
    flow = Flow(layers.LearnedPrior(condition_shape=(2,)), (3,), condition_shape=(2,))
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(8, 2))
    condition[6, 1] = np.nan
    return flow, (rng.normal(size=(8, 3)), condition), "`condition` must be finite"


def bad_columns():
    x = np.random.default_rng(0).integers(0, 2, (8, 3)).astype("float32")
    x[6] = 0.25, 0.5, 0
    flow = Flow(layers.DiagonalScaling(), (3,), bounds=[(0, 1)] * 3, integer_columns=[1], seed=1)
    return flow, (x,), "must hold whole numbers"


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "make",
    [
        bad_vectors,
        *(pytest.param(make, marks=SLOW) for make in (bad_images, bad_columns, bad_features)),
    ],
)
def test_a_bad_batch_is_refused_by_validation(make):
    """Else `val_loss` is NaN, and early stopping takes the first epoch for the best."""
    model, data, rule = make()
    model.compile("adam")
    good, bad = ([each[rows] for each in data] for rows in (slice(4), slice(4, 8)))
    model.adapt(*good)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        model.evaluate(dataset(*bad, batch_size=4), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        model.fit(*good, validation_data=dataset(*bad, batch_size=4), verbose=0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (bad_vectors, {}),
        pytest.param(bad_vectors, {"steps_per_execution": 2}, marks=SLOW),
        pytest.param(bad_vectors, {"gradient_accumulation_steps": 2}, marks=SLOW),
        pytest.param(bad_images, {}, marks=SLOW),
        pytest.param(bad_columns, {}, marks=SLOW),
        pytest.param(bad_labels, {}, marks=SLOW),
        pytest.param(bad_features, {}, marks=SLOW),
    ],
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_bad_batch_is_refused_before_it_is_applied(make, options, jit_compile):
    """Weights, averages and the optimizer's state are as if it had not come."""
    accumulation = {name: value for name, value in options.items() if "accumulation" in name}
    options = {name: value for name, value in options.items() if name not in accumulation}
    variables = []
    for count in (8, 4):  # the second batch is bad; without it
        model, data, rule = make()
        perturb(model)
        optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1, **accumulation)
        model.compile(optimizer, jit_compile=jit_compile, **options)
        model.adapt(*(each[:4] for each in data))
        batches = dataset(*(each[:count] for each in data), batch_size=4)
        if count == 8:
            with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
                model.fit(batches, verbose=0)
        else:
            model.fit(batches, verbose=0)
        variables.append([v.numpy() for v in [*model.weights, *optimizer.variables]])
    for value, expected in zip(*variables, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(model.fit(batches, verbose=0).history["loss"]).all()

    model.seed += 1  # of which it makes a new graph
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        model.fit(dataset(*data, batch_size=4), verbose=0)


def test_what_fit_cannot_read_again(vector_flow):
    for x in (iter(dataset(VECTORS)), (x for x in [VECTORS])):
        fails(lambda x=x: vector_flow.fit(x), TypeError, "more than once", type(x).__name__)
    fails(lambda: vector_flow.fit([[0.0]]), TypeError, "tf.data.Dataset, an array", "list")
    with pytest.raises(ValueError, match="no examples"):
        vector_flow.fit(dataset(VECTORS).take(0))


def test_losses_metrics_and_weights_of_examples(vector_flow):
    model = Flow(layers.DiagonalScaling(), (3,))
    for name in ("loss", "metrics"):
        fails(lambda name=name: model.compile(**{name: "mse"}), ValueError, name, f"{name}='mse'")
    weighted = dataset(VECTORS, LABELS, np.ones(4))
    fails(lambda: vector_flow.fit(weighted), ValueError, "no sample weights", "sample_weight")


# Latents, labels, samples.


@pytest.mark.parametrize(
    ("z", "kind", "words", "received"),
    [
        (np.zeros((2, 3)), ValueError, "Latents must have shape (batch, 4)", "(2, 3)"),
        (np.zeros(4), ValueError, "(batch, 4)", "(4,)"),
        (np.zeros((2, 2, 2, 1)), ValueError, "(batch, 4)", "(2, 2, 2, 1)"),
        (np.full((1, 4), np.nan), ValueError, "Latents must be finite", "NaN"),
        (np.full((1, 4), np.inf), ValueError, "Latents must be finite", "infinite"),
        (np.full((1, 4), "a"), TypeError, "Latents must be floating-point", "string"),
        (np.zeros((1, 4), "complex64"), TypeError, "Latents must be floating", "complex64"),
    ],
)
def test_latents(z, kind, words, received, image_flow):
    fails(lambda: image_flow.decode(z), kind, words, received)


@pytest.mark.parametrize(
    ("labels", "words", "received"),
    [
        (None, "num_classes=3 and needs `condition`", "none"),
        ([0, 1, 2, 3], "must be in 0..2, as num_classes=3", "3"),
        ([0, 1, 2, -1], "must be in 0..2", "-1"),
        ([0.0, 1.0, 2.0, 1.0], "must be integers of shape (batch,)", "float"),
        ([[0, 1, 2, 1]] * 4, "must be integers of shape (batch,)", "(4, 4)"),
        ([0, 1], "one row for each of 4 examples", "2"),
        (np.eye(3)[LABELS], "must be integers of shape (batch,)", ", 3). Of one-hot labels, as of"),
        (np.ones((4, 1)), "must be integers of shape (batch,)", "). Cast them to int32; of"),
    ],
)
def test_labels(labels, words, received, class_flow):
    calls = [
        lambda: class_flow.log_prob(VECTORS, condition=labels),
        lambda: class_flow.encode(VECTORS, condition=labels),
        lambda: class_flow.decode(VECTORS, condition=labels),
        lambda: class_flow.sample(4, condition=labels),
        lambda: class_flow(VECTORS, condition=labels),
    ]
    if labels is None or len(labels) == 4:
        data = dataset(VECTORS) if labels is None else dataset(VECTORS, np.array(labels))
        received = re.sub(r"\(4, 4\)", "(", received)  # of a batch
        calls += [
            lambda: class_flow.fit(data, verbose=0),
            lambda: class_flow.evaluate(data, verbose=0),
            lambda: class_flow.predict(data, verbose=0),
            lambda: class_flow.adapt(data),
        ]
    for call in calls:
        fails(call, ValueError, words, received)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("make", [zoo.TarFlow, zoo.NICE], ids=lambda make: make.__name__)
def test_labels_of_every_integer(make, dtype):
    small = {"depth": 1, "width": 4, "num_classes": 3}
    model = make((2, 2, 1), **small)
    model.compile(run_eagerly=True)
    labels = LABELS.astype(dtype)
    model.fit(IMAGES, labels, verbose=0)
    model.fit(dataset(IMAGES, labels), verbose=0)
    np.testing.assert_array_equal(
        model.log_prob(IMAGES, condition=labels), model.log_prob(IMAGES, condition=LABELS)
    )
    largest = np.full(4, np.iinfo(dtype).max, dtype)
    fails(lambda: model.log_prob(IMAGES, condition=largest), ValueError, "in 0..2", largest[0])


def test_labels_of_fewer_bits_than_classes():
    model = Flow(layers.LearnedPrior(num_classes=300), (3,), num_classes=300)
    assert np.isfinite(model.log_prob(VECTORS, condition=np.uint8(LABELS + 200))).all()


def test_labels_of_either_rank_in_turn():
    model = Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3)
    model.compile(keras.optimizers.SGD(0.0))
    losses = [
        method(VECTORS, labels, verbose=0)
        for method in (model.evaluate, lambda *args, **kw: model.fit(*args, **kw).history["loss"])
        for labels in (LABELS, LABELS[:, None], LABELS)
    ]
    for loss in losses:
        assert np.ravel(loss)[0] == pytest.approx(np.ravel(losses[0])[0], rel=1e-6)


def test_labels_are_checked_in_graphs():
    model = Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3, adapt_examples=2)
    model.compile()
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in 0..2, as num_classes=3"):
        model.fit(dataset(VECTORS, np.array([0, 1, 2, 3])), verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "`n` must be an integer of at least 1"),
        ({"n": -2}, "`n` must be an integer of at least 1"),
        ({"n": 2.5}, "`n` must be an integer of at least 1"),
        ({"temperature": -0.1}, "`temperature` must be a number in [0, inf)"),
        ({"temperature": float("nan")}, "`temperature` must be a number in [0, inf)"),
        ({"temperature": float("inf")}, "`temperature` must be a number in [0, inf)"),
        ({"temperature": "hot"}, "`temperature` must be a number in [0, inf)"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
        ({"seed": 0.5}, "`seed` must be an integer of at least 0"),
        ({"seed": 2**31}, "`seed` must be an integer of at least 0 and below 2^31"),
    ],
)
def test_arguments_of_sample(options, words, vector_flow):
    ((name, value),) = options.items()
    fails(lambda: vector_flow.sample(**{"n": 2, **options}), ValueError, words, f"{name}={value!r}")
    if name == "seed":
        fails(lambda: vector_flow.log_prob(VECTORS, **options), ValueError, words, f"seed={value}")


# The order of things, and files.


ADAPTED = "log_prob encode decode evaluate predict train_on_batch test_on_batch predict_on_batch"


@pytest.mark.parametrize("method", ADAPTED.split())
def test_methods_before_adapt(method):
    with pytest.raises(ValueError, match=f"Glow.*{method}.* adapted"):
        getattr(small_glow(), method)(VECTORS)


def test_sample_and_export_before_adapt(tmp_path):
    with pytest.raises(ValueError, match=r"Glow\.sample.* adapted"):
        small_glow().sample(1)
    with pytest.raises(ValueError, match=r"Glow\.export.* adapted"):
        small_glow().export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_failed_fit_changes_nothing():
    model = small_glow()
    model.compile(run_eagerly=True)
    before = small_glow()
    for x in (VECTORS[:, :2], VECTORS + np.nan, VECTORS > 0, iter([VECTORS])):
        with pytest.raises((ValueError, TypeError)):
            model.fit(x, verbose=0)
    assert not model.adapted
    assert same_weights(model, before)


def test_export_overwrites_nothing(tmp_path, vector_flow):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    vector_flow.export(tmp_path / "model")
    before = contents(tmp_path)
    for name in ("folder", "file", "model"):
        path = tmp_path / name
        fails(lambda path=path: vector_flow.export(path), FileExistsError, "new or empty", path)
    with pytest.raises(OSError, match="file"):
        vector_flow.export(tmp_path / "file/model")
    url = "gs://bucket/model"
    for method in (vector_flow.export, vector_flow.save_to_preset):
        fails(lambda m=method: m(url), ValueError, "of this machine's file system", url)
    assert contents(tmp_path) == before


def test_a_failed_export_leaves_nothing(tmp_path, vector_flow, monkeypatch):
    def fail(module, path, **kwargs):
        with open(f"{path}/half", "w") as file:
            file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "model"):
        with pytest.raises(OSError, match="disk full"):
            vector_flow.export(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
