"""What a Flow's density is conditioned on, and what it says of the rest."""

import tensorflow as tf

from keras_flows.arguments import check_integers
from keras_flows.static_shape import of_shape


class ConditionSpec:
    """Class labels, integers (batch,) in 0 .. num_classes - 1, or with None no condition at all."""

    def __init__(self, num_classes=None):
        if num_classes is not None:
            check_integers(1, num_classes=num_classes)
        self.num_classes = num_classes

    def check_absent(self, labels=None):
        """Refuses labels, or their TensorSpec, for a model without a condition."""
        if self.num_classes is None and labels is not None:
            received = f"{type(labels).__name__} of shape {getattr(labels, 'shape', 'unknown')}"
            raise ValueError(
                "The model was made without `num_classes`: it is unconditional, and takes no "
                "labels. Give data x alone, of a dataset of (x, label) "
                f"`dataset.map(lambda x, label: x)`. Received: {received}"
            )

    def check(self, labels, count=None):
        """int32 labels of a conditional model, None for others; values if eager, `count` if given.

        In a graph wrong values fail when the step runs, unless XLA compiled it.
        """
        self.check_absent(labels)
        if self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(
                f"The model has num_classes={self.num_classes} and needs `labels`: as an argument, "
                "or in fit and evaluate as the second of (x, label). Received: none"
            )
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank is None:
            labels = of_shape(labels, ())
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
        labels = self._check_values(labels)
        if None not in (count, given) and given != count:
            raise ValueError(
                f"`labels` must have one label for each of {count} examples. Received: {given}"
            )
        return labels

    def for_samples(self, count, labels):
        """`check` of so many examples, for all of which a single label serves."""
        if self.num_classes is not None and labels is not None:
            labels = tf.convert_to_tensor(labels)
            if labels.shape in ((), (1,)):
                labels = tf.fill([count], tf.reshape(labels, ()))
        return self.check(labels, count)

    def _check_values(self, labels):
        message, bad = self.rule, self.is_broken(labels)
        if not tf.executing_eagerly():
            with tf.control_dependencies([tf.debugging.Assert(~bad, [message, labels])]):
                return tf.cast(labels, tf.int32)
        if bad:
            raise ValueError(f"{message} Received: {labels.numpy()}")
        return tf.cast(labels, tf.int32)

    @property
    def rule(self):
        """What is asked of the values."""
        return f"`labels` must be in 0..{self.num_classes - 1}, as num_classes={self.num_classes}."

    def is_broken(self, labels):
        """Whether some of the values break the rule, a tensor."""
        return tf.reduce_any((labels < 0) | (labels >= self.num_classes))
