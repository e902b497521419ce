#!/usr/bin/env python
"""Draws images from a trained model and writes them as one PNG, a grid.

tools/sample.py runs/cifar10/model.keras --output samples.png --temperature 0.7
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_flows  # noqa: F401 - the model's classes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--output", default="samples.png", type=pathlib.Path)
    parser.add_argument("--n", type=int, default=64, help="number of images")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--label", type=int, help="of a class-conditional model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zoom", type=int, default=2, help="pixels of the PNG for each pixel")
    options = parser.parse_args()

    model = keras.models.load_model(options.model)
    labels = None
    if model.num_classes is not None:
        # Without a label, the classes take turns.
        turns = np.arange(options.n) % model.num_classes
        labels = turns if options.label is None else np.full(options.n, options.label)
    images = model.sample(options.n, options.temperature, labels, options.seed)
    options.output.write_bytes(png(grid(images.numpy(), options.zoom)))
    print(f"{options.n} samples at temperature {options.temperature}: {options.output}")


def grid(images, zoom=1):
    """One image of images (n, height, width, channels), near square, a dark line between them."""
    columns = int(np.ceil(np.sqrt(len(images))))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    cells = np.concatenate([images, blank]).repeat(zoom, axis=1).repeat(zoom, axis=2)
    cells = np.pad(cells, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=64)
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
