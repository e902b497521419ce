"""Trains models on replicas, in a process of its own, as test_distribute.py asks.

    replicas.py STRATEGY OUTPUT CASE ...

STRATEGY is none, multi_worker, or the number of logical CPU devices to mirror on. OUTPUT-CASE.npz
gets each case's losses, log-likelihoods and weights; several workers write OUTPUT-0-CASE.npz, ...
"""

import contextlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf

STRATEGY, OUTPUT, *CASES = sys.argv[1:]

# A strategy comes before all that computes.
if STRATEGY == "multi_worker":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    OUTPUT += f"-{json.loads(os.environ['TF_CONFIG'])['task']['index']}"
elif STRATEGY == "none":
    strategy = tf.distribute.get_strategy()
else:
    (cpu,) = tf.config.list_physical_devices("CPU")
    count = int(STRATEGY)
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * (count + 1)
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])

import keras  # noqa: E402

from keras_flows import (  # noqa: E402
    Flow,
    dequantization,
    distribute,
    layers,
    networks,
    optimizers,
    zoo,
)

VECTOR, IMAGE = (4,), (4, 4, 1)


def one_coupling():
    """Of RealNVP: all that takes the statistics of a batch, and half as long to trace."""
    network = networks.ResNet(4, 1, masked=True, magnitude_regularizer="l2")
    output = networks.WeightNormConv2D(2, 1)
    coupling = layers.AffineCoupling(
        network, partition="checkerboard", scale="tanh", output_layer=output, bound_regularizer="l2"
    )
    norm = layers.BatchNorm(partition="checkerboard")
    return Flow(layers.Chain([layers.Rescale(1 / 256), coupling, norm, layers.Flatten()]), IMAGE)


MODELS = {
    "one_coupling": one_coupling,
    "nice_vectors": lambda: zoo.NICE(VECTOR, depth=2, width=8, num_hidden=1),
    "nice_of_features": lambda: zoo.NICE(
        VECTOR,
        depth=2,
        width=8,
        num_hidden=1,
        condition_shape=(3,),
        condition_network=networks.MLP(4, 1),
    ),
    "nice_by_muon": lambda: zoo.NICE(VECTOR, depth=3, width=8, num_hidden=2),
    "nice_images": lambda: zoo.NICE(IMAGE, depth=2, width=8, num_hidden=1),
    "real_nvp_vectors": lambda: zoo.RealNVP(
        VECTOR, depth=6, width=8, num_blocks=1, batch_norm=True
    ),
    "real_nvp_images": lambda: zoo.RealNVP(IMAGE, levels=1, depth=1, width=4, num_blocks=1),
    "glow_vectors": lambda: zoo.Glow(VECTOR, depth=3, width=8),
    "glow_images": lambda: zoo.Glow(IMAGE, levels=1, depth=3, width=4),
    "glow_variational": lambda: zoo.Glow(
        IMAGE, levels=1, depth=2, width=4, dequantization="variational"
    ),
    "jet_images": lambda: zoo.Jet(IMAGE, depth=3, width=4, num_heads=2, reversible=True),
    "tarflow_images": lambda: zoo.TarFlow(
        IMAGE, depth=3, width=4, num_layers=1, num_heads=2, num_classes=2, label_dropout=0.5
    ),
    # In which oneDNN computes, to which empty batches are strange.
    "real_nvp_images_float32": lambda: zoo.RealNVP(
        IMAGE, levels=1, depth=1, width=4, num_blocks=1, dtype="float32"
    ),
    "glow_images_float32": lambda: zoo.Glow(IMAGE, levels=1, depth=2, width=4, dtype="float32"),
    "glow_reversible_float32": lambda: zoo.Glow(
        IMAGE, levels=1, depth=2, width=4, reversible=True, dtype="float32"
    ),
    "glow_reversible": lambda: zoo.Glow(
        IMAGE, levels=2, depth=3, width=4, reversible=True, num_classes=2, classifier_weight=0.1
    ),
}
# A first batch that two replicas cannot share evenly; a last one of one example.
EXAMPLES, BATCH = 15, 7
POINTS = np.random.default_rng(0).normal(size=(8, *VECTOR))

