"""How a coupling divides its input in two."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import require
from keras_flows.results import missing
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class Partition(ConstructorConfig, keras.layers.Layer):
    """Divides data of shape (batch, *event) in two parts, the first and the second.

    A coupling changes the second by the first, or, with `swap`, the first by the second. A subclass
    is registered with Keras, keeps each constructor argument as an attribute of that name, and
    writes

    - `split(x) -> (first, second)`;
    - `merge(first, second) -> x`, its inverse;
    - `masks()`, if the parts keep the shape of x: two arrays that broadcast to one example, 1 where
      a part's elements are and 0 where it must be zero, in the other's place;
    - `build(input_shape)`, if it has weights. They are constants (`add_weight(trainable=False)`): a
      permutation that it draws, for instance; integers as int64, as XLA finds none of int32 on a
      GPU. In a `Repeat` each step draws its own, and `step_index` tells `build` which of the steps
      it is for.

    Example: what changes is a random half of the channels.

    ```python
    @keras.saving.register_keras_serializable(package="mine")
    class RandomHalf(keras_flows.layers.Partition):
        def build(self, input_shape):
            order = np.random.permutation(input_shape[-1])
            values = {"order": order, "back": np.argsort(order)}
            for name, value in values.items():
                weight = self.add_weight(
                    name=name, shape=value.shape, dtype="int64", trainable=False
                )
                weight.assign(value)
                setattr(self, name, weight)

        def split(self, x):
            return ops.split(ops.take(x, self.order, axis=-1), 2, axis=-1)

        def merge(self, first, second):
            return ops.take(ops.concatenate([first, second], axis=-1), self.back, axis=-1)

    network = keras_flows.networks.MLP(64)
    coupling = keras_flows.layers.AffineCoupling(network, partition=RandomHalf())
    ```
    """

    step_index = 0

    def __init__(self, *, dtype=None, **kwargs):
        super().__init__(dtype=keras.dtype_policies.get(dtype).variable_dtype, **kwargs)

    def build(self, input_shape):
        """Creates the weights for inputs of shape (batch, *event)."""

    def split(self, x):
        raise missing(self, "split")

    def merge(self, first, second):
        raise missing(self, "merge")

    def masks(self):
        return None

    def call(self, inputs):
        return self.split(inputs)

    @property
    def constant_weights(self):
        return self.non_trainable_weights


class _OfChannels(Partition):
    """The first channels of some order, and the rest; `_sizes` are their numbers."""

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels < 2:
            raise ValueError(
                f"A coupling must divide its channels (last axis), of which there must be at least "
                f"2. Received: event shape {tuple(input_shape[1:])}"
            )
        self._sizes = self._sizes_of(channels)

    def split(self, x):
        return tf.split(x, self._sizes, axis=-1)

    def merge(self, first, second):
        return ops.concatenate([first, second], axis=-1)

    def compute_output_shape(self, input_shape):  # as tracing `split` would tell, but at once
        return tuple((*input_shape[:-1], size) for size in self._sizes)


@keras.saving.register_keras_serializable(package="keras_flows")
class Half(_OfChannels):
    """The first half of the channels (last axis), the smaller of an odd number, and the rest."""

    def _sizes_of(self, channels):
        return channels // 2, channels - channels // 2


@keras.saving.register_keras_serializable(package="keras_flows")
class EvenOdd(_OfChannels):
    """Channels 0, 2, 4, ... and channels 1, 3, 5, ..."""

    def _sizes_of(self, channels):
        self._order = np.r_[0:channels:2, 1:channels:2]
        return channels - channels // 2, channels // 2

    def split(self, x):
        return super().split(tf.gather(x, self._order, axis=-1))

    def merge(self, first, second):
        return tf.gather(super().merge(first, second), np.argsort(self._order), axis=-1)


@keras.saving.register_keras_serializable(package="keras_flows")
class Checkerboard(Partition):
    """Of images, the cells (i, j) with i + j even, and those with i + j odd.

    RealNVP, section 3.4.
    """

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                'Argument `partition`="checkerboard" is for images (batch, height, width, '
                f"channels). Received: event shape {tuple(input_shape[1:])}"
            )
        odd = np.indices(input_shape[1:3]).sum(axis=0)[None, :, :, None] % 2
        self._masks = (1 - odd, odd)

    def split(self, x):
        first, second = (x * ops.cast(mask, x.dtype) for mask in self._masks)
        return first, second

    def merge(self, first, second):
        return first + second

    def masks(self):
        return self._masks

    def compute_output_shape(self, input_shape):
        return (tuple(input_shape), tuple(input_shape))


PARTITIONS = {"half": Half, "even_odd": EvenOdd, "checkerboard": Checkerboard}


class Roles:
    """A partition with its parts in their roles: x1, which conditions, and x2, which changes."""

    def __init__(self, partition, swap):
        self.partition = partition
        self.swap = swap

    def build(self, input_shape):
        """Builds the partition, and returns the shapes of what a network is given and of x2."""
        if not self.partition.built:
            self.partition.build(input_shape)
        built_for = tuple(self.partition.get_build_config()["input_shape"])
        if built_for[1:] != tuple(input_shape[1:]):
            raise ValueError(
                f"{type(self.partition).__name__} {self.partition.name!r} divides data of shape "
                f"{built_for[1:]}: give each coupling one of its own. Received: {input_shape[1:]}"
            )
        x = keras.KerasTensor(input_shape, self.partition.compute_dtype)
        first, second = self.partition.compute_output_spec(x)
        x1, x2 = self._in_turn(first, second)
        *space, channels = x1.shape
        if self.partition.masks() is not None:
            mask, _ = self._in_turn(*self.partition.masks())
            channels += mask.shape[-1]
        return (*space, channels), tuple(x2.shape)

    def split(self, x):
        return self._in_turn(*self.partition.split(x))

    def merge(self, x1, x2):
        return self.partition.merge(*self._in_turn(x1, x2))

    def conditioner_input(self, x1, *features):
        """x1 and further features as a network sees them; x1's mask, if any, is the last."""
        inputs, masks = [x1, *features], self.partition.masks()
        if masks is not None:
            mask, _ = self._in_turn(*masks)
            shape = (*ops.shape(x1)[:-1], mask.shape[-1])
            inputs.append(ops.broadcast_to(ops.cast(mask, x1.dtype), shape))
        return ops.concatenate(inputs, axis=-1) if len(inputs) > 1 else x1

    def where_conditioning(self, x):
        """x, shaped like x1, with zeros where nothing is x1's."""
        return self._masked(x, 0)

    def where_changed(self, x):
        """x, shaped like x2 or an example of it, with zeros where nothing is x2's."""
        return self._masked(x, 1)

    def _masked(self, x, role):
        masks = self.partition.masks()
        if masks is None:
            return x
        return _zero_elsewhere(x, ops.cast(self._in_turn(*masks)[role], x.dtype))

    def _in_turn(self, first, second):
        return (second, first) if self.swap else (first, second)


@tf.custom_gradient
def _zero_elsewhere(x, mask):
    """x where the mask is 1, and 0 where it is 0, whatever x is there.

    A product would keep what is infinite; of gradients, which are not, it takes half of the time.
    """
    return tf.where(mask > 0, x, tf.zeros((), x.dtype)), lambda dy: (dy * mask, None)


def get_partition(partition, dtype):
    """The partition of a name, or a partition itself; ValueError for anything else."""
    if isinstance(partition, Partition):
        return partition
    require(
        isinstance(partition, str) and partition in PARTITIONS,
        f"Argument `partition` must be one of {tuple(PARTITIONS)}, or a `layers.Partition`",
        partition=partition,
    )
    return PARTITIONS[partition](dtype=dtype)
