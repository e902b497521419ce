"""How a coupling divides its input into the part that conditions and the part that changes."""

import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.inputs import check_one_of

PARTITIONS = ("half", "even_odd", "checkerboard")


class Partition:
    """Divides data of shape (batch, *event) into x1, which conditions, and x2, which changes.

    - "half": the first half of the channels (last axis) conditions; of an odd number, the smaller.
    - "even_odd": channels 0, 2, 4, ... condition.
    - "checkerboard" (images): cells (i, j) with i + j even condition (RealNVP, section 3.4). Both
      parts keep the image's shape, with zeros in the other's place, and `free` is 1 where x2 is.

    `swap` exchanges the roles. `free` is None for the first two.
    """

    def __init__(self, name, swap, event_shape):
        check_one_of(PARTITIONS, partition=name)
        *space, channels = event_shape
        self.free = None
        if name == "checkerboard":
            if len(space) != 2:
                raise ValueError(
                    'Argument `partition`="checkerboard" is for images (batch, height, width, '
                    f"channels). Received: event shape {tuple(event_shape)}"
                )
            free = np.indices(space).sum(axis=0)[None, :, :, None] % 2
            self.free = 1 - free if swap else free
            self.sizes = (channels, channels)
            self.changed_cells = int(self.free.sum())
            return
        if channels < 2:
            raise ValueError(
                f"A coupling must divide its channels (last axis), of which there must be at least "
                f"2. Received: event shape {tuple(event_shape)}"
            )
        self.swap = swap
        self.sizes = (channels // 2, channels - channels // 2)
        self.order = None
        if name == "even_odd":
            self.sizes = (channels - channels // 2, channels // 2)
            self.order = np.r_[0:channels:2, 1:channels:2]
        if swap:
            self.sizes = self.sizes[::-1]
        self.changed_cells = int(np.prod(space, dtype=int))

    @property
    def conditioner_channels(self):
        """Channels of what `conditioner_input` returns."""
        return self.sizes[0] + (self.free is not None)

    def split(self, x):
        if self.free is not None:
            free = ops.cast(self.free, x.dtype)
            return x * (1 - free), x * free
        if self.order is not None:
            x = tf.gather(x, self.order, axis=-1)
        first, second = tf.split(x, self.sizes[::-1] if self.swap else self.sizes, axis=-1)
        return (second, first) if self.swap else (first, second)

    def merge(self, x1, x2):
        if self.free is not None:
            return x1 + x2
        x = ops.concatenate([x2, x1] if self.swap else [x1, x2], axis=-1)
        return x if self.order is None else tf.gather(x, np.argsort(self.order), axis=-1)

    def conditioner_input(self, x1):
        """x1 as the network sees it: a checkerboard's mask is its last channel."""
        if self.free is None:
            return x1
        mask = ops.broadcast_to(ops.cast(1 - self.free, x1.dtype), (*ops.shape(x1)[:-1], 1))
        return ops.concatenate([x1, mask], axis=-1)

    def where_free(self, x):
        """Sets to zero what does not belong to x2."""
        return x if self.free is None else x * ops.cast(self.free, x.dtype)
