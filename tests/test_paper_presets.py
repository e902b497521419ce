"""The presets of the papers' architectures, zoo/*_paper_*: sizes, latent shapes, recipes."""

import json
import math
import pathlib

import keras
import pytest

from keras_flows.layers import MultiScale

ZOO = pathlib.Path(__file__).parents[1] / "zoo"
NAMES = sorted(path.name for path in ZOO.glob("*_paper_*"))


def read(name, file):
    return json.loads((ZOO / name / f"{file}.json").read_text())


def build(name, **changes):
    described = read(name, "config")
    make = keras.saving.get_registered_object(described["registered_name"])
    return make(**{**described["config"], **changes})


# Parameters by the papers' formulas, those that are not trained included.


def nice_count(input_shape, depth, width, num_hidden, **_):
    size = math.prod(input_shape)
    half = size // 2
    assert 2 * half == size
    mlp = (half + 1) * width + (num_hidden - 1) * (width + 1) * width + (width + 1) * half
    return depth * mlp + size


def real_nvp_count(input_shape, levels, depth, width, num_blocks, **_):
    def coupling(n, width, mask):
        """From n channels, and the mask, to shift and scale of n."""
        norms_outside = 3 * n + 2 * n  # offset, mean, variance before; mean, variance after
        first = 9 * (2 * n + mask) * width + width  # of the input and its negative
        skip = width * width + 2 * width  # with magnitude and bias
        block = 3 * width + 9 * width**2 + 3 * width + 9 * width**2 + 2 * width + skip
        last = 3 * width + 2 * n * width + 2 * 2 * n
        return norms_outside + first + skip + num_blocks * block + last + 1

    n, total = input_shape[-1], 0
    for _ in range(levels - 1):
        total += depth * (coupling(n, width, mask=1) + coupling(2 * n, 2 * width, mask=0))
        n, width = 2 * n, 2 * width
    return total + (depth + 1) * coupling(n, width, mask=1)


