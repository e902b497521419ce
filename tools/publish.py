#!/usr/bin/env python
"""Puts the weights of a training into the zoo, with what they were measured to be worth.

    tools/train.py --preset glow_mnist --run runs/glow_mnist
    tools/publish.py runs/glow_mnist glow_mnist

Evaluates the best model of the run on the whole test data, and writes model.weights.h5, log.csv,
metadata.json, samples.png and the card, README.md, into the preset's folder. Weights are kept in
half precision if that costs less than 0.001 bits/dim; published ones are replaced only by better.
"""

import argparse
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
import refusals
import sample
import train
from flag_types import natural_int
from PIL import Image

from keras_flows import __version__, hub, pictures, presets

HALF_LOSS = 0.001  # bits/dim
GAIN = 0.02  # bits/dim, for which new weights are worth their place in the repository's history
FIRST = 32  # test examples


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="the folder of the training")
    parser.add_argument("preset", help="name or folder of the preset that was trained")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, no GPU")
    parser.add_argument("--gpus", type=natural_int, default=0, help="how many the training had")
    options = parser.parse_args()
    if hub.is_address(options.preset):
        parser.error(f"preset must be a name or a folder. Received: {options.preset}")
    with refusals.telling():
        folder = presets.find(options.preset).resolve()
        metadata = presets.read(folder, presets.METADATA)
        recipe = presets.read(folder, presets.RECIPE)
        check_recipe(parser, options.run, folder, recipe)
        training = time_of(options.run / "log.csv", options.gpus)

    trained = models.load(str(options.run / "model.keras"))
    model = type(trained).from_preset(folder, load_weights=False)
    model.set_weights(trained.get_weights())
    data = models.test_data(str(folder), model, data_dir=options.data_dir)
    # A copy of the preset is made complete, and only then its files take the place of those there.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        weights, bits, nats = smallest_weights(model, data, pathlib.Path(scratch))
        if not math.isfinite(bits):
            parser.error(f"{options.run} has no weights worth publishing: {bits} bits/dim")
        published = metadata.get("results", {}).get(evaluate.metric_of(model))
        if published is not None and bits > published - GAIN:
            parser.error(
                f"{options.preset} has weights of {published:.4f} bits/dim, which others replace "
                f"for a gain of {GAIN}. Received: {bits:.4f}"
            )
        metric = metadata.get("paper", {}).get("published", {}).get("metric")
        metadata |= {
            "keras_flows_version": __version__,
            "parameter_count": model.count_params(),
            "weights": {"sha256": presets.sha256(weights)},
            "results": {
                "dataset": recipe["dataset"],
                "split": recipe.get("test_split", "test"),
                **figures(model, bits, nats, metric),
                **of_first_examples(model, data),
                "date": datetime.date.today().isoformat(),
                "machine": options.machine,
                **training,
                **compressed_sizes(model, data),
            },
        }
        copy = pathlib.Path(shutil.copytree(folder, pathlib.Path(scratch, folder.name)))
        shutil.copyfile(weights, copy / presets.WEIGHTS)
        shutil.copyfile(options.run / "log.csv", copy / presets.LOG)
        drawn = picture(model, data, guidance=metadata.get("guidance", 0.0))
        (copy / presets.SAMPLES).write_bytes(drawn)
        presets.write_json(copy / presets.METADATA, metadata)
        (copy / presets.CARD).write_text(card.card(copy))
        # What promises the weights comes last.
        for path in sorted(copy.iterdir(), key=lambda path: path.name == presets.METADATA):
            os.replace(path, folder / path.name)
    print(f"{options.preset}: {bits:.4f} bits/dim, {nats:.3f} nats, in {folder}")


def check_recipe(parser, run, folder, recipe):
    """Refuses a training by other settings than the recipe's, and a recipe that says too little."""
    missing = [key for key in card.NEEDED if key not in recipe]
    if missing:
        parser.error(f"the recipe of {folder.name} must name what its card does: {missing}")
    command = ["--preset", str(folder), "--run", str(run)]
    settings = train.settings(train.parse(train.flags(), command))
    if not (run / train.SETTINGS).exists():
        parser.error(f"{run} is no folder of a training: it has no {train.SETTINGS}")
    recorded = presets.read_json(run / train.SETTINGS)
    other = {
        name: recorded.get(name)
        for name in settings
        if name != "preset" and recorded.get(name) != settings[name]
    }
    if other:
        parser.error(f"{run} was trained by settings that are not the recipe's: {other}")


def smallest_weights(model, data, scratch):
    """A file of the model's weights, in half precision if that will do, its bits/dim and nats."""
    whole, half = (scratch / f"{kind}.weights.h5" for kind in ("whole", "half"))
    model.save_weights(whole)
    measured = evaluate.evaluate(model, data)
    in_half_precision(whole, half)
    model.load_weights(half)
    measured_in_half = evaluate.evaluate(model, data)
    if measured_in_half[0] - measured[0] < HALF_LOSS:
        return half, *measured_in_half
    model.load_weights(whole)
    return whole, *measured


def figures(model, bits, nats, metric):
    """The likelihood in bits/dim and nats, and by the `metric` that stands on the card."""
    scaled = {}
    if metric == "log_likelihood":  # as NICE's paper has it, of data in [0, 1]
        scaled = {metric: round(model.size * model.bits * math.log(2) - nats, 2)}
    measured = evaluate.metric_of(model)
    return {
        measured: round(bits, 4),
        "nats": round(nats, 3),
        **scaled,
        "metric": metric or (measured if model.is_image else "nats"),
    }


def of_first_examples(model, data):
    """Bits/dim of the bins' centres, without noise: what a test can check in seconds."""
    x, condition, _ = keras.utils.unpack_x_y_sample_weight(next(iter(data)))
    condition = condition[:FIRST] if model.is_conditional else None
    log_prob = model.log_prob(x[:FIRST], condition).numpy()
    bits = -float(log_prob.mean()) / (model.size * math.log(2))
    return {f"first_{FIRST}_bits_per_dim": round(bits, 4)}


def picture(model, data, guidance=0.0):
    """64 images, small ones enlarged, or many points; under the first of float conditions."""
    condition = None
    if model.condition_shape is not None:
        _, conditions = next(iter(data))
        condition = conditions[0]
    if not model.is_image:
        return sample.picture(model, n=10_000, condition=condition)
    zoom = max(2, 56 // model.input_shape[0])
    return sample.picture(model, condition=condition, zoom=zoom, guidance=guidance)


def in_half_precision(source, target):
    """Copies a weights file with float16 for float32, compressed."""
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


def time_of(log, gpus=0):
    """The epochs that a training took, its minutes, and those of all GPUs or CPU cores."""
    epochs = train.column(log, "epoch")
    if not epochs:
        raise ValueError(f"{log} must have a row for each epoch. Received: none")
    minutes, core_minutes = (
        round(sum(train.column(log, name)) / 60, 1) for name in ("seconds", "cpu_seconds")
    )
    return {
        "epochs": len(set(epochs)),  # one that was stopped may be there twice
        "training_minutes": minutes,
        **(
            {"training_gpu_minutes": round(gpus * minutes, 1)}
            if gpus
            else {"training_core_minutes": core_minutes}
        ),
    }


def compressed_sizes(model, data):
    """Bits/dim of all images in one picture, as PNG and as lossless WebP."""
    if not model.is_image or model.noise:  # whose bits/dim are not of the images themselves
        return {}
    batches = [keras.utils.unpack_x_y_sample_weight(batch)[0].numpy() for batch in data]
    image = Image.fromarray(pictures.grid(np.concatenate(batches), line=0).squeeze())
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
