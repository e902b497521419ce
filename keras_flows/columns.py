"""The values of vectors: features that have bounds, and features that are whole numbers."""

import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import is_integer, is_number, require
from keras_flows.batches import asserted

BOUNDS_RULE = "Data must lie within `bounds`."

# How far apart floats may be, in deviations of what they are to tell apart.
COARSEST = 0.01


def make_columns(input_shape, bounds, integer_columns, dtype):
    """The `Columns` of vectors; None for images, which have no such arguments."""
    if len(input_shape) == 1:
        return Columns(*input_shape, bounds, integer_columns, dtype)
    for name, value in {"bounds": bounds, "integer_columns": integer_columns}.items():
        received = {name: value, "input_shape": input_shape}
        require(value is None, f"Argument `{name}` is for vectors only", **received)


class Columns:
    """What is asked of each feature, and how those that are whole numbers become continuous.

    Args:
        size: how many features there are.
        bounds: for each of them a pair (low, high), on which data may lie, or None; None for no
            bounds at all.
        integer_columns: the indices of those that hold whole numbers, or None.
        dtype: that a model computes in.

    Raises:
        ValueError: for arguments that are none of `size` features, and for bounds that the dtype
            does not tell apart.
    """

    def __init__(self, size, bounds, integer_columns, dtype):
        self.bounds = _as_pairs(bounds, size)
        self.integer_columns = _as_indices(integer_columns, size)
        self.is_integer = np.isin(np.arange(size), self.integer_columns or [])
        pairs = [pair or (-np.inf, np.inf) for pair in self.bounds or [None] * size]
        self.low, self.high = np.array(pairs, "float64").T
        self.dtype = tf.as_dtype("float64" if dtype == "float64" else "float32")
        # From there on floats are too few to hold x + 1/2, and most of x + u.
        self._bits = 51 if self.dtype == tf.float64 else 22
        self._check_bounds()

    @property
    def integers_rule(self):
        return (
            "Columns of `integer_columns` must hold whole numbers, in magnitude below "
            f"2^{self._bits} in {self.dtype.name}."
        )

    def continuous_bounds(self):
        """Lists of the low and the high ends of dequantised values, None where there are none."""
        ends = (self.low, self.high + self.is_integer)
        return tuple([float(v) if np.isfinite(v) else None for v in bounds] for bounds in ends)

    # Data.

    def broken(self, x):
        """By rule, which of the values x, (batch, D), break it. NaN breaks none.

        Bounds are rounded as x is: 0.1 lies on a bound of 0.1, whichever dtype it comes in.
        """
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating or x.dtype.size > self.dtype.size:
            x = tf.cast(x, self.dtype)
        rules = {}
        if self.bounds:
            low, high = (tf.cast(bound, x.dtype) for bound in (self.low, self.high))
            rules[BOUNDS_RULE] = (x < low) | (x > high)
        if self.integer_columns:
            unusable = (x - tf.floor(x) > 0) | (abs(x) >= tf.cast(2.0**self._bits, x.dtype))
            rules[self.integers_rule] = unusable & self.is_integer
        return rules

    def check(self, x, names=None):
        """Refuses an eager batch by the first of its values that breaks a rule.

        In a graph that fails when it runs, unless XLA compiled it.
        """
        for rule, broken in self.broken(x).items():
            if not tf.executing_eagerly():
                x = asserted(x, ~tf.reduce_any(broken), rule)
            elif tf.reduce_any(broken):
                row, i = np.argwhere(broken)[0]
                name = f"feature {i}" + (f" ({names[i]!r})" if names else "")
                within = f", outside of {self.bounds[i]}" if rule == BOUNDS_RULE else ""
                value = str(np.asarray(x)[row, i])  # not format(), which has float32 in full
                raise ValueError(f"{rule} Received: {name} is {value}{within}")
        return x

    def check_variation(self, rows, of):
        """See `DataSpec.check_variation`."""
        (constant,) = np.nonzero((rows == rows[:1]).all(axis=0) & ~self.is_integer)
        if len(constant) and hasattr(of, "shape"):
            columns = np.asarray(of)[:, constant]
            constant = constant[(columns == columns[:1]).all(axis=0)]
        if len(constant):
            named = ", ".join(f"feature {i} is constant ({rows[0, i]:.6g})" for i in constant[:10])
            raise ValueError(
                "Each feature must vary, else it has no density: leave it out, or give more rows. "
                f"Received: {named}{' and more' * (len(constant) > 10)}"
            )
        is_bounded = np.isfinite(self.low)
        check_resolution(rows, self.dtype.name, "Each feature", self.is_integer, is_bounded)

    # Whole numbers.

    def only_integers(self, noise):
        """`noise` of the columns of whole numbers, and 0 elsewhere."""
        return noise * ops.cast(self.is_integer, self.dtype.name)

    def to_whole(self, x):
        """Dequantised values as data; of whole numbers, what lies outside goes to the nearest."""
        if not self.integer_columns:
            return x
        low, high = (tf.cast(bound, x.dtype) for bound in (self.low, self.high))
        return tf.where(self.is_integer, tf.clip_by_value(tf.floor(x), low, high), x)

    def _check_bounds(self):
        bounded = np.array([pair is not None for pair in self.bounds or []], bool)
        if not bounded.any():
            return
        ends = np.stack([self.low, self.high])
        with np.errstate(over="ignore", invalid="ignore"):
            low, high = ends[:, bounded].astype(self.dtype.as_numpy_dtype)
            finite = np.isfinite(high - low).all()
        require(
            finite and (np.nextafter(low, high) < high).all(),
            "Argument `bounds` must have finite pairs (low, high), low below high in "
            f"{self.dtype.name}",
            bounds=self.bounds,
        )
        whole = ends[:, bounded & self.is_integer]
        require(
            np.all((whole == np.floor(whole)) & (abs(whole) < 2.0**self._bits)),
            "Argument `bounds` must have whole numbers for `integer_columns`, in magnitude below "
            f"2^{self._bits} in {self.dtype.name}",
            bounds=self.bounds,
            integer_columns=self.integer_columns,
        )