def glow_count(
    input_shape, levels, depth, width, coupling, num_classes=None, classifier_weight=0, **_
):
    def zero_convolution(n, out):
        return 9 * (n + 1) * out + 2 * out  # the edge bias is one more channel

    n, total = input_shape[-1] * 4, 0
    for level in range(levels):
        mixing = 2 * n + 3 * n**2 + 2 * n  # ActNorm; L, U, P; log s and its sign
        network = zero_convolution(n // 2, width) + width**2 + 2 * width
        network += zero_convolution(width, n if coupling == "affine" else n // 2)
        total += depth * (mixing + network)
        if level < levels - 1:
            total += zero_convolution(n // 2, n)
            n = n // 2 * 4
    total += zero_convolution(0, 2 * n)
    if num_classes is not None:
        total += (num_classes + 2) * 2 * n
        total += (n + 2) * num_classes if classifier_weight else 0
    return total


def nsf_count(input_shape, levels, depth, width, num_blocks, bins, multi_scale, **options):
    assert not multi_scale
    total, n = 0, input_shape[-1]
    for _ in range(levels):
        n *= 4
        mixing = 3 * n**2 + 2 * n  # L, U, P; log s and its sign
        norm = 3 * width  # offset, mean, variance
        network = (n // 2 + 1) * width + num_blocks * 2 * (norm + (9 * width + 1) * width)
        network += 2 * num_blocks * (options["dropout"] > 0)  # what dropout draws by
        network += (width + 1) * n // 2 * (3 * bins - 1)
        total += depth * (2 * n + mixing + network) + mixing
    return total


def jet_trained(input_shape, patch_size, depth, width, num_blocks, **_):
    tokens = math.prod(input_shape[:2]) // patch_size**2
    channels = patch_size**2 * input_shape[-1]
    norm, attention = 2 * width, 4 * (width + 1) * width
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    ends = (channels // 2 + 1) * width + tokens * width + norm + (width + 1) * channels
    return depth * (ends + num_blocks * (2 * norm + attention + mlp))


def jet_count(input_shape, depth, **options):
    """The orders of all values by which they are halved, and back, too."""
    orders = 2 * depth * math.prod(input_shape)
    return jet_trained(input_shape, depth=depth, **options) + orders


def tarflow_trained(input_shape, patch_size, depth, width, num_layers, num_classes=None, **_):
    tokens = math.prod(input_shape[:2]) // patch_size**2
    channels = patch_size**2 * input_shape[-1]
    attention = (width + 1) * 4 * width
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    layer = 2 * 2 * width + attention + mlp
    vectors = (tokens + (num_classes or 0)) * width
    ends = (channels + 1) * width + vectors + (width + 1) * 2 * channels
    return depth * (ends + num_layers * layer)


def tarflow_count(input_shape, patch_size, depth, **options):
    """The orders of tokens, too."""
    trained = tarflow_trained(input_shape, patch_size, depth, **options)
    return trained + depth * math.prod(input_shape[:2]) // patch_size**2


COUNTS = {
    "nice": nice_count,
    "realnvp": real_nvp_count,
    "glow": glow_count,
    "nsf": nsf_count,
    "jet": jet_count,
    "tarflow": tarflow_count,
}


def count(name, **changes):
    """Of the preset; the model's flag that it is adapted is one more."""
    return COUNTS[name.split("_")[0]](**{**read(name, "config")["config"], **changes}) + 1


def latent_shapes(model):
    (levels,) = (each.levels for each in model.bijection.layers if isinstance(each, MultiScale))
    *factored_out, last = (level.latent_shape for level in levels)
    return [(*space, channels // 2) for *space, channels in factored_out] + [last]


def expected_latent_shapes(name):
    """Each squeeze doubles the channels of what goes on; Glow's last level has one more."""
    config = read(name, "config")["config"]
    (height, width, channels), levels = config["input_shape"], config["levels"]
    shapes = [(height >> i, width >> i, channels << i) for i in range(1, levels)]
    squeezes = levels if name.startswith("glow") else levels - 1
    rest = height * width * channels - sum(math.prod(shape) for shape in shapes)
    cells = height >> squeezes, width >> squeezes
    return [*shapes, (*cells, rest // math.prod(cells))]


def test_there_is_a_preset_for_each_model_of_the_papers():
    families = [name.split("_")[0] for name in NAMES]
    assert {name: families.count(name) for name in COUNTS} == {
        "nice": 4,
        "realnvp": 5,
        "glow": 8,
        "nsf": 1,
        "jet": 1,
        "tarflow": 4,
    }


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    assert read(name, "metadata")["parameter_count"] == count(name)


def test_sizes_as_published():
    assert count("nice_paper_mnist") // 10**6 == 19
    assert count("glow_paper_cifar10") // 10**6 == 44
    # Trained, and of L and U without their zeros, 11.8 million, as in the paper's table.
    fixed = sum(8 * (2 * n**2 + n) for n in (12, 48, 192)) + 21 * (6 * 96 + 6) + 1
    assert round((count("nsf_paper_cifar10") - fixed) / 1e6, 1) == 11.8
    # The released code's own, for this configuration and for the larger one that it names.
    jet = read("jet_paper_imagenet64", "config")["config"]
    assert round(jet_trained(**jet) / 1e6, 1) == 207.2
    assert round(jet_trained(**{**jet, "depth": 64, "num_blocks": 5}) / 1e6, 1) == 1019.6
    unconditional, conditional = (
        tarflow_trained(**read(f"tarflow_paper_imagenet64{kind}", "config")["config"])
        for kind in ("", "_conditional")
    )
    assert round(unconditional / 1e6, 1) == 460.1 and round(conditional / 1e6, 1) == 466.3
    assert expected_latent_shapes("glow_paper_cifar10") == [(16, 16, 6), (8, 8, 12), (4, 4, 48)]
    # RealNVP, section 4.1: the last scale has 4x4 cells; on CIFAR-10 there is but one squeeze.
    assert expected_latent_shapes("realnvp_paper_imagenet32")[-1][:2] == (4, 4)
    assert expected_latent_shapes("realnvp_paper_imagenet64")[-1][:2] == (4, 4)
    assert expected_latent_shapes("realnvp_paper_cifar10") == [(16, 16, 6), (16, 16, 6)]


def of_one_kind():
    """Of presets that differ in their size alone, one."""
    size = ("depth", "width", "num_blocks", "num_layers", "num_hidden", "noise")
    kinds = {}
    for name in NAMES:
        config = {"bits": 8, **read(name, "config")["config"]}
        kinds[json.dumps({k: v for k, v in sorted(config.items()) if k not in size})] = name
    return sorted(kinds.values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("tarflow") else name
        for name in of_one_kind()
    ],
)
def test_small_model_of_the_preset_has_what_the_formulas_say(name):
    small = {"width": 4, "depth": 1}
    small |= {"num_blocks": 2} if name.startswith(("realnvp", "nsf")) else {}
    small |= {"num_heads": 2} if name.startswith(("jet", "tarflow")) else {}
    model = build(name, **small)
    assert model.count_params() == count(name, **small)
    if not name.startswith(("nice", "nsf", "jet", "tarflow")):
        assert latent_shapes(model) == expected_latent_shapes(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if "tarflow_paper_imagenet64" not in name],  # which take 6 GB to make
)
def test_parameters_at_full_size(name):
    model = build(name)
    assert model.count_params() == read(name, "metadata")["parameter_count"]
    for key, value in read(name, "config")["config"].items():
        assert getattr(model, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name):
    recipe = read(name, "recipe")
    assert set(recipe) == set(read(NAMES[0], "recipe"))
    optimizer = keras.optimizers.deserialize(recipe["optimizer"])
    described = optimizer.get_config()
    for key, value in recipe["optimizer"]["config"].items():
        assert described[key] == pytest.approx(value)
    assert recipe["dataset"] or name == "nice_paper_tfd"
    metadata = read(name, "metadata")
    assert {"paper", "parameter_count", "notes"} <= metadata.keys() and metadata["notes"]
