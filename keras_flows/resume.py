"""Training that a callback resumes goes on from one moment, and reads the data in their order."""

import json
import os
import shutil
import warnings

import h5py
import keras
import tensorflow as tf

from keras_flows import distribute, folders
from keras_flows.private import datasets_of

_EPOCHS = "epochs_trained"  # an attribute of a file of weights


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
        if isinstance(data, tf.data.Dataset):
            yield from [data.epoch] if hasattr(data, "epoch") else _epochs(datasets_of(data))


class Backups(keras.callbacks.Callback):
    """Makes sure that each `BackupAndRestore` finds weights and the epoch which they belong to.

    Keras writes two files, one after the other. That of the weights says how many epochs made them,
    too (`stamp`), and before Keras reads the other one, it is made to say the same.
    """

    def __init__(self, callbacks):
        super().__init__()
        backups = [c for c in callbacks if isinstance(c, keras.callbacks.BackupAndRestore)]
        self.folders = [os.fspath(c.backup_dir) for c in backups]

    def on_train_begin(self, logs=None):
        if distribute.is_chief(self.model.distribute_strategy):
            for folder in self.folders:
                if os.path.isdir(folder):
                    _mend(folder)

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epochs_trained = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.epochs_trained = epoch + 1


def stamp(path, epochs):
    """Notes in a file of weights how many epochs of a `fit` made them; None if no `fit` did."""
    if epochs is not None:
        with h5py.File(path, "a") as file:
            file.attrs[_EPOCHS] = epochs


def _mend(folder):
    """Passes over damaged weights for those before them, with the epoch of what is left."""
    weights = os.path.join(folder, "latest.weights.h5")
    metadata = os.path.join(folder, "training_metadata.json")
    for suffix in ("", ".bkp"):
        if not os.path.exists(weights + suffix):
            continue
        try:
            epochs = _epochs_trained(weights + suffix)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            warnings.warn(
                f"A damaged backup of the training is passed over: {weights + suffix} ({error})",
                stacklevel=2,
            )
            os.replace(weights + suffix, weights + suffix + ".damaged")
            continue
        if suffix:
            _copy(weights + suffix, weights)
            if epochs is None and os.path.exists(metadata + suffix):
                _copy(metadata + suffix, metadata)
        if epochs is not None:
            with folders.replaced_file(metadata) as scratch, open(scratch, "w") as file:
                json.dump({"epoch": int(epochs), "batch": 0}, file)
        return
    if os.path.exists(metadata):  # of what is no longer there
        os.replace(metadata, metadata + ".damaged")


def _epochs_trained(path):
    """What `stamp` noted, None if nothing, of a file of which all can be read."""
    with h5py.File(path) as file:
        file.visititems(lambda _, item: _read(item))
        return file.attrs.get(_EPOCHS)


def _read(item):
    if isinstance(item, h5py.Dataset):
        item[()]


def _copy(path, copy):
    with folders.replaced_file(copy) as scratch:
        shutil.copyfile(path, scratch)
