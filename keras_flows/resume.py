"""Training that a callback resumes reads the data in the order that it would have had."""

import keras

# Keras 3.15 makes an iterator when an epoch begins and another, which it drops, when it ends.
ITERATORS_PER_EPOCH = 2


class ContinueOrder(keras.callbacks.Callback):
    """Advances a reshuffling tf.data.Dataset by the epochs that another callback restored.

    A seeded `shuffle` orders each pass over a dataset as a function of the passes before it, and a
    new process has made none. What `BackupAndRestore` has just restored shows in the optimizer's
    iterations, so this callback must come after it. With an infinite dataset, or one of unknown
    length, the order starts anew.
    """

    def __init__(self, dataset, optimizer):
        super().__init__()
        self.dataset = dataset
        self.iterations = _iterations(optimizer)

    def on_train_begin(self, logs=None):
        restored = _iterations(self.model.optimizer) - self.iterations
        steps = int(self.dataset.cardinality())
        epochs = restored // steps if steps > 0 else 0
        for _ in range(ITERATORS_PER_EPOCH * epochs):
            iter(self.dataset)


def _iterations(optimizer):
    return int(keras.ops.convert_to_numpy(optimizer.iterations))  # int() of a mirrored one raises
