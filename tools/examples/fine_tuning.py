#!/usr/bin/env python
"""Fine-tuning: a preset goes on with other handwriting, beside the same model from scratch.

tools/examples/fine_tuning.py
tools/examples/fine_tuning.py --count 100 --epochs 10 20 40 80

The new digits are scikit-learn's, enlarged to the preset's size. Both models have the same batches
and optimizer, and each the better of the learning rates by 300 digits to validate by; the table
has bits/dim of the 297 test digits after as many epochs of each, and so as many core-minutes.
"""

import argparse
import pathlib
import sys
import time

import keras
import matplotlib
import numpy as np
import tensorflow as tf

import keras_flows

sys.path.append(str(pathlib.Path(__file__).parent.parent))
import models  # noqa: E402
import threads  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path("demo")
MOST = 1200  # of the 1,500 digits to train on; the others are to validate by


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="glow_mnist", help="of digits, without labels")
    parser.add_argument("--count", type=int, default=500, help="new digits to train on")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4, 8, 12], help="to score")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 5e-4], help="to try")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    options = parser.parse_args()
    if not 1 <= options.count <= MOST:
        parser.error(f"--count must be in 1..{MOST}. Received: {options.count}")
    if [*options.epochs] != sorted({0, *options.epochs})[1:] or min(options.rates) <= 0:
        parser.error("--epochs must rise from 1 or more, and --rates be positive")
    model = models.load(options.preset)
    if not model.is_image or model.input_shape[-1] != 1 or model.is_conditional:
        parser.error(f"--preset takes one of digits without labels. Received: {options.preset}")

    parts = [
        digits(split, model.input_shape, options.data_dir)
        for split in (f"train[:{options.count}]", f"train[{MOST}:]", "test")
    ]
    chosen = {}
    for name, load_weights in (("fine-tuned", True), ("from scratch", False)):
        runs = [learn(parts, load_weights, rate, options) for rate in options.rates]
        for rate, (_, validation, _) in zip(options.rates, runs, strict=True):
            print(f"{name}, rate {rate:g}: {min(validation):.3f} bits/dim, validation", flush=True)
        best = min(range(len(runs)), key=lambda i: min(runs[i][1]))
        chosen[f"{name}, rate {options.rates[best]:g}"] = runs[best]

    print(f"\n| epochs | {' | '.join(f'{name} | core-minutes' for name in chosen)} |")
    print(f"| --- |{' --- | --- |' * len(chosen)}")
    for i, epoch in enumerate([0, *options.epochs]):
        cells = (f"{test[i]:.3f} | {minutes[i]:.2f}" for minutes, _, test in chosen.values())
        print(f"| {epoch} | {' | '.join(cells)} |")
    OUTPUT.mkdir(exist_ok=True)
    picture = OUTPUT / "fine_tuning.png"
    draw(chosen, picture)
    print(f"\nBits/dim of {len(parts[2])} test digits, before training and after: {picture}")


def digits(split, shape, data_dir):
    """Enlarged to the middle five sevenths of an image, which are what MNIST's fill."""
    data = keras_flows.data.load("digits", split=split, batch_size=2000, data_dir=data_dir, seed=0)
    height, width = shape[:2]
    larger = tf.image.resize(next(iter(data)), (5 * height // 7, 5 * width // 7))
    images = tf.cast(tf.round(larger), "uint8")
    return tf.image.resize_with_crop_or_pad(images, height, width).numpy()


def learn(parts, load_weights, rate, options):
    """Core-minutes, and bits/dim to validate by and of the test, before training and during it."""
    train, *scored = parts
    keras.utils.set_random_seed(0)
    model = keras_flows.Flow.from_preset(options.preset, load_weights=load_weights, seed=0)
    model.compile(keras.optimizers.Adam(rate))
    if not load_weights:
        model.adapt(train)
    seconds, done, rows = 0.0, 0, []
    for epoch in (0, *options.epochs):
        start = time.process_time()
        if epoch:
            model.fit(train, batch_size=32, epochs=epoch, initial_epoch=done, verbose=0)
        seconds, done = seconds + time.process_time() - start, epoch
        results = [model.evaluate(x, batch_size=100, return_dict=True, verbose=0) for x in scored]
        rows.append([seconds / 60, *(each["bits_per_dim"] for each in results)])
    return np.transpose(rows)


def draw(chosen, picture):
    figure, ax = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, (minutes, _, test) in chosen.items():
        ax.plot(minutes, test, marker=".", label=name)
    ax.set(xlabel="core-minutes", ylabel="bits/dim of new digits, test")
    ax.legend()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
