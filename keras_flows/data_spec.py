"""What a Flow takes as data and latents, and what it says of the rest."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows import data_frames, dequantization, pixels
from keras_flows.arguments import check_finite, check_in, check_input_shape, require
from keras_flows.batches import spoil_rows, with_shape
from keras_flows.columns import make_columns


class DataSpec:
    """The shape, units and condition of a Flow's data, and the checks of all that comes in.

    Images are uint8 (batch, height, width, channels), of which `bits` are modelled; vectors are
    floats (batch, D), without bits, of which `vector_columns` tells more. `condition` is the spec
    of what conditions them. `deviation` is that of the normal noise that images get in place of the
    uniform one, in the units of pixels, or None. `columns` are the names of a data frame's, once it
    has been learned from.
    """

    columns = None

    def __init__(
        self,
        input_shape,
        bits,
        condition,
        dtype,
        *,
        noise=None,
        bounds=None,
        integer_columns=None,
    ):
        check_input_shape(input_shape)
        self.shape = tuple(int(size) for size in input_shape)
        self.is_image = len(self.shape) == 3
        require(bits is None or self.is_image, "Argument `bits` is for images only", bits=bits)
        self.bits = dequantization.number_of_bits(bits) if self.is_image else None
        check_noise(noise, self.shape, self.bits)
        self.deviation = None if noise is None else 127.5 * noise
        self._centre = 0.5 if noise is None else 0.0  # of a bin, as seen without noise
        self.vector_columns = make_columns(self.shape, bounds, integer_columns, dtype)
        self.condition = condition
        self.size = math.prod(self.shape)
        self.dtype = dtype

    @property
    def is_discrete(self):
        """Whether data are, or have, whole numbers, of which a density is that of x + u."""
        return self.deviation is None and bool(self.is_image or self.vector_columns.integer_columns)

    # Data.

    def check_spec(self, x):
        """Shape and dtype of a batch, or of the TensorSpec or KerasTensor of one."""
        not_one = isinstance(x, tuple | list | tf.RaggedTensor | tf.RaggedTensorSpec)
        if not_one or not hasattr(x, "shape"):
            raise TypeError(
                "Data must be one tensor: resize images before they are batched, and pass a "
                "condition, labels for instance, as an argument of its own, "
                f"`model(x, condition=y)`. Received: {type(x).__name__}"
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

    def names(self, x):
        """Of the columns of x, as they are or must be: those of a data frame."""
        return self.columns or data_frames.column_names(x)

    def array(self, x, columns=None):
        """x, or the numbers of a data frame, whose columns must be `columns` or those, if known."""
        return data_frames.to_array(x, self.dtype, columns or self.columns)

    def check(self, x, columns=None):
        """The batch x, of known shape: `check_spec`, and values if eager.

        They are finite and, of images, whole numbers in 0..255; `vector_columns` has its own rules,
        whose errors name columns by `columns`, or else by `self.columns`. What TensorFlow does not
        know of a shape, as of a decoded PNG's, is this spec's; if it is not, the step fails when it
        runs.
        """
        self.check_spec(x)
        if not tf.executing_eagerly():
            x = with_shape(x, self.shape)
            return x if self.is_image else self.vector_columns.check(x)
        values = np.asarray(x)
        if not values.size or (self.is_image and values.dtype == np.uint8):
            return x
        check_finite("Data", values, self.dtype)
        if self.is_image:
            pixels.check_pixels(values)
        else:
            self.vector_columns.check(values, columns or self.columns)
        return x

    def check_variation(self, rows, of):
        """Refuses `rows` of the source `of` that no density can be learned from.

        Those are vectors with features that do not vary (of an array all rows count: few do not
        tell whether a rare value is there; whole numbers need not), and images that `bits` leaves
        in one bin.
        """
        if self.is_image:
            pixels.check_bins(np.asarray(rows), self.bits)
        else:
            self.vector_columns.check_variation(np.asarray(rows), of)

    def check_source(self, x, y=None, *, read_again=False):
        """Shape and dtype of what fit, evaluate or predict got; nothing is read."""
        if y is not None:
            self.condition.check_source(y)
            rows = [len(each) for each in (x, y) if hasattr(each, "shape")]
            if len(set(rows)) == 2:
                raise ValueError(
                    f"`condition` must have one row for each of {rows[0]} examples. "
                    f"Received: {rows[1]}"
                )
        if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset):
            spec = x.element_spec
            spec = spec[0] if isinstance(spec, tuple) else spec
            if not hasattr(spec, "shape"):
                raise TypeError(
                    "A dataset must have elements x or (x, condition), tensors in batches: map it "
                    "to them, or use `keras_flows.data.load`. "
                    f"Received: elements {x.element_spec}"
                )
            self.check_spec(spec)
            _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(x.element_spec)
            check_no_weights(sample_weight)
            self.condition.check_source(y)
        elif hasattr(x, "__next__") and read_again:
            raise TypeError(
                "Data for fit must be readable more than once, as the model adapts to its first "
                "examples before it trains: a tf.data.Dataset, an array or a keras.utils.PyDataset."
                f" Received: a one-shot iterator, {type(x).__name__}"
            )
        elif hasattr(x, "dtype"):
            self.check_spec(x)

    def broken(self, x, condition):
        """Of a batch in a graph, whether it breaks what is asked of its values: {rule: bool}."""
        values, rules = tf.cast(x, self.dtype), {}
        if self.is_image and x.dtype != tf.uint8:
            rules[pixels.RULE] = ~pixels.are_valid(values)
        elif x.dtype.is_floating:
            rules["Data must be finite."] = ~tf.reduce_all(tf.math.is_finite(values))
        if not self.is_image:
            broken = self.vector_columns.broken(x)
            rules |= {rule: tf.reduce_any(which) for rule, which in broken.items()}
        if condition is not None:
            rules[self.condition.rule] = self.condition.is_broken(condition)
        return rules

    # Latents.

    def latent(self, z):
        """Latents (batch, D) as a tensor; ValueError or TypeError for what are none."""
        z = data_frames.plain(z, "latents")
        z = z if hasattr(z, "dtype") else np.asarray(z)
        if tf.TensorShape(z.shape).is_compatible_with((None, self.size)):
            z = with_shape(z, (self.size,))
        if len(z.shape) != 2 or z.shape[1] != self.size:
            raise ValueError(
                f"Latents must have shape (batch, {self.size}). Received: shape {tuple(z.shape)}"
            )
        dtype = tf.as_dtype(z.dtype)
        if not (dtype.is_floating or dtype.is_integer):
            raise TypeError(f"Latents must be floating-point. Received: dtype {dtype.name}")
        if tf.executing_eagerly():
            check_finite("Latents", np.asarray(z), self.dtype)
        return ops.convert_to_tensor(z, self.dtype)

    # Between data and what a bijection sees.

    def dequantize(self, x, noise=None):
        """What the bijection sees of data x: what is counted plus `noise`.

        By default that is 1/2, or 0 where noise is normal.
        """
        values = ops.cast(x, self.dtype)
        if not self._has_bins:
            return values
        if not self.is_image:
            return values + (self.vector_columns.only_integers(0.5) if noise is None else noise)
        if keras.backend.standardize_dtype(x.dtype) != "uint8":
            values = pixels.assert_pixels(values)
        bins = dequantization.to_bins(values, self.bits)
        return bins + (self._centre if noise is None else noise)

    def quantize(self, x):
        """Data, in its own dtype, of what the bijection's inverse gives."""
        if self.is_image:
            return dequantization.to_images(x + (0.5 - self._centre), self.bits)
        return self.vector_columns.to_whole(x)

    def noise(self, x, kind, seed, *counters):
        """Noise for the batch x, a function of the rest alone, where x has whole numbers.

        It is uniform in [0, 1), or normal of `deviation`. None for vectors without.
        """
        if not self._has_bins:
            return None
        if self.deviation is not None:
            noise = dequantization.normal_noise(ops.shape(x), self.dtype, kind, seed, *counters)
            return self.deviation * noise
        noise = dequantization.uniform_noise(ops.shape(x), self.dtype, kind, seed, *counters)
        return noise if self.is_image else self.vector_columns.only_integers(noise)

    @property
    def _has_bins(self):
        """Whether some of its values are counted: images' and whole numbers'."""
        return self.is_image or bool(self.vector_columns.integer_columns)

    def spoil_broken(self, x):
        """A batch x with NaN throughout rows that break a rule of `vector_columns`."""
        rules = {} if self.is_image else self.vector_columns.broken(x)
        for broken in rules.values():
            x = spoil_rows(tf.reduce_any(broken, axis=1), x)
        return x


def check_no_weights(sample_weight):
    """Refuses sample weights."""
    if sample_weight is not None:
        raise ValueError("A Flow takes no sample weights. Received: sample_weight")


def check_noise(noise, input_shape, bits):
    if noise is None:
        return
    check_in("(0, inf)", noise=noise)
    require(
        len(input_shape) == 3 and bits == 8,
        "Argument `noise` is for images of all 8 bits only",
        noise=noise,
        input_shape=tuple(input_shape),
        bits=bits,
    )
