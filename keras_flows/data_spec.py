"""What a Flow takes as data, labels and latents, and what it says of the rest."""

import math
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows import data_frames, dequantization
from keras_flows.arguments import check_input_shape, check_integers, require

_PIXELS = "Images must be uint8, or hold whole numbers in 0..255, not scaled to [0, 1]."


class DataSpec:
    """The shape, units and condition of a Flow's data, and the checks of all that comes in.

    Images are uint8 (batch, height, width, channels), of which `bits` are modelled; vectors are
    floats (batch, D), without bits. With `num_classes`, integers (batch,) condition them.
    `columns` are the names of a data frame's, once it has been learned from.
    """

    columns = None

    def __init__(self, input_shape, bits=None, num_classes=None, dtype="float32"):
        check_input_shape(input_shape)
        self.shape = tuple(int(size) for size in input_shape)
        self.is_image = len(self.shape) == 3
        check_bits(bits, self.shape)
        if num_classes is not None:
            check_integers(1, num_classes=num_classes)
        self.bits = 8 if bits is None and self.is_image else bits
        self.num_classes = num_classes
        self.size = math.prod(self.shape)
        self.dtype = dtype

    # Data.

    def check_spec(self, x):
        """Shape and dtype of a batch, or of the TensorSpec or KerasTensor of one."""
        if isinstance(x, tuple | list | tf.RaggedTensor | tf.RaggedTensorSpec):
            raise TypeError(
                "Data must be one tensor: resize images before they are batched, and pass labels "
                f"as an argument of their own, `model(x, labels=y)`. Received: {type(x).__name__}"
            )
        shape, dtype = tf.TensorShape(x.shape), tf.as_dtype(x.dtype)
        if not shape.is_compatible_with((None, *self.shape)):
            hint = ""
            if self.is_image and shape[1:] == (self.shape[2], *self.shape[:2]):
                hint = ". Channels come last: pass `np.moveaxis(x, 1, -1)`"
            raise ValueError(
                f"Data must come in batches of shape (batch, {', '.join(map(str, self.shape))}). "
                f"Received: shape {shape}{hint}"
            )
        if not (dtype.is_floating or dtype.is_integer):
            kinds = "uint8 images" if self.is_image else "floating-point vectors"
            raise TypeError(f"Data must be {kinds}. Received: dtype {dtype.name}")

    def array(self, x):
        """x, or the numbers of a data frame, whose columns must be those of `columns`."""
        return data_frames.to_array(x, self.dtype, self.columns)

    def check(self, x):
        """The batch x, of known shape: `check_spec`, and values if eager.

        They are finite and, of images, whole numbers in 0..255. What TensorFlow does not know of a
        shape, as of a decoded PNG's, is this spec's; if it is not, the step fails when it runs.
        """
        self.check_spec(x)
        if not tf.executing_eagerly():
            return _of_shape(x, self.shape)
        values = np.asarray(x)
        if values.dtype == np.uint8 or not values.size:
            return x
        _check_finite("Data", values, self.dtype)
        if self.is_image:
            _check_pixels(values)
        return x

    def check_variation(self, rows, of):
        """Refuses `rows` of the source `of` that no density can be learned from.

        Those are vectors with features that do not vary (of an array all rows count: few do not
        tell whether a rare value is there), and images that `bits` leaves in one bin.
        """
        rows = np.asarray(rows)
        if self.is_image:
            _check_bins(rows, self.bits)
            return
        (constant,) = np.nonzero((rows == rows[:1]).all(axis=0))
        if len(constant) and hasattr(of, "shape"):
            columns = np.asarray(of)[:, constant]
            constant = constant[(columns == columns[:1]).all(axis=0)]
        if len(constant):
            named = ", ".join(f"feature {i} is constant ({rows[0, i]:.6g})" for i in constant[:10])
            raise ValueError(
                "Each feature must vary, else it has no density: leave it out, or give more rows. "
                f"Received: {named}{' and more' * (len(constant) > 10)}"
            )

    def check_source(self, x, y=None, *, read_again=False):
        """Shape and dtype of what fit, evaluate or predict got; nothing is read."""
        self.check_no_labels(y)
        if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset):
            spec = x.element_spec
            spec = spec[0] if isinstance(spec, tuple) else spec
            if not hasattr(spec, "shape"):
                raise TypeError(
                    "A dataset must have elements x or (x, label), tensors in batches: map it to "
                    "them, or use `keras_flows.data.load`. "
                    f"Received: elements {x.element_spec}"
                )
            self.check_spec(spec)
            _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(x.element_spec)
            check_no_weights(sample_weight)
            self.check_no_labels(y)
        elif hasattr(x, "__next__") and read_again:
            raise TypeError(
                "Data for fit must be readable more than once, as the model adapts to its first "
                "examples before it trains: a tf.data.Dataset, an array or a keras.utils.PyDataset."
                f" Received: a one-shot iterator, {type(x).__name__}"
            )
        elif hasattr(x, "dtype"):
            self.check_spec(x)

    def broken(self, x, labels):
        """Of a batch in a graph, whether it breaks what is asked of its values: {rule: bool}."""
        values, rules = tf.cast(x, self.dtype), {}
        if self.is_image and x.dtype != tf.uint8:
            rules[_PIXELS] = ~_valid_pixels(values)
        elif x.dtype.is_floating:
            rules["Data must be finite."] = ~tf.reduce_all(tf.math.is_finite(values))
        if labels is not None:
            rules[self._label_rule] = self._has_bad_labels(labels)
        return rules

    # Conditions.

    def check_no_labels(self, labels=None):
        """Refuses labels, or their TensorSpec, for a model without a condition."""
        if self.num_classes is None and labels is not None:
            received = f"{type(labels).__name__} of shape {getattr(labels, 'shape', 'unknown')}"
            raise ValueError(
                "The model was made without `num_classes`: it is unconditional, and takes no "
                "labels. Give data x alone, of a dataset of (x, label) "
                f"`dataset.map(lambda x, label: x)`. Received: {received}"
            )

    def check_labels(self, labels, count=None):
        """int32 labels of a conditional model, None for others; values if eager, `count` if given.

        In a graph wrong values fail when the step runs, unless XLA compiled it.
        """
        self.check_no_labels(labels)
        if self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(
                f"The model has num_classes={self.num_classes} and needs `labels`: as an argument, "
                "or in fit and evaluate as the second of (x, label). Received: none"
            )
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank is None:
            labels = _of_shape(labels, ())
        if labels.shape.rank == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if not labels.dtype.is_integer or labels.shape.rank != 1:
            hint = ""
            if labels.shape.rank == 2 and labels.shape[1] == self.num_classes:
                hint = (
                    '. Of one-hot labels, as of label_mode="categorical", pass `argmax(y, axis=-1)`'
                )
            elif labels.dtype.is_floating and labels.shape.rank == 1:
                hint = (
                    '. Cast them to int32; of Keras\' directories of files, pass label_mode="int"'
                )
            raise ValueError(
                "`labels` must be integers of shape (batch,). "
                f"Received: {labels.dtype.name} of shape {labels.shape}{hint}"
            )
        given = labels.shape[0]
        labels = self._check_label_values(labels)
        if None not in (count, given) and given != count:
            raise ValueError(
                f"`labels` must have one label for each of {count} examples. Received: {given}"
            )
        return labels

    def labels_for(self, count, labels):
        """`check_labels` of so many examples, for all of which a single label serves."""
        if self.num_classes is not None and labels is not None:
            labels = tf.convert_to_tensor(labels)
            if labels.shape in ((), (1,)):
                labels = tf.fill([count], tf.reshape(labels, ()))
        return self.check_labels(labels, count)

    def _check_label_values(self, labels):
        message, bad = self._label_rule, self._has_bad_labels(labels)
        if not tf.executing_eagerly():
            with tf.control_dependencies([tf.debugging.Assert(~bad, [message, labels])]):
                return tf.cast(labels, tf.int32)
        if bad:
            raise ValueError(f"{message} Received: {labels.numpy()}")
        return tf.cast(labels, tf.int32)

    @property
    def _label_rule(self):
        return f"`labels` must be in 0..{self.num_classes - 1}, as num_classes={self.num_classes}."

    def _has_bad_labels(self, labels):
        return tf.reduce_any((labels < 0) | (labels >= self.num_classes))

    # Latents.

    def latent(self, z):
        """Latents (batch, D) as a tensor; ValueError or TypeError for what are none."""
        z = z if hasattr(z, "dtype") else np.asarray(z)
        if tf.TensorShape(z.shape).is_compatible_with((None, self.size)):
            z = _of_shape(z, (self.size,))
        if len(z.shape) != 2 or z.shape[1] != self.size:
            raise ValueError(
                f"Latents must have shape (batch, {self.size}). Received: shape {tuple(z.shape)}"
            )
        dtype = tf.as_dtype(z.dtype)
        if not (dtype.is_floating or dtype.is_integer):
            raise TypeError(f"Latents must be floating-point. Received: dtype {dtype.name}")
        if tf.executing_eagerly():
            _check_finite("Latents", np.asarray(z), self.dtype)
        return ops.convert_to_tensor(z, self.dtype)

    # Between data and what a bijection sees.

    def dequantize(self, x, noise=None):
        """What the bijection sees of data x: its bins plus `noise`, by default 1/2."""
        values = ops.cast(x, self.dtype)
        if not self.is_image:
            return values
        if keras.backend.standardize_dtype(x.dtype) != "uint8":
            values = _assert_pixels(values)
        bins = dequantization.to_bins(values, self.bits)
        return bins + (0.5 if noise is None else noise)

    def quantize(self, x):
        """Data, in its own dtype, of what the bijection's inverse gives."""
        return dequantization.to_images(x, self.bits) if self.is_image else x

    def noise(self, x, kind, seed, *counters):
        """Uniform noise for the batch x, a function of the rest alone; None for vectors."""
        if not self.is_image:
            return None
        return dequantization.uniform_noise(ops.shape(x), self.dtype, kind, seed, *counters)


