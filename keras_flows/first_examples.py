"""The examples, of whatever `fit` takes, that a model adapts to before it trains."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf


class FirstExamples(NamedTuple):
    """Some examples, eager, and how many the first batch had."""

    x: tf.Tensor
    y: tf.Tensor | None
    batch_size: int


def read(x, y, count, batch_size=None, seed=None):
    """The first `count` examples of `x`, which is opened once.

    Args:
        x: a tf.data.Dataset, a PyDataset or an array.
        y: of an array, what belongs to its rows, or None.
        count: how many, at least 1.
        batch_size: that `fit` will divide an array by.
        seed: draws the rows of an array that are read; None for the first.
    """
    xs, ys, sizes = [], [], []
    for batch in _batches(x, y, count, seed):
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


def _batches(x, y, count, seed):
    if isinstance(x, tf.data.Dataset):
        return iter(x)
    if isinstance(x, keras.utils.PyDataset):
        return (x[i] for i in range(x.num_batches or 1))
    if hasattr(x, "shape"):
        rows = slice(count)
        if seed is not None and len(x) > count:
            rows = np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))
        return iter([tuple(None if part is None else np.asarray(part)[rows] for part in (x, y))])
    raise TypeError(
        "Data must be a tf.data.Dataset, an array or a keras.utils.PyDataset. "
        f"Received: {type(x).__name__}"
    )
