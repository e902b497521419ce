"""A condition as further channels of what a coupling's network sees, or as what it looks at."""

import inspect

import tensorflow as tf
from keras import ops

from keras_flows.arguments import is_integer, require


class Conditioning:
    """Spreads conditions of `shape`, that of one example, over inputs of a shape that `build` gets.

    (n,): floats (batch, n), or integers (batch,) in 0 .. n - 1, as one-hot; alike at all places.
    (height, width, n): floats, pooled by means to the height and width of an image.
    (tokens, n): floats, which are not spread but given to a `network` that takes a `condition`.

    Raises:
        ValueError: for another shape, or, in `build`, one that cannot be pooled to the input's.
    """

    def __init__(self, shape, network=None):
        sizes = tuple(shape) if hasattr(shape, "__iter__") else ()
        ranks, allowed = (1, 3), "(n,) or (height, width, n)"
        if network is not None and "condition" in inspect.signature(network.call).parameters:
            ranks, allowed = (1, 2, 3), "(n,), (tokens, n) or (height, width, n)"
        require(
            len(sizes) in ranks and all(is_integer(size) and size >= 1 for size in sizes),
            f"Argument `condition_shape` must be {allowed}, without the batch",
            condition_shape=shape,
        )
        self.shape = tuple(map(int, sizes))
        self.channels = sizes[-1]
        self.is_attended = len(sizes) == 2

    def build(self, input_shape):
        self._space = tuple(input_shape[1:-1])
        require(
            len(self.shape) == 1
            or len(self._space) == 2
            and all(size % to == 0 for size, to in zip(self.shape[:2], self._space, strict=True)),
            "Argument `condition_shape` with height and width is for images whose height and width "
            "divide them",
            condition_shape=self.shape,
            input_shape=tuple(input_shape),
        )

    def as_floats(self, condition, dtype):
        """The condition, (batch, *shape); of labels, one-hot."""
        if condition is None:
            raise ValueError(
                f"A layer with condition_shape={self.shape} needs `condition`. Received: None"
            )
        condition = tf.convert_to_tensor(condition)
        if condition.dtype.is_integer and condition.shape.rank == 1 and len(self.shape) == 1:
            condition = tf.one_hot(condition, self.channels)
        condition = ops.cast(condition, dtype)
        require(
            condition.shape[1:] == self.shape,
            f"A condition must have shape (batch, {', '.join(map(str, self.shape))})",
            shape=tuple(condition.shape),
        )
        return condition

    def spread(self, condition, x):
        """(batch, ..., channels) of the condition, with the axes of x but the last."""
        condition = self.as_floats(condition, x.dtype)
        if len(self.shape) == 3:
            size = [pooled // to for pooled, to in zip(self.shape, self._space, strict=False)]
            return tf.nn.avg_pool2d(condition, size, size, "VALID") if size != [1, 1] else condition
        if not self._space:
            return condition
        condition = ops.reshape(condition, (-1, *(1,) * len(self._space), self.channels))
        return condition + ops.zeros_like(x[..., :1])  # see bijection.constant_log_det
