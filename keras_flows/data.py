"""From the name of a TFDS dataset to batches that a Flow takes."""

import contextlib
import difflib
import io
import math
import os
import random
import re
from multiprocessing.pool import ThreadPool

import numpy as np
import tensorflow as tf
from absl import logging

from keras_flows.arguments import is_integer, require

_MEMORY_LIMIT = 2 * 2**30  # bytes of decoded examples, for the cache and for the shuffle buffer
_NETWORK_TIMEOUT = 5  # seconds


def load(name, *, split, batch_size, data_dir=None, labels=False, seed=None):
    """Loads a split of a TFDS dataset, cached, shuffled if it is for training, and batched.

    Images are the feature `image`, vectors the feature `features`, labels the feature `label` and
    other conditions, of a dataset without labels, the feature `condition`. A dataset that is not
    prepared yet is downloaded by TFDS. `digits` (8 x 8 handwritten digits), `moons` (points in the
    plane) and `two_moons_simulations` (parameters and what was simulated from them) come with the
    package and need no network.

    Splits whose name begins with "train" are shuffled anew at each iteration, others keep their
    order. Decoded splits of up to 2 GiB are cached in memory by the first pass; larger ones
    are read again at each iteration, and shuffled through a buffer of 2 GiB.

    Args:
        name: `dataset[/config][:version]`, such as "cifar10" or "imagenet_resized/32x32".
        split: "train", "test", or a slice in TFDS' notation, such as "train[:90%]".
        batch_size: examples per batch, over all replicas. The last batch may be smaller.
        data_dir: directory that holds prepared datasets; only those of the package are prepared
            in it. None is TFDS' own: `TFDS_DATA_DIR`, or ~/tensorflow_datasets.
        labels: True for pairs (x, label), or (x, condition).
        seed: integer; the same seed gives the same order in epoch 1, in epoch 2, and so on.
            (TensorFlow mixes in its global seed, if there is one.) With several workers, give
            one: each reads its part of what should be the same order.

    Returns:
        A `tf.data.Dataset` of x or (x, label), of known cardinality: images are uint8
        (batch, H, W, C), vectors and conditions float32 (batch, D), labels int32 (batch,).

    Raises:
        ValueError: for an unknown name or split, a bad argument, a dataset without labels or
            without images of one size, or a `data_dir` that does not hold the dataset.
        ConnectionError: when the dataset must be downloaded and its source does not answer.

    Example:

    ```python
    train = keras_flows.data.load("moons", split="train[:90%]", batch_size=256)
    next(iter(train))                            # (256, 2)
    ```
    """
    import tensorflow_datasets as tfds  # not with the package: it takes seconds

    valid = is_integer(batch_size) and batch_size >= 1
    _expect(valid, "a positive integer", batch_size=batch_size)
    _expect(seed is None or is_integer(seed), "an integer or None", seed=seed)
    if data_dir is not None:
        valid = isinstance(data_dir, str | os.PathLike)
        valid = valid and tf.io.gfile.isdir(os.path.expanduser(data_dir))
        _expect(valid, "an existing directory, or None for TFDS' own", data_dir=data_dir)
        data_dir = os.path.expanduser(data_dir)

    builder = _builder(name, data_dir)
    specs = builder.info.features.get_tensor_info()
    x_key = "image" if _is_array(specs.get("image"), 3, np.uint8) else "features"
    valid = x_key == "image" or _is_array(specs.get("features"), 1, np.number)
    rule = "a dataset with `image`, uint8 of one fixed shape (H, W, C), or `features`, numbers (D,)"
    _expect(valid, f"{rule}; this one has {specs}", name=name)
    y_key = "label" if _is_array(specs.get("label"), 0, np.integer) else "condition"
    valid = not labels or y_key == "label" or _is_array(specs.get(y_key), 1, np.number)
    _expect(valid, f"False, as {name!r} has no integer feature `label`", labels=labels)
    if not builder.info.splits:
        _prepare(name, builder, data_dir)
        builder = _builder(name, data_dir)  # which reads what is on the disk now
    splits = builder.info.splits
    try:
        num_examples = splits[split].num_examples if isinstance(split, str) else 0
    except ValueError:
        num_examples = 0
    _expect(num_examples, f"one of {list(splits)} or a slice that is not empty", split=split)

    with _quiet():
        data = builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding([x_key, y_key] if labels else [x_key]),
            # one file after the other, which is the order of the split
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    num_bytes = math.prod(specs[x_key].shape) * np.dtype(specs[x_key].np_dtype).itemsize
    if num_examples * num_bytes <= _MEMORY_LIMIT:
        data = data.cache()
    if split.startswith("train"):
        data, epoch = _shuffled(data, min(num_examples, 1 + _MEMORY_LIMIT // num_bytes), seed)

    def convert(batch):
        x = batch["image"] if x_key == "image" else tf.cast(batch["features"], tf.float32)
        y_dtype = tf.int32 if y_key == "label" else tf.float32
        return (x, tf.cast(batch[y_key], y_dtype)) if labels else x

    data = data.batch(batch_size).map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = data.prefetch(tf.data.AUTOTUNE).with_options(options)
    if split.startswith("train"):
        data.epoch = epoch  # which `Flow.fit` sets
    return data


def _shuffled(data, buffer_size, seed):
    """`data` in an order that is a pure function of `seed` and a variable, the epoch; and both.

    A pass reads the variable when it starts, and counts it up for the next.
    """
    seed = random.randrange(2**31) if seed is None else seed
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def one_pass(_):
        # Of this graph alone: at a global seed of 0, `shuffle` takes no tensor.
        tf.random.set_seed(1)
        key = tf.stack([tf.constant(seed, tf.int64), epoch.assign_add(1)])
        order = tf.random.stateless_uniform((), key, maxval=tf.int64.max, dtype=tf.int64)
        return data.shuffle(buffer_size, seed=order, reshuffle_each_iteration=False)

    shuffled = tf.data.Dataset.range(1).flat_map(one_pass)
    known = tf.data.experimental.assert_cardinality(data.cardinality())
    return shuffled.apply(known), epoch


def _expect(valid, rule, **argument):
    (name,) = argument
    require(valid, f"Received an invalid value for argument `{name}`, expected {rule}", **argument)


def _is_array(spec, rank, dtype):
    shape = getattr(spec, "shape", (None,))  # neither None nor a nested feature has one
    return len(shape) == rank and None not in shape and np.issubdtype(spec.np_dtype, dtype)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds

    from keras_flows.datasets import EMBEDDED

    # The pattern has no namespaces: for "huggingface:mnist" TFDS would go on the network.
    valid = isinstance(name, str) and re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name)
    _expect(valid, "a TFDS dataset's name, `dataset[/config][:version]`", name=name)
    if name in EMBEDDED:
        return EMBEDDED[name](data_dir=data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = [*EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(re.split("[/:]", name)[0].lower(), known)
        rule = f"one of {[*EMBEDDED]} or of `tensorflow_datasets.list_builders()`; near: {close}"
    except (ValueError, AssertionError) as error:
        rule = f"a config and a version that the dataset has ({error})"
    _expect(False, rule, name=name)


def _prepare(name, builder, data_dir):
    from keras_flows.datasets import EMBEDDED

    embedded = name in EMBEDDED
    if not embedded:
        recipe = f"`tensorflow_datasets.load({name!r}, data_dir=DIR)`"
        rule = (
            f"a directory that holds the dataset (there is no {builder.data_dir}): prepare it with "
            f"{recipe}, or leave `data_dir` out to download it to TFDS' own directory"
        )
        _expect(data_dir is None, rule, data_dir=data_dir)
        _require_network(name, builder, recipe)
    # TFDS draws the name of its temporary directory from `random`: two workers seeded alike would
    # share it. Besides, the caller's random state is not ours to advance.
    state = random.getstate()
    random.seed()
    try:
        with _quiet() if embedded else contextlib.nullcontext():
            builder.download_and_prepare()
    except Exception:
        if not _builder(name, data_dir).info.splits:  # or else another process was faster
            raise
    finally:
        random.setstate(state)


def _require_network(name, builder, recipe):
    """Asks the dataset's source for an answer, because TFDS, offline, retries for minutes."""
    import requests

    for url in [url for url in builder.url_infos or () if url.startswith("http")][:1]:
        try:
            with ThreadPool(1) as pool:  # because looking up a host has no timeout of its own
                answer = pool.apply_async(requests.head, [url], {"timeout": _NETWORK_TIMEOUT})
                answer.get(_NETWORK_TIMEOUT)
        except Exception as error:
            raise ConnectionError(
                f"The dataset {name!r} is not in {builder.data_dir}, and its source {url} does not "
                f"answer. On a machine with a network run {recipe}, copy DIR here, and pass "
                f"`data_dir=DIR`."
            ) from error


@contextlib.contextmanager
def _quiet():
    """Without TFDS' banner, its progress bars and its warnings about its own deprecations."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
