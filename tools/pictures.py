#!/usr/bin/env python
"""Draws the pictures of docs/pictures from the presets: points, samples, and how they learned.

tools/pictures.py
tools/pictures.py moons --output /tmp
"""

import argparse
import csv
import itertools
import pathlib

import matplotlib
import threads
from PIL import Image

import keras_flows
from keras_flows import plot, presets

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path(__file__).parent.parent / "docs" / "pictures"
DPI, COLORS = 80, 128  # which keep them small
BITS = "val_bits_per_dim"
SAMPLES = ("glow_digits", "glow_mnist", "tarflow_cifar10_small")


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*PICTURES], help=f"of {[*PICTURES]}")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - PICTURES.keys())
    if unknown:
        parser.error(f"there are no pictures {unknown}, but {[*PICTURES]}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = options.output / f"{name}.png"
        figure = PICTURES[name]()
        save(figure, path)
        pyplot.close(figure)
        print(path)


def save(figure, path, dpi=DPI):
    """As a small PNG, of few colours."""
    figure.savefig(path, dpi=dpi)
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)


def moons():
    """Data, their latents and the density, of the preset that learned them."""
    model = keras_flows.zoo.NSF.from_preset("nsf_moons")
    test = keras_flows.data.load("moons", split="test", batch_size=2000, labels=True)
    points, labels = (each.numpy() for each in next(iter(test)))
    figure, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    for ax, cloud in zip(axes, (points, model.encode(points).numpy()), strict=False):
        for label, color in enumerate(("tab:blue", "tab:orange")):
            ax.scatter(*cloud[labels == label].T, s=3, c=color, linewidths=0)
    axes[1].set(xlim=(-4, 4), ylim=(-4, 4))
    plot.density(model, bounds=((-1.5, 2.5), (-1.1, 1.6)), resolution=300, ax=axes[2])
    axes[0].set(xlim=(-1.5, 2.5), ylim=(-1.1, 1.6))
    for ax, title in zip(axes, ("data", "latents: a Gaussian", "density"), strict=True):
        ax.set(title=title, xlabel="", ylabel="")
    return figure


def samples():
    """Of three presets, at temperature 1 and not chosen."""
    figure, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.8), layout="constrained")
    for ax, name in zip(axes, SAMPLES, strict=True):
        model = keras_flows.Flow.from_preset(name)
        plot.images(model.sample(36, seed=0), ax=ax).set_title(name)
    return figure


def interpolation():
    """Between four digits and four others, and samples at temperatures."""
    model = keras_flows.zoo.Glow.from_preset("glow_digits")
    images = next(iter(keras_flows.data.load("digits", split="test", batch_size=10))).numpy()
    figure, axes = pyplot.subplots(1, 2, figsize=(10.5, 2.8), layout="constrained")
    plot.interpolation(model, images[:5], images[5:], n=10, ax=axes[0])
    axes[0].set_title("between two images")
    plot.temperatures(model, (0.3, 0.5, 0.7, 0.85, 1.0), n=10, ax=axes[1])
    axes[1].set_title("the same latents at temperatures")
    return figure


def learning_curves():
    """Bits/dim of validation against the time of all cores, or GPUs, of each preset's training."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
    for ax, dataset in zip(axes, ("cifar10", "mnist"), strict=True):
        for log in sorted(presets.ZOO.glob(f"*/{presets.LOG}")):
            with open(log) as file:
                rows = list(csv.DictReader(file))
            # Of noisy images they are no bits/dim of the images.
            if presets.read(log.parent, presets.RECIPE)["dataset"] == dataset and BITS in rows[0]:
                results = presets.read(log.parent, presets.METADATA)["results"]
                on_gpu = "training_gpu_minutes" in results
                seconds = "seconds" if on_gpu else "cpu_seconds"
                minutes = itertools.accumulate(float(row[seconds]) / 60 for row in rows)
                bits = [float(row[BITS]) for row in rows]
                style, where = ("--", ", by a GPU") if on_gpu else ("-", "")
                ax.plot([*minutes], bits, style, marker=".", label=f"{log.parent.name}{where}")
        ax.set(title=dataset, xscale="log", xlabel="core-minutes", ylabel="bits/dim, validation")
        # Below, as it would lie over one curve or another.
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


PICTURES = {
    function.__name__: function for function in (moons, samples, interpolation, learning_curves)
}


if __name__ == "__main__":
    main()
