"""Each pretrained preset loads, gives a few test examples what its card says, and draws.

`tools/evaluate.py --all` evaluates them on their whole test sets.
"""

import json
import math
import pathlib

import numpy as np
import pytest

from keras_flows import Flow, data, dequantization, presets

PRETRAINED = sorted(name for name, metadata in Flow.presets.items() if "weights" in metadata)
LARGE = (
    "glow_cifar10_small",
    "glow_mnist_variational",
    "jet_cifar10_small",
    "nsf_cifar10_small",
    "realnvp_cifar10_small",
    "realnvp_mnist",
    "tarflow_cifar10_small",
    "tarflow_mnist_labels",
)
IMAGES = pathlib.Path(__file__).with_name("few_images.npz")


def examples(name, data_dir):
    """A few test examples of a dataset, with their labels."""
    with np.load(IMAGES) as images:
        if name in images:
            return images[name], images[f"{name}_label"].astype("int32")
    batches = data.load(name, split="test", batch_size=48, data_dir=data_dir, labels=True)
    return [tensor.numpy() for tensor in next(iter(batches))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in PRETRAINED],
)
def test_pretrained(name, data_dir):
    model = Flow.from_preset(name)
    here = Flow.presets[name]["results"]
    x, labels = examples(here["dataset"], data_dir)
    labels = labels if model.is_conditional else None
    rng = np.random.default_rng(0)

    z, bound = model._bound(x, labels, dequantization.EVALUATE, 0)
    first = slice(32)  # without noise, too: then it is what it was when it was published
    centres = model.log_prob(x[first], None if labels is None else labels[first])
    bits, first_bits = (-each.numpy() / (model.size * math.log(2)) for each in (bound, centres))
    standard_error = bits.std() / math.sqrt(len(bits))
    metric = "noisy_bits_per_dim" if model.noise else "bits_per_dim"
    assert abs(bits.mean() - here[metric]) < 4 * standard_error
    assert abs(first_bits.mean() - here["first_32_bits_per_dim"]) < 1e-3
    # Latents are those of the prior: independent, of deviation 1 for the Gaussian one.
    if model.prior == "gaussian":
        assert 0.8 < z.numpy().std() < 1.2

    drawn = model.data_of(rng.normal(size=z.shape).astype("float32"), labels).numpy()
    assert drawn.shape == x.shape and drawn.dtype == x.dtype
    assert np.isfinite(drawn).all()
    # An image's brightness is one draw, whatever its number of pixels.
    drawn_means, means = (a.reshape(len(a), -1).mean(axis=1) for a in (drawn, x))
    standard_error = math.hypot(drawn_means.std(), means.std()) / math.sqrt(len(x))
    assert abs(drawn_means.mean() - means.mean()) < 4 * standard_error
    assert 0.5 * x.std() < drawn.std() < 2 * x.std()


@pytest.mark.parametrize("name", PRETRAINED)
def test_card(name):
    folder = presets.ZOO / name
    metadata = Flow.presets[name]
    assert presets.sha256(folder / presets.WEIGHTS) == metadata["weights"]["sha256"]
    here = metadata["results"]
    card = (folder / presets.CARD).read_text()
    figure = ".2f" if here["metric"] == "log_likelihood" else ".3f"
    assert f"**{here[here['metric']]:{figure}} " in card
    assert f"{metadata['parameter_count']:,}" in card
    assert (folder / presets.SAMPLES).is_file() and (folder / presets.LOG).is_file()
    assert json.loads((folder / presets.RECIPE).read_text())["dataset"] == here["dataset"]


def test_cards_and_tables_are_what_the_metadata_say(monkeypatch):
    monkeypatch.syspath_prepend(presets.ZOO.parent / "tools")
    import card

    for name in Flow.presets:
        folder = presets.ZOO / name
        assert (folder / presets.CARD).read_text() == card.card(folder)
    for page in card.PAGES:
        text = page.read_text()
        assert card.results(Flow.presets) in text and card.papers(Flow.presets) in text


def test_the_weights_are_no_burden():
    assert sum((presets.ZOO / name / presets.WEIGHTS).stat().st_size for name in PRETRAINED) < 60e6
