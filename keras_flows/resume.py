"""Training that a callback resumes reads the data in the order that it would have had."""

import keras
import tensorflow as tf

from keras_flows.private import datasets_of


class SetEpoch(keras.callbacks.Callback):
    """Tells the shuffled datasets of `data.load` which epoch begins.

    Their order is a function of it, so passes made before, or not made, do not matter.
    """

    def __init__(self, *datasets):
        super().__init__()
        self.epochs = list(_epochs(datasets))

    def on_epoch_begin(self, epoch, logs=None):
        for variable in self.epochs:
            variable.assign(epoch)


def _epochs(datasets):
    """The epochs of all that the datasets are made of, by `map` for instance."""
    for data in datasets:
        if hasattr(data, "epoch"):
            yield data.epoch
        elif isinstance(data, tf.data.Dataset):
            yield from _epochs(datasets_of(data))
