"""What a Flow's density is conditioned on, and what it says of the rest."""

import tensorflow as tf

from keras_flows import data_frames
from keras_flows.arguments import check_finite, check_integers, first_of, is_integer, require
from keras_flows.batches import as_tensor, asserted, with_shape
from keras_flows.columns import check_resolution


def make_condition_spec(num_classes, condition_shape, dtype, takes_null_label=False):
    """That of the one that is given: `ClassLabels`, `Features` or, of neither, `NoCondition`."""
    require(
        None in (num_classes, condition_shape),
        "Only one of the arguments `num_classes` and `condition_shape` may be given",
        num_classes=num_classes,
        condition_shape=condition_shape,
    )
    if num_classes is not None:
        return ClassLabels(num_classes, takes_null_label)
    return NoCondition() if condition_shape is None else Features(condition_shape, dtype)


class NoCondition:
    """An unconditional density's."""

    shape = layer_shape = columns = None
    is_vector = takes_null_label = False

    def names(self, condition):
        return None

    def array(self, condition, columns=None):
        return condition

    def check_source(self, condition=None):
        """Refuses what fit and the like got, or its TensorSpec; nothing is read."""
        if condition is not None:
            received = (
                f"{type(condition).__name__} of shape {getattr(condition, 'shape', 'unknown')}"
            )
            raise ValueError(
                "The model was made without `num_classes` and `condition_shape`: it is "
                "unconditional, and takes no condition. Give data x alone, of a dataset of "
                f"(x, condition) `dataset.map(lambda x, condition: x)`. Received: {received}"
            )

    def check(self, condition, count=None):
        """None; see `ConditionSpec.check`."""
        self.check_source(condition)

    check_spec = check

    def check_variation(self, rows):
        pass

    def for_samples(self, count, condition):
        return self.check(condition)


class ConditionSpec:
    """The shape and dtype of a condition, and the checks of all that comes in as one.

    A subclass has `argument`, as the model's constructor was given it; `shape` and `dtype` of one
    example, and `layer_shape`, the `condition_shape` of layers that read it; the `rule` that values
    keep; and says how the rest is refused.

    `columns` are the names of a data frame's, once it has been learned from.
    """

    columns = None
    takes_null_label = False

    @property
    def is_vector(self):
        """Whether an example is a vector of floats."""
        return len(self.shape) == 1

    def names(self, condition):
        """Of the columns, if they have names and those matter."""

    def array(self, condition, columns=None):
        """The condition, or the numbers of a data frame, whose columns must be those, if known."""
        return data_frames.plain(condition, "condition")

    def check_source(self, condition=None):
        """Shape and dtype of what fit and the like got, or of its TensorSpec; nothing is read."""
        if condition is None:
            raise ValueError(
                f"The model has {self.argument} and needs `condition`: as an argument, in fit and "
                "evaluate as the second of (x, condition), in predict by a tf.data.Dataset of such "
                "pairs. Received: none"
            )
        if isinstance(condition, dict | tuple):
            raise TypeError(f"`condition` must be one tensor. Received: {type(condition).__name__}")
        if hasattr(condition, "shape") and hasattr(condition, "dtype"):
            self.check_spec(condition)

    def check(self, condition, count=None):
        """The condition as a tensor of `dtype`; its values if eager, `count` of them if given."""
        condition = self._tensor(condition)
        self.check_spec(condition)
        condition = self._check_values(with_shape(self._flat(condition), self.shape))
        given = condition.shape[0]
        if None not in (count, given) and given != count:
            raise ValueError(
                f"`condition` must have one row for each of {count} examples. Received: {given}"
            )
        return condition

    def check_variation(self, rows):
        """Refuses rows of which no scale can be learned."""

    def for_samples(self, count, condition):
        """`check` of as many rows, or of one, that may come without an axis for it."""
        condition = self._tensor(condition)
        if condition.shape == self.shape:
            condition = condition[None]
        elif condition.shape.rank == 0:
            self.check_spec(condition)  # which refuses it
        return self.check(condition, None if condition.shape[0] == 1 else count)

    def is_broken(self, condition):
        """Whether some row breaks the rule, a tensor."""
        return tf.reduce_any(self.are_broken(condition))

    def _tensor(self, condition):
        if not hasattr(condition, "shape"):  # or its shape may be another, as in for_samples
            self.check_source(condition)
        return as_tensor(self.array(condition))

    def _flat(self, condition):
        return condition


