#!/usr/bin/env python
"""Images unlike those that a flow was trained on: does its likelihood tell, and do other scores?

tools/examples/out_of_distribution.py
tools/examples/out_of_distribution.py --presets glow_mnist glow_cifar10_small --data_dir DIR

Without presets, a small Glow learns the digits 0 to 4, and a second one the same with noise added;
scored are held-out 0 to 4 against 5 to 9 and others. A preset is scored by its test data. The
table has the AUROC of each score: 1 where it tells all of both apart, 0.5 where it tells nothing,
less where it takes strange images for the more familiar ones.
"""

import argparse
import pathlib
import sys

import keras
import matplotlib
import numpy as np

import keras_flows
from keras_flows import latent, plot, presets

sys.path.append(str(pathlib.Path(__file__).parent.parent))
import threads  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path("demo")
COUNT = 1000  # images of each kind
GROUP = 10  # images whose typicality is told together
NOISE = 0.15  # share of pixels that the second model does not see; Ren et al. try 0.1 to 0.3


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="*", default=(), help="of images, in place of digits")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of digits")
    parser.add_argument("--epochs", type=int, default=60, help="of digits, at most")
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    for name in options.presets:
        log_probs, size = of_preset(name, options.data_dir)
        report(name, [log_probs], size)
    if not options.presets:
        runs = [of_digits(seed, options.epochs) for seed in range(options.seeds)]
        report("digits", [log_probs for log_probs, _ in runs], runs[0][1])


