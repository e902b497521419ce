"""How a step under XLA refuses a batch."""

import tensorflow as tf


class Refusal:
    """Which rule a batch broke in a step under XLA, which drops assertions. Not saved."""

    def __init__(self):
        self.rules = []
        self.index = tf.Variable(-1)  # of the rule

    def note(self, rules, broken):
        """Whether to go on: once a batch is refused, so are those of the same call after it."""
        self.rules = rules
        now = tf.where(tf.reduce_any(broken), tf.argmax(broken, output_type=tf.int32), -1)
        index = tf.where(self.index < 0, now, self.index)
        self.index.assign(index)
        return index < 0

    def raised_by(self, step):
        """`step`, which raises the rule that it noted."""

        def step_or_error(iterator):
            logs = step(iterator)
            index = int(self.index)
            if index >= 0:
                self.index.assign(-1)
                raise tf.errors.InvalidArgumentError(None, None, self.rules[index])
            return logs

        return step_or_error
