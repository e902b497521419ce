#!/usr/bin/env python
"""What guidance does to samples of digits: how many are read as their label, and a picture.

tools/examples/guidance.py
tools/examples/guidance.py --weights 2 4 --temperature 0.7 --data_dir DIR

A small convolutional network learns to read digits by those to train on; then it reads `--count`
samples of the model for each weight of guidance. The picture has a row for each weight, and a
column for each latent and label.
"""

import argparse
import pathlib
import sys

import keras
import numpy as np

import keras_flows
from keras_flows import pictures

sys.path.append(str(pathlib.Path(__file__).parent.parent))
import models  # noqa: E402
import threads  # noqa: E402

OUTPUT = pathlib.Path("demo")
COLUMNS = 20  # of the picture: each label twice


def main():
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tarflow_mnist_labels", help=models.HELP)
    parser.add_argument("--dataset", default="mnist", help="to learn to read by")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples")
    parser.add_argument("--count", type=int, default=1000, help="samples for each weight")
    parser.add_argument("--epochs", type=int, default=3, help="of the reader")
    options = parser.parse_args()

    model = models.load(options.model)
    if not (model.data_spec.condition.takes_null_label and model.input_shape[-1] == 1):
        parser.error(f"--model takes one of digits that labels guide. Received: {options.model}")
    train, test = (
        keras_flows.data.load(
            options.dataset, split=split, batch_size=100, labels=True, data_dir=options.data_dir
        )
        for split in ("train", "test")
    )
    reader = learn_to_read(train, model, options.epochs)

    def report(name, images, labels):
        read = reader.predict(images, verbose=0).argmax(axis=1)
        # Within a label: samples that guidance makes alike have less of it.
        spread = np.mean([images[labels == label].std(axis=0).mean() for label in set(labels)])
        print(f"| {name} | {np.mean(read == labels):.1%} | {spread:.1f} |", flush=True)

    print("\n| guidance | read as their label | deviation of pixels |\n| --- | --- | --- |")
    images, labels = map(np.concatenate, zip(*test.as_numpy_iterator(), strict=True))
    report(f"{options.dataset}'s test digits", images, labels)
    rows = []
    labels = np.arange(options.count) % model.num_classes
    drawn = {"temperature": options.temperature, "condition": labels, "seed": 0}
    for weight in options.weights:
        images = model.sample(options.count, guidance=weight, **drawn).numpy()
        report(f"{weight:g}", images, labels)
        rows.append(images[:COLUMNS])
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "guidance.png"
    path.write_bytes(pictures.png(pictures.grid(np.concatenate(rows), zoom=2, columns=COLUMNS)))
    print(f"\nFrom guidance {options.weights[0]:g} to {options.weights[-1]:g}, row by row: {path}")


def learn_to_read(dataset, model, epochs):
    """A network from images to their labels."""
    keras.utils.set_random_seed(0)
    reader = keras.Sequential(
        [
            keras.Input(model.input_shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, activation="relu", padding="same"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu", padding="same"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(model.num_classes, activation="softmax"),
        ]
    )
    reader.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    reader.fit(dataset, epochs=epochs, shuffle=False, verbose=2)
    return reader


if __name__ == "__main__":
    main()
