#!/usr/bin/env python
"""Puts the weights of a training into the zoo, with what they were measured to be worth.

    tools/train.py --preset glow_mnist --run runs/glow_mnist
    tools/publish.py runs/glow_mnist glow_mnist

Evaluates the best model of the run on the whole test data, and writes model.weights.h5, log.csv,
metadata.json, samples.png and the card, README.md, into the preset's folder. Weights are kept in
half precision if that costs less than 0.001 bits/dim; published ones are replaced only by better.
"""

import argparse
import csv
import datetime
import io
import math
import os
import pathlib
import shutil
import tempfile

import card
import evaluate
import h5py
import keras
import models
import numpy as np
import sample
from PIL import Image

from keras_flows import __version__, presets

HALF_LOSS = 0.001  # bits/dim
GAIN = 0.02  # bits/dim, for which new weights are worth their place in the repository's history


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="the folder of the training")
    parser.add_argument("preset", help="name or folder of the preset that was trained")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, no GPU")
    options = parser.parse_args()
    folder = presets.find(options.preset)
    metadata = presets.read(folder, presets.METADATA)
    recipe = presets.read(folder, presets.RECIPE)

    model = models.load(str(options.run / "model.keras"))
    fresh = type(model).from_preset(folder, load_weights=False)
    fresh.set_weights(model.get_weights())
    data = models.test_data(str(folder), fresh, data_dir=options.data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        whole, half = (pathlib.Path(scratch, f"{kind}.weights.h5") for kind in ("whole", "half"))
        fresh.save_weights(whole)
        bits, nats = evaluate.evaluate(fresh, data)
        in_half_precision(whole, half)
        fresh.load_weights(half)
        half_bits, half_nats = evaluate.evaluate(fresh, data)
        if half_bits - bits < HALF_LOSS:
            weights, bits, nats = half, half_bits, half_nats
        else:
            fresh.load_weights(whole)
            weights = whole
        published = metadata.get("results", {}).get("bits_per_dim")
        if published is not None and bits > published - GAIN:
            parser.error(
                f"{options.preset} has weights of {published:.4f} bits/dim, which others replace "
                f"for a gain of {GAIN}. Received: {bits:.4f}"
            )
        shutil.copyfile(weights, folder / presets.WEIGHTS)

    metric = metadata.get("paper", {}).get("published", {}).get("metric")
    scaled = {}
    if metric == "log_likelihood":  # as NICE's paper has it, of data in [0, 1]
        scaled = {metric: round(fresh.size * fresh.bits * math.log(2) - nats, 2)}
    seconds, cpu_seconds, epochs = time_of(options.run / "log.csv")
    metadata |= {
        "keras_flows_version": __version__,
        "parameter_count": fresh.count_params(),
        "weights": {"sha256": presets.sha256(folder / presets.WEIGHTS)},
        "results": {
            "dataset": recipe["dataset"],
            "split": recipe.get("test_split", "test"),
            "bits_per_dim": round(bits, 4),
            "nats": round(nats, 3),
            **scaled,
            "metric": metric or ("bits_per_dim" if fresh.is_image else "nats"),
            "date": datetime.date.today().isoformat(),
            "machine": options.machine,
            "epochs": epochs,
            "training_minutes": round(seconds / 60, 1),
            "training_core_minutes": round(cpu_seconds / 60, 1),
            **compressed_sizes(fresh, data),
        },
    }
    presets.write_json(folder / presets.METADATA, metadata)
    shutil.copyfile(options.run / "log.csv", folder / presets.LOG)
    (folder / presets.SAMPLES).write_bytes(picture(fresh))
    (folder / presets.CARD).write_text(card.card(folder))
    print(f"{options.preset}: {bits:.4f} bits/dim, {nats:.3f} nats, in {folder}")


def picture(model):
    """64 images, small ones enlarged, or many points."""
    if not model.is_image:
        return sample.picture(model, n=10_000)
    return sample.picture(model, zoom=max(2, 56 // model.input_shape[0]))


def in_half_precision(source, target):
    """Copies a weights file with float16 for float32, compressed."""
    shutil.copyfile(source, target)
    with h5py.File(source) as whole, h5py.File(target, "w") as half:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                group = half.require_group(name)
                group.attrs.update(item.attrs)
            else:
                dtype = np.float16 if item.dtype == np.float32 else item.dtype
                options = {"compression": "gzip", "shuffle": True} if item.shape else {}
                half.create_dataset(name, data=item[()].astype(dtype), **options)

        half.attrs.update(whole.attrs)
        whole.visititems(copy)


def time_of(log):
    """Seconds, seconds of CPU and epochs that a training took."""
    with open(log) as rows:
        rows = list(csv.DictReader(rows))
    return (
        *(sum(float(row[key]) for row in rows) for key in ("seconds", "cpu_seconds")),
        len(rows),
    )


def compressed_sizes(model, data):
    """Bits/dim of all images in one picture, as PNG and as lossless WebP."""
    if not model.is_image:
        return {}
    batches = [keras.utils.unpack_x_y_sample_weight(batch)[0].numpy() for batch in data]
    image = Image.fromarray(sample.grid(np.concatenate(batches), line=0).squeeze())
    dimensions = sum(batch.size for batch in batches)
    sizes = {}
    for name, options in (
        ("png", {"optimize": True}),
        ("webp", {"lossless": True, "quality": 100}),
    ):
        file = io.BytesIO()
        image.save(file, name, **options)
        sizes[f"{name}_bits_per_dim"] = round(8 * len(file.getvalue()) / dimensions, 3)
    return sizes


if __name__ == "__main__":
    main()
