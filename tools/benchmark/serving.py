"""Latency, throughput and size of what is served.

For each signature: ours, as a server runs it; the same call of the model in Python; and a naive
export, a `keras.export.ExportArchive` that tracks the model, with its methods as endpoints.
(`keras.Model.export` would give only `model(x)`, and a Flow's `export` is ours.)
"""

import os
import tempfile

from ours import glow_model
from sizes import random_images
from turns import in_turns, markdown, seconds_of

BATCH_SIZES = (1, 8, 64)
TEMPERATURE = 0.7


def measure(depth, rounds):
    """{"size": bytes by way, "calls": {signature: {batch size: {way: seconds}}}}."""
    import tensorflow as tf

    model = glow_model(depth)
    images = random_images(max(BATCH_SIZES))
    model.adapt(images)
    latents = model.encode(images).numpy()

    with tempfile.TemporaryDirectory() as folder:
        paths = {"keras_flows": f"{folder}/ours", "naive export": f"{folder}/naive"}
        model.export(paths["keras_flows"])
        naive_export(model, paths["naive export"])
        loaded = {way: tf.saved_model.load(path) for way, path in paths.items()}
        sizes = {way: size_on_disk(path) for way, path in paths.items()}
    figures = {"size": sizes, "calls": {}}
    for signature, python in python_calls(model).items():
        ways = {way: saved.signatures[signature] for way, saved in loaded.items()}
        ways["in Python"] = python
        figures["calls"][signature] = {}
        for batch_size in BATCH_SIZES:
            inputs = request(signature, images[:batch_size], latents[:batch_size])
            calls = {way: timed(call, inputs) for way, call in ways.items()}
            figures["calls"][signature][batch_size] = in_turns(calls, rounds)
    return figures


def timed(call, inputs):
    """A function that returns the seconds until all outputs are there."""

    def outputs():
        for value in call(**inputs).values():
            value.numpy()

    return lambda: seconds_of(outputs)


def request(signature, images, latents):
    """The tensors of a request, by name."""
    import tensorflow as tf

    if signature == "decode":
        return {"z": tf.constant(latents)}
    if signature == "sample":
        count = len(images)
        seed = tf.stack([tf.ones(count, tf.int32), tf.range(count)], axis=1)
        return {"seed": seed, "temperature": tf.fill([count], TEMPERATURE)}
    return {"x": tf.constant(images)}


def python_calls(model):
    """{signature: the same by the model's methods}."""
    return {
        "serving_default": lambda x: model(x),
        "log_prob": lambda x: {"log_prob": model.log_prob(x)},
        "encode": lambda x: {"latent": model.encode(x)},
        "decode": lambda z: {"x": model.decode(z)},
        "sample": lambda seed, temperature: {
            "x": model.sample(len(seed), temperature=TEMPERATURE, seed=1)
        },
    }


def naive_export(model, path):
    import keras
    import tensorflow as tf

    x = tf.TensorSpec((None, *model.input_shape), tf.uint8, name="x")
    z = tf.TensorSpec((None, model.size), tf.float32, name="z")
    seed = tf.TensorSpec((None, 2), tf.int32, name="seed")
    temperature = tf.TensorSpec((None,), tf.float32, name="temperature")

    def forward(x):
        latent, log_prob = model.latent_and_log_prob(model.dequantize(x))
        return {"latent": latent, "log_prob": log_prob}

    endpoints = {
        "serving_default": (forward, x),
        "log_prob": (lambda x: {"log_prob": forward(x)["log_prob"]}, x),
        "encode": (lambda x: {"latent": forward(x)["latent"]}, x),
        "decode": (lambda z: {"x": model.data_of(z)}, z),
        "sample": (
            lambda seed, temperature: {"x": model.data_of(model.latents_of(seed, temperature))},
            seed,
            temperature,
        ),
    }
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, *arguments) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=arguments)
    archive.write_out(path, verbose=False)


def size_on_disk(path):
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def table(figures, depth):
    """The results of one depth in Markdown."""
    (*_, of_one_batch) = figures["calls"]["log_prob"].values()
    ways = list(of_one_batch)
    rows = [
        [f"Glow, depth {depth}", "batch", *ways, "examples / s"],
        ["---", "---:", *["---:" for _ in ways], "---:"],
    ]
    for signature, batches in figures["calls"].items():
        for batch_size, times in batches.items():
            ours = times["keras_flows"]["median"]
            medians = [times[way]["median"] for way in ways]
            cells = [f"{1000 * median:.1f} ms ({median / ours:.2f})" for median in medians]
            rows.append([f"`{signature}`", batch_size, *cells, f"{batch_size / ours:.0f}"])
    sizes = [figures["size"].get(way) for way in ways]
    cells = [f"{size / 2**20:.1f} MiB" if size else "-" for size in sizes]
    rows.append(["on disk", "-", *cells, "-"])
    return markdown(rows)