def of_digits(seed, epochs):
    """Log-likelihoods of kinds of images: (model's, compressor's, second model's)."""
    train, test = (digits(split) for split in ("train", "test"))
    known, strange = ([x[(y < 5) == below] for x, y in (train, test)] for below in (True, False))
    fitted, held_out = np.split(known[0], [int(0.9 * len(known[0]))])
    keras.utils.set_random_seed(seed)
    model = fit(fitted, held_out, seed, epochs)
    second = fit(noisy(fitted, seed), noisy(held_out, seed + 1), seed, epochs)
    kinds = {"reference": held_out, "digits 0-4": known[1], "digits 5-9": strange[1]}
    kinds |= changed(known[1], seed)
    return {
        name: (log_prob(model, x), latent.compressor_log_prob(x // 16), log_prob(second, x))
        for name, x in kinds.items()
    }, model.size


def of_preset(name, data_dir):
    """As `of_digits`, without second model."""
    model = keras_flows.Flow.from_preset(name)
    dataset = presets.read(name, presets.RECIPE)["dataset"]
    images = load(dataset, data_dir, 2 * COUNT)
    reference, known = images[:COUNT], images[COUNT:]
    kinds = {"reference": reference, dataset: known}
    for other in {"mnist", "cifar10"} - {dataset}:
        kinds[other] = shaped(load(other, data_dir, COUNT), model.input_shape)
    kinds |= changed(known, 0)
    return {
        kind: (log_prob(model, x), latent.compressor_log_prob(x)) for kind, x in kinds.items()
    }, model.size


def changed(images, seed):
    """What images may become."""
    rng = np.random.default_rng(seed)
    height, width = images.shape[1:3]
    flat = rng.integers(0, 256, (len(images), 1, 1, images.shape[3]), "uint8")
    coarse = images.reshape(len(images), height // 4, 4, width // 4, 4, -1).mean(axis=(2, 4))
    return {
        "turned by 90 degrees": np.rot90(images, axes=(1, 2)),
        "inverted": 255 - images,
        "4 x 4 blocks": np.uint8(coarse).repeat(4, axis=1).repeat(4, axis=2),
        "flat": np.broadcast_to(flat, images.shape),
        "noise": rng.integers(0, 256, images.shape, "uint8"),
    }


def noisy(images, seed):
    """With a share of the pixels drawn anew."""
    rng = np.random.default_rng(seed)
    noise = 16 * rng.integers(0, 16, images.shape, "uint8")
    return np.where(rng.random(images.shape) < NOISE, noise, images)


def digits(split):
    data = keras_flows.data.load("digits", split=split, batch_size=2000, labels=True)
    return [each.numpy() for each in next(iter(data))]


def load(dataset, data_dir, count):
    data = keras_flows.data.load(dataset, split="test", batch_size=count, data_dir=data_dir)
    return next(iter(data)).numpy()


def shaped(images, shape):
    """Images in the middle of black ones, or their middles; colours become their mean."""
    height, width, channels = shape
    pads = [max(0, (size - own) // 2) for size, own in zip(shape, images.shape[1:3], strict=False)]
    images = np.pad(images, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
    top, left = ((own - size) // 2 for size, own in zip(shape, images.shape[1:3], strict=False))
    images = images[:, top : top + height, left : left + width]
    if channels == 1:
        return np.uint8(images.mean(axis=-1, keepdims=True))
    return np.broadcast_to(images, (*images.shape[:3], channels))


def fit(images, held_out, seed, epochs):
    """The Glow of the preset `glow_digits`, until images held out say stop."""
    model = keras_flows.zoo.Glow((8, 8, 1), levels=2, depth=4, width=32, bits=4, seed=seed)
    model.compile(keras.optimizers.Adam(2e-3))
    stop = keras.callbacks.EarlyStopping(patience=8, restore_best_weights=True)
    model.fit(
        images,
        validation_data=(held_out,),
        batch_size=32,
        epochs=epochs,
        callbacks=[stop],
        verbose=0,
    )
    return model


def log_prob(model, images):
    return model.predict(np.ascontiguousarray(images), batch_size=100, verbose=0)["log_prob"]


def scores(log_probs, reference):
    """Of one kind of images, by name; the larger the stranger."""
    own, *others = log_probs
    own = np.where(np.isfinite(own), own, -np.inf)
    groups = own[: len(own) // GROUP * GROUP]
    values = {
        "-log p": -own,
        "typicality": latent.typicality(own, reference),
        f"of {GROUP}": latent.typicality(groups, reference, batch=GROUP),
    }
    for name, other in zip(("to compressor", "to second model"), others, strict=False):
        other = np.where(np.isfinite(other), other, np.finfo("float32").min)
        values[name] = latent.likelihood_ratio(own, other)
    return values


def auroc(known, strange):
    """How often a strange one has the higher score; equal ones count half."""
    higher, equal = strange[:, None] > known, strange[:, None] == known
    return float(np.mean(higher + 0.5 * equal))


def report(name, runs, size):
    """A table, of means over runs, and a picture of the likelihoods of the first."""
    table = []
    for log_probs in runs:
        reference = log_probs["reference"][0]
        known, *strange = (scores(each, reference) for each in list(log_probs.values())[1:])
        table.append([[auroc(known[key], kind[key]) for key in known] for kind in strange])
    _, known_name, *names = runs[0]
    columns = list(scores(runs[0][known_name], runs[0]["reference"][0]))
    bits = {
        kind: np.mean([-np.mean(run[kind][0]) for run in runs]) / (size * np.log(2))
        for kind in runs[0]
    }
    print(f"\n| {name}: AUROC | bits/dim | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * (len(columns) + 1))
    print(f"| {known_name} | {bits[known_name]:.2f} |" + "  |" * len(columns))
    means, deviations = np.mean(table, axis=0), np.std(table, axis=0)
    for kind, mean in zip(names, means, strict=True):
        row = " | ".join(f"{value:.3f}" for value in mean)
        print(f"| {kind} | {bits[kind]:.2f} | {row} |")
    if len(runs) > 1:
        print(f"Means over {len(runs)} seeds, whose largest deviation is {deviations.max():.3f}.")
    picture = OUTPUT / f"out_of_distribution_{name}.png"
    first = {kind: runs[0][kind][0] for kind in (known_name, *names[:1], "4 x 4 blocks", "flat")}
    figure = plot.likelihoods(first, size=size, bins=80).figure
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)
    print(f"Likelihoods: {picture}", flush=True)


if __name__ == "__main__":
    main()
