#!/usr/bin/env python
"""Prints the bits per dimension and the nats of a trained model on a split of a dataset.

tools/evaluate.py runs/cifar10/model.keras --dataset cifar10
"""

import argparse

import keras

import keras_flows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--dataset", required=True, help="a TFDS name, digits or moons")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()

    model = keras.models.load_model(options.model)
    data = keras_flows.data.load(
        options.dataset,
        split=options.split,
        batch_size=options.batch_size,
        data_dir=options.data_dir,
        labels=model.num_classes is not None,
    )
    results = model.evaluate(data, return_dict=True)
    print(f"{options.dataset} {options.split}: {results['bits_per_dim']:.4f} bits/dim", end=", ")
    print(f"{results['loss']:.3f} nats")


if __name__ == "__main__":
    main()