class ClassLabels(ConditionSpec):
    """Integers (batch,) in 0 .. num_classes - 1, and -1 if that may stand for no label."""

    shape, dtype = (), "int32"

    def __init__(self, num_classes, takes_null_label=False):
        check_integers(1, num_classes=num_classes)
        self.num_classes = int(num_classes)
        self.takes_null_label = takes_null_label
        self.layer_shape = (self.num_classes,)  # one-hot
        self.argument = f"num_classes={self.num_classes}"
        none = ", or -1 for no label" if takes_null_label else ""
        self.rule = f"`condition` must be in 0..{num_classes - 1}{none}, as {self.argument}."

    def check_spec(self, condition):
        """Shape and dtype of labels, or of their TensorSpec or KerasTensor."""
        shape, dtype = tf.TensorShape(condition.shape), tf.as_dtype(condition.dtype)
        fits = shape.rank in (None, 1) or (shape.rank == 2 and shape[1] == 1)
        if fits and dtype.is_integer:
            return
        hint = ""
        if shape.rank == 2 and shape[1] == self.num_classes:
            hint = '. Of one-hot labels, as of label_mode="categorical", pass `argmax(y, axis=-1)`'
        elif dtype.is_floating and fits:
            hint = '. Cast them to int32; of Keras\' directories of files, pass label_mode="int"'
        raise ValueError(
            "`condition` must be integers of shape (batch,). "
            f"Received: {dtype.name} of shape {shape}{hint}"
        )

    def are_broken(self, labels):
        """Which rows break the rule, (batch,)."""
        first = -1 if self.takes_null_label and not labels.dtype.is_unsigned else 0
        labels = tf.cast(labels, tf.int64)  # a dtype may have neither -1 nor num_classes
        return (labels < first) | (labels >= self.num_classes)

    def _flat(self, labels):
        # Traced for both ranks that `check_spec` lets pass, TensorFlow tells none.
        return labels if labels.shape.rank == 1 else tf.reshape(labels, [-1])

    def _check_values(self, labels):
        bad = self.is_broken(labels)
        if not tf.executing_eagerly():
            labels = asserted(labels, ~bad, self.rule)
        elif bad:
            received = first_of(labels.numpy(), self.are_broken(labels))
            raise ValueError(f"{self.rule} Received: {received}")
        return tf.cast(labels, self.dtype)


class Features(ConditionSpec):
    """Floats (batch, *shape)."""

    rule = "`condition` must be finite."

    def __init__(self, shape, dtype):
        sizes = tuple(shape) if hasattr(shape, "__iter__") else ()
        require(
            sizes and all(is_integer(n) and n >= 1 for n in sizes),
            "Argument `condition_shape` must be a tuple of positive integers, without the batch",
            condition_shape=shape,
        )
        self.shape = self.layer_shape = tuple(map(int, sizes))
        self.dtype = dtype
        self.argument = f"condition_shape={self.shape}"

    def names(self, condition):
        return self.columns or data_frames.column_names(condition)

    def array(self, condition, columns=None):
        columns = columns or self.columns
        return data_frames.to_array(condition, self.dtype, columns, "condition")

    def check_spec(self, condition):
        """Shape and dtype of floats, or of their TensorSpec or KerasTensor."""
        shape, dtype = tf.TensorShape(condition.shape), tf.as_dtype(condition.dtype)
        if not shape.is_compatible_with((None, *self.shape)):
            hint = ""
            if shape == self.shape:
                hint = (
                    ". One for all serves in `sample`; here, repeat it: `np.repeat(c[None], n, 0)`"
                )
            elif self.shape == (1,) and shape.rank == 1:
                hint = ". Give it an axis of features, `c[:, None]`"
            raise ValueError(
                f"`condition` must have shape (batch, {', '.join(map(str, self.shape))}). "
                f"Received: shape {shape}{hint}"
            )
        if not (dtype.is_floating or dtype.is_integer):
            raise TypeError(f"`condition` must be floating-point. Received: dtype {dtype.name}")

    def check_variation(self, rows):
        if self.is_vector:
            check_resolution(rows, self.dtype, "Each feature of `condition`")

    def are_broken(self, condition):
        """Which rows break the rule, (batch,)."""
        finite = tf.math.is_finite(tf.cast(condition, self.dtype))
        return ~tf.reduce_all(finite, axis=list(range(1, 1 + len(self.shape))))

    def _check_values(self, condition):
        if tf.executing_eagerly():
            check_finite("`condition`", condition.numpy(), self.dtype)
        return tf.cast(condition, self.dtype)
