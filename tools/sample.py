#!/usr/bin/env python
"""Draws from a trained model and writes one PNG: a grid of images, or points of the plane.

tools/sample.py glow_mnist --temperature 0.7
tools/sample.py runs/cifar10/model.keras --output samples.png
"""

import argparse
import json
import pathlib

import models
import numpy as np
import tensorflow as tf
import threads


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=models.HELP)
    parser.add_argument("--output", default="samples.png", type=pathlib.Path)
    parser.add_argument("--n", type=int, default=64, help="number of images")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--condition", type=json.loads, help="one for all, as JSON: a label, or [0.1, -0.2]"
    )
    parser.add_argument("--guidance", type=float, default=0.0, help="by labels, of a TarFlow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zoom", type=int, default=2, help="pixels of the PNG for each pixel")
    options = parser.parse_args()

    model = models.load(options.model)
    if options.condition is not None and not model.is_conditional:
        parser.error(f"--condition is of a conditional model, which {options.model} is not")
    if options.condition is None and model.condition_shape is not None:
        parser.error(f"{options.model} needs a --condition, of shape {model.condition_shape}")
    if model.size == 1:
        parser.error(f"{options.model} draws single numbers, of which there is no picture")
    values = (options.n, options.temperature, options.condition, options.seed, options.zoom)
    try:
        drawn = picture(model, *values, guidance=options.guidance)
    except ValueError as error:
        parser.error(str(error))
    options.output.write_bytes(drawn)
    print(f"{options.n} samples at temperature {options.temperature}: {options.output}")


def picture(model, n=64, temperature=1.0, condition=None, seed=0, zoom=2, guidance=0.0):
    """The bytes of a PNG of `n` samples; without a condition, the classes take turns."""
    if condition is None and model.num_classes is not None:
        condition = np.arange(n) % model.num_classes
    samples = model.sample(n, temperature, condition, seed, guidance).numpy()
    return png(grid(samples, zoom) if model.is_image else scatter(samples))


def scatter(points, size=400):
    """An image of the first two coordinates of points (n, D), the darker the denser."""
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=size // 4)
    shades = 255 * (1 - np.minimum(counts, 4) / 4)
    return np.uint8(shades[::-1, :, None]).repeat(4, axis=0).repeat(4, axis=1)


def grid(images, zoom=1, line=1):
    """One image of images (n, height, width, channels), near square, dark lines around them."""
    columns = int(np.ceil(np.sqrt(len(images))))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    cells = np.concatenate([images, blank]).repeat(zoom, axis=1).repeat(zoom, axis=2)
    cells = np.pad(cells, ((0, 0), (line, line), (line, line), (0, 0)), constant_values=64)
    rows = [
        np.concatenate(list(cells[i : i + columns]), axis=1) for i in range(0, len(cells), columns)
    ]
    return np.concatenate(rows)


def png(image):
    """The bytes of a PNG; of other than 1, 3 or 4 channels, the first is shown."""
    channels = image.shape[-1]
    return tf.io.encode_png(image if channels in (1, 3, 4) else image[..., :1]).numpy()


if __name__ == "__main__":
    main()