def check_no_weights(sample_weight):
    """Refuses sample weights."""
    if sample_weight is not None:
        raise ValueError("A Flow takes no sample weights. Received: sample_weight")


def _of_shape(x, shape):
    """x with the static shape (batch, *shape), where it is not known yet."""
    known = tf.TensorShape(x.shape)
    if known.rank is not None and known[1:].is_fully_defined():
        return x
    return tf.ensure_shape(x, (None, *shape))


def spoil_rows(rows, x):
    """x with NaN throughout the `rows`, (batch,) of booleans; with zeros, if they are integers."""
    nothing = tf.constant(float("nan") if x.dtype.is_floating else 0, x.dtype)
    return tf.where(tf.reshape(rows, [-1, *[1] * (x.shape.rank - 1)]), nothing, x)


def _check_finite(name, values, dtype):
    with np.errstate(over="ignore"):
        if np.isfinite(values.astype(dtype)).all():
            return
    beyond = f" in {dtype}" if np.isfinite(values).all() else ""
    raise ValueError(f"{name} must be finite. Received: values that are NaN or infinite{beyond}")


def check_bits(bits, input_shape):
    require(
        bits is None or (len(input_shape) == 3 and bits in range(1, 9)),
        "Argument `bits` must be an integer in 1..8, and is for images only",
        bits=bits,
        input_shape=tuple(input_shape),
    )


