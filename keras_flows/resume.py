"""Training that a callback resumes reads the data in the order that it would have had."""

import keras


class SetEpoch(keras.callbacks.Callback):
    """Tells the shuffled datasets of `data.load` which epoch begins.

    Their order is a function of it, so passes made before, or not made, do not matter.
    """

    def __init__(self, *datasets):
        super().__init__()
        self.epochs = [data.epoch for data in datasets if hasattr(data, "epoch")]

    def on_epoch_begin(self, epoch, logs=None):
        for variable in self.epochs:
            variable.assign(epoch)
