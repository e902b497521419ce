"""The first examples of whatever `fit` takes, which a model adapts to before it trains."""

from typing import NamedTuple

import keras
import tensorflow as tf


class FirstExamples(NamedTuple):
    """Some examples, eager, and how many the first batch had."""

    x: tf.Tensor
    y: tf.Tensor | None
    batch_size: int


def read(x, y, count, batch_size=None):
    """The first `count` examples of `x`, which is opened once.

    Args:
        x: a tf.data.Dataset, a PyDataset or an array.
        y: of an array, what belongs to its rows, or None.
        count: how many, at least 1.
        batch_size: that `fit` will divide an array by.
    """
    xs, ys, sizes = [], [], []
    for batch in _batches(x, y, count):
        batch_x, batch_y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        xs.append(tf.convert_to_tensor(batch_x))
        if batch_y is not None:
            ys.append(tf.convert_to_tensor(batch_y))
        sizes.append(len(batch_x))
        if sum(sizes) >= count:
            break
    if not sum(sizes):
        raise ValueError("The dataset has no examples.")
    first = min(batch_size or 32, len(x)) if hasattr(x, "shape") else sizes[0]
    ys = tf.concat(ys, axis=0)[:count] if ys else None
    return FirstExamples(tf.concat(xs, axis=0)[:count], ys, first)


def _batches(x, y, count):
    if isinstance(x, tf.data.Dataset):
        return iter(x)
    if isinstance(x, keras.utils.PyDataset):
        return (x[i] for i in range(x.num_batches or 1))
    if hasattr(x, "shape"):
        return iter([(x[:count], None if y is None else y[:count])])
    raise TypeError(
        "Data must be a tf.data.Dataset, an array or a keras.utils.PyDataset. "
        f"Received: {type(x).__name__}"
    )
