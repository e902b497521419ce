"""Latency, throughput and size of what is served, which benchmark.py --serving prints.

For each signature: ours, as a server runs it; the same call of the model in Python; and a naive
export, a `keras.export.ExportArchive` that tracks the model, with its methods as endpoints.
(`keras.Model.export` would give only `model(x)`, and a Flow's `export` is ours.)
"""

import os
import statistics
import time

BATCH_SIZES = (1, 8, 64)
TEMPERATURE = 0.7


def measure(depth, folder, rounds):
    """{"size": bytes by way, "calls": {signature: {batch size: {way: seconds}}}}."""
    import numpy as np
    import tensorflow as tf
    from benchmark import LEVELS, SIZE, WIDTH

    from keras_flows import zoo

    model = zoo.Glow((SIZE, SIZE, 3), levels=LEVELS, depth=depth, width=WIDTH)
    images = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), SIZE, SIZE, 3), "uint8")
    model.adapt(images)
    latents = model.encode(images).numpy()

    paths = {"keras_flows": f"{folder}/ours", "naive export": f"{folder}/naive"}
    model.export(paths["keras_flows"])
    naive_export(model, paths["naive export"])
    loaded = {way: tf.saved_model.load(path) for way, path in paths.items()}
    figures = {"size": {way: size_on_disk(path) for way, path in paths.items()}, "calls": {}}
    for signature, python in python_calls(model).items():
        figures["calls"][signature] = {}
        for batch_size in BATCH_SIZES:
            inputs = request(signature, images[:batch_size], latents[:batch_size])
            calls = {way: loaded[way].signatures[signature] for way in loaded}
            calls["in Python"] = python
            figures["calls"][signature][batch_size] = in_turns(calls, inputs, rounds)
    return figures


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


def in_turns(calls, inputs, rounds):
    """{name: median seconds and all}; one call each in every round, each time another first."""
    seconds, names = {name: [] for name in calls}, list(calls)
    for i in range(rounds + 2):  # two that do not count: the first traces
        names.append(names.pop(0))
        for name in names:
            start = time.perf_counter()
            for value in calls[name](**inputs).values():
                value.numpy()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: {"median": statistics.median(all), "all": all} for name, all in seconds.items()}


def size_on_disk(path):
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def table(figures, depth):
    """The results in Markdown."""
    (*_, of_one_batch) = figures["calls"]["log_prob"].values()
    ways = list(of_one_batch)
    lines = [
        f"Glow, depth {depth} | batch | " + " | ".join(ways) + " | examples / s",
        "--- | ---: | " + " | ".join(["---:"] * len(ways)) + " | ---:",
    ]
    for signature, batches in figures["calls"].items():
        for batch_size, times in batches.items():
            ours = times["keras_flows"]["median"]
            medians = [times[way]["median"] for way in ways]
            cells = [f"{1000 * median:.1f} ms ({median / ours:.2f})" for median in medians]
            lines.append(
                f"`{signature}` | {batch_size} | "
                + " | ".join(cells)
                + f" | {batch_size / ours:.0f}"
            )
    sizes = [figures["size"].get(way) for way in ways]
    cells = [f"{size / 2**20:.1f} MiB" if size else "-" for size in sizes]
    lines.append("on disk | - | " + " | ".join(cells) + " | -")
    return "\n".join(f"| {line} |" for line in lines)
