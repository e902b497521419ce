#!/usr/bin/env python
"""Two moons, end to end: data -> Gaussian -> new data, the learned density, and one picture."""

import pathlib

import keras
import matplotlib
import numpy as np

import keras_flows

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path("demo")


def main():
    keras.utils.set_random_seed(0)
    OUTPUT.mkdir(exist_ok=True)
    train, test = (
        keras_flows.data.load("moons", split=split, batch_size=256, seed=0)
        for split in ("train", "test")
    )
    model = keras_flows.zoo.RealNVP((2,), depth=12, width=64, batch_norm=False, seed=0)
    epochs = 60
    steps = epochs * int(train.cardinality())
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)))
    model.fit(train, validation_data=test, epochs=epochs, verbose=2)

    data = np.concatenate([batch.numpy() for batch in test])
    latents = model.encode(data).numpy()
    samples = model.sample(len(data), seed=0).numpy()
    (left, bottom), (right, top) = data.min(axis=0) - 0.5, data.max(axis=0) + 0.5
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(bottom, top, 200))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    density = np.exp(model.log_prob(points).numpy()).reshape(x.shape)
    integral = density.sum() * (right - left) / 299 * (top - bottom) / 199

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4), layout="constrained")
    titles = ("data", "latents of the data", "samples", "learned density")
    for axis, title, cloud in zip(axes, titles, (data, latents, samples), strict=False):
        axis.scatter(*cloud.T, s=4)
        axis.set_title(title)
    axes[3].pcolormesh(x, y, density)
    axes[3].set_title(titles[3])
    picture = OUTPUT / "moons.png"
    figure.savefig(picture, dpi=100)

    print(f"\nTest log-likelihood: {model.log_prob(data).numpy().mean():.3f} nats per point")
    print(f"The density integrates to {integral:.4f} over the picture.")
    print(f"Latents have mean {latents.mean(axis=0)} and deviation {latents.std(axis=0)}.")
    print(f"Data, latents, samples and density: {picture}")


if __name__ == "__main__":
    main()
