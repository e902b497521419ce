#!/usr/bin/env python
"""Predicts what it takes to train the papers' configurations on GPUs, from counted operations.

    tools/scale.py                       # all presets without weights
    tools/scale.py glow_paper_cifar10

The formulas, and what a GPU said of one, are in docs/scale.md.
"""

import argparse
import math
from typing import NamedTuple

import tensorflow as tf

import keras_flows
from keras_flows import presets
from keras_flows.private import flatten_layers

# The H100 SXM's data sheet: dense FLOP/s in TF32, bytes/s of memory and, each way, of NVLink; and
# 400 Gbit/s for each GPU between machines of eight.
PEAK, MEMORY, WITHIN, BETWEEN = 495e12, 3.35e12, 450e9, 50e9
# Guesses: the parts of peak and bandwidth that are reached, and seconds to start an operation.
PEAK_REACHED, MEMORY_REACHED, START = 0.4, 0.7, 4e-6

PRODUCTS = ("Conv2D", "MatMul", "BatchMatMulV2")
# They move nothing, or what is small.
FREE = ("Const", "Identity", "Placeholder", "ReadVariableOp", "Reshape", "Shape", "StridedSlice")
HEAD = ("preset", "GFLOP", "GB", "operations", "images a GPU", "GB a GPU", "1 GPU", "8", "64")


class Count(NamedTuple):
    """Of a forward pass: FLOP of its products; bytes read and written, and written; operations."""

    flops: float = 0
    moved: float = 0
    kept: float = 0  # what is written, which a gradient may need
    operations: float = 0

    def plus(self, other, times=1):
        return Count(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    papers = [name for name, data in keras_flows.Flow.presets.items() if "weights" not in data]
    parser.add_argument(
        "presets", nargs="*", metavar="PRESET", help="by default all without weights"
    )
    options = parser.parse_args()
    for name in options.presets:
        if name not in papers:
            parser.error(f"PRESET must be one without weights. Received: {name}")
    for cells in (HEAD, ["---"] * len(HEAD)):
        print(f"| {' | '.join(cells)} |")
    for name in options.presets or papers:
        print(f"| {' | '.join(row(name))} |", flush=True)


def row(name):
    recipe = presets.read(name, presets.RECIPE)
    model = keras_flows.Flow.from_preset(name, load_weights=False)
    batch = max(1, recipe["batch_size"] // 8)  # on each GPU: the paper's, on eight
    weights = sum(math.prod(weight.shape) * 4 for weight in model.trainable_weights)
    forward = count_forward(model, batch)
    again = is_computed_again(model)
    return (
        f"`{name}`",
        f"{forward.flops / batch / 1e9:,.2f}",
        f"{forward.moved / batch / 1e9:,.2f}",
        f"{forward.operations:,.0f}",
        f"{batch}",
        f"{memory(forward, weights, model) / 1e9:,.1f}",
        *(f"{gpus * batch / seconds(forward, weights, gpus, again):,.0f}" for gpus in (1, 8, 64)),
    )


def seconds(forward, weights, gpus, again):
    """Of a step of training on so many GPUs, each of which has `weights` bytes of them."""
    passes = 4 if again else 3  # the gradient is two of them, by inputs and by weights
    compute = forward.flops / (PEAK_REACHED * PEAK)
    move = forward.moved / (MEMORY_REACHED * MEMORY)
    start = forward.operations * START
    link = WITHIN if gpus <= 8 else BETWEEN
    reduce = 2 * weights * (gpus - 1) / gpus / link
    return passes * max(compute + move, start) + reduce


def memory(forward, weights, model):
    """Bytes: weights, their gradients, two moments of Adam; and what the gradient remembers."""
    depth = max((layer.depth for layer in repeats(model)), default=1)
    part = 2 / depth if is_computed_again(model) else 1  # two steps at a time
    return 4 * weights + part * forward.kept


def is_computed_again(model):
    """Whether the gradient computes the steps again, instead of remembering them."""
    loops = repeats(model)
    return any(loop.reversible for loop in loops) or not all(
        getattr(layer, "inverts_cheaply", True)
        for loop in loops
        for layer in flatten_layers(loop.step)
    )


def repeats(model):
    layers = flatten_layers(model)
    return [layer for layer in layers if isinstance(layer, keras_flows.layers.Repeat)]


def count_forward(model, batch):
    """The `Count` of a batch's density."""
    function = tf.function(model.latent_and_log_prob, autograph=False)
    x = tf.TensorSpec((batch, *model.input_shape), model.compute_dtype)
    labels = [tf.TensorSpec((batch,), "int32")] if model.num_classes else []
    return count(function.get_concrete_function(x, *labels).graph)


def count(graph):
    total = Count()
    for operation in graph.get_operations():
        if operation.type in ("While", "StatelessWhile"):
            body = graph._get_function(operation.get_attr("body").name).graph
            times = tf.get_static_value(operation.inputs[1])  # its maximum of iterations
            total = total.plus(count(body), int(times))
        elif operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            inner = graph._get_function(operation.get_attr("f").name).graph
            total = total.plus(count(inner))
        elif operation.type not in FREE and not operation.type.startswith("TensorList"):
            total = total.plus(count_operation(operation))
    return total


def count_operation(operation):
    written = [each for each in operation.outputs if each.dtype.is_floating]
    if not written:
        return Count()
    read = [each for each in operation.inputs if each.dtype.is_floating]
    flops = 0
    if operation.type in PRODUCTS:
        flops = 2 * size(written[0]) * length_of_sums(operation)
    kept = 4 * sum(map(size, written))
    return Count(flops, kept + 4 * sum(map(size, read)), kept, 1)


def length_of_sums(operation):
    """How many products each element of a product's output is the sum of."""
    first, second = operation.inputs
    if operation.type == "Conv2D":
        return math.prod(second.shape[:3])
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return first.shape[-2 if transposed else -1]


def size(tensor):
    return math.prod(tensor.shape)


if __name__ == "__main__":
    main()