if STRATEGY not in ("none", "multi_worker"):
    with strategy.scope():
        model = zoo.NICE(IMAGE, depth=2, width=8, num_hidden=1)
        model.compile()
    images = np.full((2, *IMAGE), 200, "uint8")  # the same for each of two replicas
    model.adapt(images)
    model.evaluate(images, batch_size=2, verbose=0)
    totals = strategy.experimental_local_results(model.metrics[1].variables[0].value)
    np.savez(f"{OUTPUT}-noise", *totals)


def middle(shape, dtype, *_):
    return tf.fill(shape, tf.cast(0.5, dtype))


# Noise is a function of the replica.
dequantization.uniform_noise = dequantization.normal_noise = middle
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")

if STRATEGY == "multi_worker":
    with strategy.scope():
        layer = layers.ActNorm()
        mine = np.random.default_rng(int(OUTPUT[-1])).normal(3.0, 2.0, (50, 4))
        layer.adapt(mine)
    np.savez(f"{OUTPUT}-adapt", mine, *layer.get_weights())


class BatchLogs(keras.callbacks.Callback):
    """What the progress bar shows."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


for case in CASES:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = MODELS[case]()
        kind = optimizers.Muon if case == "nice_by_muon" else keras.optimizers.SGD
        # One device alone is not traced: so few steps are sooner taken eagerly.
        model.compile(kind(1e-3, global_clipnorm=1.0), run_eagerly=STRATEGY == "none")
    rng = np.random.default_rng(0)
    if model.is_image:
        x = rng.integers(0, 256, (EXAMPLES, *model.input_shape), "uint8")
    else:
        x = rng.normal(size=(EXAMPLES, *model.input_shape))
    condition = np.arange(EXAMPLES) % 2
    if model.num_classes is None:
        condition = rng.normal(size=(EXAMPLES, 3))
    data = (x, condition) if model.is_conditional else x
    batches = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    shown = BatchLogs()
    results = model.fit(batches, epochs=3, verbose=0, callbacks=[shown]).history
    results["shown"] = shown.losses
    if case.startswith("nice"):  # which is traced soonest
        evaluated = model.evaluate(batches, verbose=0, return_dict=True)
        results.update({f"evaluated_{name}": value for name, value in evaluated.items()})
        results.update(model.predict(batches, verbose=0))
    # Of each replica: none may have gone its own way.
    weights = [
        np.stack([np.asarray(value) for value in strategy.experimental_local_results(v.value)])
        for v in model.weights
    ]
    np.savez(f"{OUTPUT}-{case}", *weights, **results)

if STRATEGY == "multi_worker":  # each names the same files, and the chief writes them
    model.save(f"{sys.argv[2]}.keras")
    model.export(f"{sys.argv[2]}-exported")

# How often fit opens a dataset, until Keras does.

opened = []


def generate():
    opened.append(len(opened))
    yield from POINTS


class StopAtOnce(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise KeyboardInterrupt


if STRATEGY not in ("none", "multi_worker"):
    with strategy.scope():
        model = MODELS["nice_vectors"]()
        model.compile("sgd")
    signature = tf.TensorSpec(VECTOR, tf.float64)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).batch(4)
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(dataset, verbose=0, callbacks=[StopAtOnce()])
    np.savez(f"{OUTPUT}-opened", len(opened))

# What DistributedModel mends in Keras, and whether Keras still needs it.


class Unbuilt(keras.Sequential):
    def _maybe_symbolic_build(self, **kwargs):
        pass


def error(model_class):
    """What goes wrong in a fit of Keras' own."""
    with strategy.scope():
        model = model_class([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.zeros((EXAMPLES, 4))
    try:
        model.fit(tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(BATCH), verbose=0)
    except Exception as error:
        return str(error)
    return ""


def clipped_before_summed():
    """The sum of the replicas' gradients, 10 and -9, as Keras' own clips them to 1."""
    with strategy.scope():
        weight = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(1.0, clipnorm=1.0)
        optimizer.build([weight])

    def step():
        optimizer.apply([tf.constant([10.0, -9.0])[distribute.replica_id() % 2]])

    strategy.run(step)
    return -np.asarray(strategy.experimental_local_results(weight.value)[0])


if STRATEGY != "none":
    np.savez(
        f"{OUTPUT}-stock",
        symbolic_build=error(keras.Sequential),
        scalar_logs=error(Unbuilt),
        clipped=clipped_before_summed() if STRATEGY == "2" else np.nan,
    )


# A second strategy, as when a notebook's cell runs again.


class StopAfterABatch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def losses_on(strategy, size, *callbacks):
    with strategy.scope():
        model = Flow(layers.DiagonalScaling(), (size,))
        model.compile("sgd")
    try:
        x = np.tile([[1.0], [-1.0]], (2, size))
        return model.fit(x, batch_size=4, verbose=0, callbacks=callbacks).history["loss"]
    except KeyboardInterrupt:
        return []


if STRATEGY == "2":
    results = {
        "first": losses_on(strategy, 2),
        "interrupted": losses_on(strategy, 2, StopAfterABatch()),
        "other_shape": losses_on(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 3),
        "other_devices": losses_on(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"]), 4),
        "first_again": losses_on(strategy, 5),
    }
    np.savez(f"{OUTPUT}-strategies", **results)

    with strategy.scope():
        model = Flow(layers.DiagonalScaling(), (2,))
        model.compile(keras.optimizers.AdamW(weight_decay=0.1))  # whose decay needs no gradient
        model.bijection.log_scale.assign([1.0, 1.0])
    x = np.tile([[1.0], [-1.0]], (2, 2))
    model.adapt(x)
    x[3] = np.nan  # on the second replica alone
    try:
        model.fit(tf.data.Dataset.from_tensor_slices(x).batch(4), verbose=0)
        message = ""
    except tf.errors.InvalidArgumentError as error:
        message = str(error)
    np.savez(
        f"{OUTPUT}-bad",
        *strategy.experimental_local_results(model.bijection.log_scale.value),
        *strategy.experimental_local_results(model.optimizer.iterations.value),
        message=message,
    )

# What is refused before training starts.


def refused(model=None, *, optimizer="sgd", batch_size=4, **options):
    """The error of a fit in the strategy's scope, by default of what is made there, too."""
    try:
        with strategy.scope():
            model = model or MODELS["nice_vectors"]()
            model.compile(optimizer, **options)
            model.fit(POINTS, batch_size=batch_size, verbose=0)
    except ValueError as error:
        return str(error)
    return ""


if strategy.num_replicas_in_sync > 1:
    bijection = layers.AdditiveCoupling(networks.MLP(4))
    bijection.build((None, *VECTOR))
    with strategy.scope():
        around = Flow(bijection, VECTOR)
        accumulating = keras.optimizers.SGD(gradient_accumulation_steps=2)
        overwriting = keras.optimizers.SGD(use_ema=True, ema_overwrite_frequency=2)
    np.savez(
        f"{OUTPUT}-refused",
        model=refused(MODELS["nice_vectors"]()),
        bijection=refused(around),
        optimizer=refused(optimizer=keras.optimizers.SGD()),
        batch=refused(batch_size=1),
        jit_compile=refused(jit_compile=True),
        steps_per_execution=refused(steps_per_execution=2),
        gradient_accumulation_steps=refused(optimizer=accumulating),
        ema_overwrite_frequency=refused(optimizer=overwriting),
    )

if STRATEGY == "multi_worker":
    # A worker that ends takes along what another may still be fetching from it.
    workers = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
    lasts = [pathlib.Path(f"{sys.argv[2]}-{i}-refused.npz") for i in range(len(workers))]
    deadline = time.monotonic() + 60
    while not all(last.exists() for last in lasts) and time.monotonic() < deadline:
        time.sleep(0.1)
