#!/usr/bin/env python
"""Samples as augmentation: a classifier of 100 labelled digits, and of what a flow makes of them.

tools/examples/few_labels.py
tools/examples/few_labels.py --validation --seeds 3

Each seed draws scikit-learn's digits anew, as many of each class; a class-conditional Glow learns
these alone, and classifiers learn them without and with its samples. Beside those stand as many
copies moved by up to a pixel, and all digits to train on. `--validation` is to choose settings by:
it draws other digits than without it, and scores by the others to train on, not the test digits.
"""

import argparse
import pathlib
import sys

import keras
import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

import keras_flows
from keras_flows import pictures

sys.path.append(str(pathlib.Path(__file__).parent.parent))
import threads  # noqa: E402

OUTPUT = pathlib.Path("demo")
CLASSES = 10
CLASSIFIERS = {
    "SVC": lambda seed: SVC(C=10),
    "MLP": lambda seed: MLPClassifier(max_iter=1000, random_state=seed),
}


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per_class", type=int, default=10, help="digits that have labels")
    parser.add_argument("--samples", type=int, default=1000, help="of the flow; copies, as many")
    parser.add_argument("--temperature", type=float, default=0.5, help="of the samples")
    parser.add_argument("--epochs", type=int, default=200, help="of the flow")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation", action="store_true", help="to choose settings by")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    options = parser.parse_args()
    if min(options.per_class, options.samples, options.epochs, options.seeds) < 1:
        parser.error("--per_class, --samples, --epochs and --seeds must be positive")
    train, test = (load(split, options.data_dir) for split in ("train", "test"))
    fewest = np.bincount(train[1]).min()
    if options.per_class >= fewest:  # some of each class are left to validate by
        parser.error(f"--per_class must be below {fewest}. Received: {options.per_class}")

    table = []
    first = 100 if options.validation else 0
    for seed in range(first, first + options.seeds):
        own, others = divide(train, options.per_class, seed)
        sampled, copies = sample(own, options, seed), moved(own, options.samples, seed)
        sets = {
            f"{len(own[1])} digits": own,
            f"and {options.samples} samples": joined(own, sampled),
            f"and {options.samples} moved copies": joined(own, copies),
        }
        if not options.validation:
            sets[f"all {len(train[1])} digits"] = train
        scored = others if options.validation else test
        table.append([accuracies(learned, scored, seed) for learned in sets.values()])
        print(f"seed {seed}: {np.round(table[-1], 1).tolist()}", flush=True)

    print(f"\n| learned | {' | '.join(CLASSIFIERS)} |\n|{' --- |' * (1 + len(CLASSIFIERS))}")
    for name, runs in zip(sets, np.swapaxes(table, 0, 1), strict=True):
        spreads = zip(runs.mean(axis=0), runs.std(axis=0), strict=True)
        print(f"| {name} |", *(f"{mean:.1f} +- {spread:.1f} % |" for mean, spread in spreads))
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "few_labels.png"
    rows = np.concatenate([images[: 2 * CLASSES] for images, _ in (own, sampled, copies)])
    path.write_bytes(pictures.png(pictures.grid(rows, zoom=4, columns=CLASSES)))
    print(f"\nAccuracies, mean and deviation over seeds. Digits, samples, moved copies: {path}")


def load(split, data_dir):
    data = keras_flows.data.load(
        "digits", split=split, batch_size=2000, labels=True, data_dir=data_dir, seed=0
    )
    return [each.numpy() for each in next(iter(data))]


def divide(data, per_class, seed):
    """Digits to learn by, whose classes take turns, and all others."""
    rng = np.random.default_rng(seed)
    classes = (np.flatnonzero(data[1] == label) for label in range(CLASSES))
    drawn = np.ravel([rng.choice(each, per_class, replace=False) for each in classes], order="F")
    return [each[drawn] for each in data], [np.delete(each, drawn, axis=0) for each in data]


def sample(data, options, seed):
    """Samples of a flow of the images and labels, and the labels that were asked for."""
    images, labels = data
    keras.utils.set_random_seed(seed)
    # All couplings read what the network makes of labels; the prior alone would heed them little.
    network = keras.layers.Embedding(CLASSES, 16)
    sizes = {"levels": 2, "depth": 4, "width": 32, "bits": 4, "seed": seed}
    model = keras_flows.zoo.Glow(
        images.shape[1:], **sizes, num_classes=CLASSES, condition_network=network
    )
    model.compile(keras.optimizers.Adam(2e-3))
    model.fit(images, labels, batch_size=50, epochs=options.epochs, verbose=0)
    labels = np.arange(options.samples) % CLASSES
    drawn = model.sample(options.samples, options.temperature, condition=labels, seed=seed)
    return drawn.numpy(), labels


def moved(data, count, seed):
    """Copies by turns, each moved by up to a pixel up or down and left or right."""
    images, labels = (each[np.arange(count) % len(each)] for each in data)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(framed, images.shape[1:3], axis=(1, 2))
    down, right = np.random.default_rng(seed).integers(0, 3, (2, count))
    return np.moveaxis(windows[np.arange(count), down, right], 1, -1), labels


def joined(*sets):
    return [np.concatenate(parts) for parts in zip(*sets, strict=True)]


def accuracies(learned, scored, seed):
    """Of each classifier, in percent."""
    (x, y), (x_scored, y_scored) = (
        (images.reshape(len(images), -1) / 255, labels) for images, labels in (learned, scored)
    )
    return [100 * make(seed).fit(x, y).score(x_scored, y_scored) for make in CLASSIFIERS.values()]


if __name__ == "__main__":
    main()