def _check_bins(x, bits):
    """Refuses, or warns of, images whose values seem to be bins of so many bits already."""
    size, low, high = 2 ** (8 - bits), int(x.min()), int(x.max())
    if size == 1 or low == high:
        return
    message = (
        f"With bits={bits} the model sees floor(x / {size}) of bytes x in 0..255. Images that hold "
        f"{bits} bits already, values in 0..{2**bits - 1}, must be multiplied by {size}. "
        f"Received: values in {low}..{high}"
    )
    if low // size == high // size:
        raise ValueError(f"All of the images' values fall into one bin. {message}")
    if high < 2**bits:
        warnings.warn(message, stacklevel=4)


def _check_pixels(x):
    low, high = x.min(), x.max()
    if low >= 0 and high <= 255 and (x == np.floor(x)).all():
        return
    hint = ""
    if low >= 0 and high <= 1:
        hint = (
            ". Images scaled to [0, 1] have lost what a density over 8-bit images counts: pass "
            "the uint8 images as they were, or, if they were only divided by 255, "
            "`np.round(255 * x).astype('uint8')`"
        )
    elif low >= 0 and high <= 255:
        hint = (
            ". Resized images have fractions, as those of `image_dataset_from_directory("
            "image_size=...)`: round them, `dataset.map(lambda x: tf.cast(tf.round(x), tf.uint8))`"
        )
    elif low >= 0 and 255 < high < 2**16 and (x == np.floor(x)).all():
        hint = ". Of 16-bit images, pass the upper 8 bits, `(x // 256).astype('uint8')`"
    raise ValueError(
        "Images must be uint8, or hold whole numbers in 0..255. "
        f"Received: {x.dtype.name} values in [{low}, {high}]{hint}"
    )


def _assert_pixels(x):
    """`_check_pixels` in a graph: fails when the step runs, unless XLA compiled it."""
    if tf.executing_eagerly():
        return x
    valid = _valid_pixels(x)
    with tf.control_dependencies([tf.debugging.Assert(valid, [_PIXELS, "Received:", x])]):
        return tf.identity(x)


def _valid_pixels(x):
    return tf.reduce_all((x >= 0) & (x <= 255) & (x == tf.floor(x)))
