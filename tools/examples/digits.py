#!/usr/bin/env python
"""A small Glow on scikit-learn's digits (8x8, 4 bits), from data to a served model, in minutes."""

import math
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf

import keras_flows
from keras_flows.pictures import grid, png

BITS = 4
OUTPUT = pathlib.Path("demo")


def main():
    keras.utils.set_random_seed(0)
    OUTPUT.mkdir(exist_ok=True)
    train = keras_flows.data.load("digits", split="train", batch_size=50, seed=0)
    test = keras_flows.data.load("digits", split="test", batch_size=99)

    model = keras_flows.zoo.Glow((8, 8, 1), levels=2, depth=4, width=32, bits=BITS, seed=0)
    epochs = 30
    steps = epochs * int(train.cardinality())
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)))
    model.adapt(train)
    untrained = model.evaluate(test, return_dict=True, verbose=0)["bits_per_dim"]
    model.fit(train, epochs=epochs, verbose=2)
    trained = model.evaluate(test, return_dict=True, verbose=0)["bits_per_dim"]

    picture = OUTPUT / "digits.png"
    real = next(iter(test)).numpy()[:64]
    drawn = model.sample(64, temperature=0.7, seed=0).numpy()
    gap = np.full((len(grid(real, 4)), 8, 1), 255, "uint8")
    picture.write_bytes(png(np.concatenate([grid(real, 4), gap, grid(drawn, 4)], axis=1)))

    served = OUTPUT / "served" / "1"
    shutil.rmtree(served, ignore_errors=True)
    model.export(served)
    reloaded = tf.saved_model.load(str(served)).signatures["log_prob"](x=tf.constant(real))
    difference = np.abs(reloaded["log_prob"] - model.log_prob(real)).max()

    print("\nBits per dimension of the test images (lower is better):")
    print(f"  Glow, trained                    {trained:.3f}")
    print(f"  Glow, untrained (adapted only)   {untrained:.3f}")
    print(f"  Gaussian, fitted to the same     {gaussian_bits_per_dim(train, test):.3f}")
    print(f"Test images and, right of the line, samples at temperature 0.7: {picture}")
    print(f"Exported to {served}; reloaded, it differs by {difference:.1e} nats at most.")


def gaussian_bits_per_dim(train, test):
    """Of the Gaussian with the training data's mean and covariance, both dequantised alike."""
    noise = np.random.default_rng(0)

    def vectors(dataset):
        bins = np.concatenate([batch.numpy() for batch in dataset]) // 2 ** (8 - BITS)
        return (bins + noise.random(bins.shape)).reshape(len(bins), -1)

    fitted, x = vectors(train), vectors(test)
    mean, covariance = fitted.mean(axis=0), np.cov(fitted.T)
    centred = x - mean
    distance = (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1).mean()
    dims = x.shape[1]
    nats = 0.5 * (distance + dims * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])
    return nats / (dims * math.log(2))


if __name__ == "__main__":
    main()
