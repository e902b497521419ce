#!/usr/bin/env python
"""Draws from a trained model and writes one PNG: a grid of images, or points of the plane.

tools/sample.py glow_mnist --temperature 0.7
tools/sample.py runs/cifar10/model.keras --output samples.png
"""

import argparse
import pathlib

import models
import refusals
import threads
from flag_types import json_value, positive_int

from keras_flows import folders, pictures


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=models.HELP)
    parser.add_argument("--output", default="samples.png", type=pathlib.Path)
    parser.add_argument("--n", type=int, default=64, help="number of images")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--condition", type=json_value, help="one for all, as JSON: a label, or [0.1, -0.2]"
    )
    parser.add_argument("--guidance", type=float, default=0.0, help="by labels, of a TarFlow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--zoom", type=positive_int, default=2, help="pixels of the PNG for each pixel"
    )
    options = parser.parse_args()
    if options.output.suffix != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output must be a .png in a folder that exists. Received: {options.output}")

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
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    with refusals.telling(), folders.replaced_file(options.output) as scratch:
        pathlib.Path(scratch).write_bytes(drawn)
    print(f"{options.n} samples at temperature {options.temperature}: {options.output}")


def picture(model, n=64, temperature=1.0, condition=None, seed=0, zoom=2, guidance=0.0):
    """The bytes of a PNG of `n` samples; without a condition, the classes take turns."""
    samples = pictures.of_samples(model, n, temperature, condition, seed, zoom, guidance)
    return pictures.png(samples)


if __name__ == "__main__":
    main()
