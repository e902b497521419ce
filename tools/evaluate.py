#!/usr/bin/env python
"""Prints bits per dimension and nats of models on test data, and checks the figures of presets.

    tools/evaluate.py glow_mnist
    tools/evaluate.py runs/cifar10/model.keras --dataset cifar10
    tools/evaluate.py --all

A preset is evaluated on its own data, and fails if it is not within 0.005 bits/dim of its card.
"""

import argparse
import math
import sys

import models
import refusals
import threads
from flag_types import positive_int

import keras_flows
from keras_flows import presets

TOLERANCE = 0.005  # bits/dim


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=models.HELP)
    parser.add_argument("--all", action="store_true", help="all presets that have weights")
    parser.add_argument("--dataset", help="a TFDS name, digits or moons")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--split", help="by default the recipe's, or test")
    parser.add_argument("--batch_size", type=positive_int, default=100)
    options = parser.parse_args()
    names = options.models
    if options.all:
        zoo = keras_flows.Flow.presets
        names = [*names, *(name for name, metadata in zoo.items() if "weights" in metadata)]
    if not names:
        parser.error("name a model, or say --all")

    wrong = []
    for name in names:
        model = models.load(name)
        with refusals.telling(name):
            data = models.test_data(
                name,
                model,
                dataset=options.dataset,
                split=options.split,
                data_dir=options.data_dir,
                batch_size=options.batch_size,
            )
            bits, nats = evaluate(model, data)
        noisy = "" if not model.noise else ", of noisy images"
        line = f"{name}: {bits:.4f} bits/dim, {nats:.3f} nats{noisy}"
        if options.dataset is None and options.split is None:
            claimed = presets.read(name, presets.METADATA).get("results", {})
            claimed = claimed.get(metric_of(model))
            if claimed is not None:
                line += f" (its card: {claimed:.4f})"
                if not abs(bits - claimed) <= TOLERANCE:  # nan is not, either
                    wrong.append(name)
        print(line)
    if wrong:
        sys.exit(f"Not within {TOLERANCE} bits/dim of their cards: {', '.join(wrong)}")


def evaluate(model, data):
    """Bits per dimension, and the negative log-likelihood in nats per example."""
    bits = model.evaluate(data, return_dict=True)[metric_of(model)]
    return bits, bits * model.size * math.log(2)


def metric_of(model):
    """What `model.evaluate`, and a preset's card, call its bits per dimension."""
    return "noisy_bits_per_dim" if model.noise else "bits_per_dim"


if __name__ == "__main__":
    main()
