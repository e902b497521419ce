#!/usr/bin/env python
"""Exports a trained model as a SavedModel that TF Serving loads.

tools/export.py runs/cifar10/model.keras --output served/glow/1
"""

import argparse

import keras
import tensorflow as tf

import keras_flows  # noqa: F401 - the model's classes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    options = parser.parse_args()

    keras.models.load_model(options.model).export(options.output)
    for name, signature in tf.saved_model.load(options.output).signatures.items():
        inputs = signature.structured_input_signature[1]
        print(f"{name}: {_tensors(inputs)} -> {_tensors(signature.structured_outputs)}")


def _tensors(specs):
    return ", ".join(f"{name} {spec.dtype.name}{spec.shape}" for name, spec in specs.items())


if __name__ == "__main__":
    main()