def check_resolution(rows, dtype, name, discrete=np.False_, bounded=np.False_):
    """Refuses features, (rows, D), of which `dtype` has too few numbers to tell how they vary.

    What does not vary is let pass, and so are whole numbers that the dtype holds all, and features
    that are `discrete`, whose range has its own rule. The variance of those that are `bounded` need
    not be in the dtype's range, as bounds give their scale.
    """
    rows, info = np.asarray(rows, "float64"), np.finfo(dtype)
    largest = abs(rows).max(axis=0)
    is_whole = (rows == np.floor(rows)).all(axis=0) & (largest <= 2 / info.eps)
    with np.errstate(over="ignore", invalid="ignore"):
        variance = rows.var(axis=0)
        apart = np.spacing(largest.astype(dtype)).astype("float64")
        coarse = ~is_whole & ~(apart < COARSEST * np.sqrt(variance))
        beyond = ~((variance >= info.tiny) & (len(rows) * variance < info.max))
    lost = (coarse | beyond & ~bounded) & (rows != rows[:1]).any(axis=0) & ~discrete
    if lost.any():
        i = np.flatnonzero(lost)[0]
        raise ValueError(
            f"{name} must have a deviation of at least {1 / COARSEST:.0f} times the distance "
            f"between numbers of {info.dtype}, with a square: subtract an offset, as of times, "
            'change the unit, mend values that stand for none, or take dtype="float64". '
            f"Received: feature {i} of deviation {variance[i] ** 0.5:.3g}, where numbers are "
            f"{apart[i]:.3g} apart, up to {largest[i]:.6g}{', and more' * bool(lost.sum() > 1)}"
        )


def _as_pairs(bounds, size):
    """For each feature [low, high], floats that a config can hold, or None."""
    if bounds is None:
        return None
    require(
        isinstance(bounds, list | tuple | np.ndarray) and len(bounds) == size,
        f"Argument `bounds` must be a list of {size}, for each feature a pair (low, high) or None",
        bounds=bounds,
    )
    return [None if pair is None else _as_pair(i, pair) for i, pair in enumerate(bounds)]


def _as_pair(i, pair):
    ends = list(pair) if isinstance(pair, list | tuple | np.ndarray) else []
    received = {f"bounds[{i}]": pair}
    require(
        len(ends) == 2 and all(end is None or is_number(end) for end in ends),
        "Argument `bounds` must have a pair of numbers (low, high), or None, for each feature",
        **received,
    )
    require(
        None not in ends and np.isinf(ends).sum() != 1,
        "Argument `bounds` must have both ends of a feature: for one that is bounded on one side "
        "only give None, and as data its logarithm, log(x - low) or log(high - x); or, of whole "
        "numbers, an end that they do not reach",
        **received,
    )
    return [float(end) for end in ends]


def _as_indices(columns, size):
    """Integers that a config can hold, or None."""
    if columns is None:
        return None
    given = list(columns) if isinstance(columns, list | tuple | np.ndarray) else [None]
    valid = all(is_integer(i) for i in given)
    require(
        valid and len({*given}) == len(given) and all(0 <= i < size for i in given),
        f"Argument `integer_columns` must be a list of different integers in 0..{size - 1}",
        integer_columns=columns,
    )
    return [int(i) for i in given]
