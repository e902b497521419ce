"""Training that was stopped and resumed ends as if it had never been stopped."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from keras.src.utils import file_utils

from keras_flows import Flow, data, layers, networks

EPOCHS = 3
STEPS = 2
IMAGES = np.random.default_rng(0).integers(0, 256, (STEPS * 8, 8, 8, 1), "uint8")


class Stop(keras.callbacks.Callback):
    """Raises in the middle of the second epoch."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == STEPS + 1:
            raise self.error


def train(make_dataset, *callbacks, initial_weights=0):
    """A new model's weights, and its losses epoch by epoch, as in a new process."""
    keras.utils.set_random_seed(0)  # which TensorFlow mixes into the dataset's order
    dataset = make_dataset()
    keras.utils.set_random_seed(initial_weights)
    options, features = {}, None
    if isinstance(dataset.element_spec, tuple):
        options = {"condition_shape": (3,), "condition_network": networks.MLP(2, 1)}
        features = (2,)
    # It is adapted, and draws initial weights; it is no larger, as a step counts and not its cost.
    chain = [layers.Rescale(1 / 256), layers.ActNorm(), layers.Flatten()]
    network = networks.ResidualMLP(4, 1, dropout=0.5)  # it draws, too
    chain += [layers.AdditiveCoupling(network, condition_shape=features)]
    chain += [layers.DiagonalScaling()]
    model = Flow(layers.Chain(chain), (8, 8, 1), **options, seed=3)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, EPOCHS * STEPS)
    model.compile(keras.optimizers.Adam(rate), run_eagerly=True)  # quicker than three traces
    history = model.fit(dataset, epochs=EPOCHS, verbose=0, callbacks=[*callbacks])
    return model.get_weights(), history.history


def assert_resumes(make_dataset, error, backup_dir):
    def backup():
        return keras.callbacks.BackupAndRestore(backup_dir)

    whole_weights, whole = train(make_dataset)
    with pytest.raises(type(error)):
        train(make_dataset, backup(), Stop(error))
    # All comes from the backup, nothing from the new model's own initial weights.
    weights, resumed = train(make_dataset, backup(), initial_weights=1)

    assert {len(values) for values in resumed.values()} == {EPOCHS - 1}
    for name, values in resumed.items():
        np.testing.assert_allclose(values, whole[name][1:], rtol=1e-6, err_msg=name)
    for weight, expected in zip(weights, whole_weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_resumed_training_draws_the_same_noise(conditional, tmp_path):
    conditions = np.random.default_rng(1).normal(2, 3, (len(IMAGES), 3)).astype("float32")

    def in_order():
        examples = (IMAGES, conditions) if conditional else IMAGES
        return tf.data.Dataset.from_tensor_slices(examples).batch(8)

    assert_resumes(in_order, KeyboardInterrupt(), tmp_path / "backup")


def test_resumed_training_reads_in_the_same_order(tmp_path, data_dir):
    def shuffled():
        split = f"train[:{STEPS * 8}]"
        return data.load("digits", split=split, batch_size=8, data_dir=data_dir, seed=5)

    assert_resumes(shuffled, RuntimeError("out of power"), tmp_path / "backup")


@pytest.mark.slow
def test_resumed_training_reads_what_was_mapped_in_the_same_order(tmp_path, data_dir):
    def mapped():
        split = f"train[:{STEPS * 8}]"
        images = data.load("digits", split=split, batch_size=8, data_dir=data_dir, seed=5)
        zipped = tf.data.Dataset.zip(images, tf.data.Dataset.range(100))
        return zipped.map(lambda image, _: 255 - image).prefetch(1)

    assert_resumes(mapped, KeyboardInterrupt(), tmp_path / "backup")


def test_only_a_pass_that_is_read_moves_the_order_on(data_dir):
    """Keras' fit makes two for each epoch, and reads one."""

    def load():
        return data.load("moons", split="train[:100]", batch_size=50, data_dir=data_dir, seed=5)

    def read(dataset):
        return np.concatenate(list(dataset.as_numpy_iterator()))

    dataset, same = load(), load()
    passes = [read(dataset) for _ in range(3)]
    iter(same)  # not read: it does not count
    next(iter(same))
    np.testing.assert_array_equal(read(same), passes[1])
    assert np.any(passes[0] != passes[1])


class Killed(BaseException):
    """As SIGKILL in the middle of a write: no `except Exception` notices."""


class KillAt:
    """Ends the process, as it were, at the given one of all writes; 0 for none."""

    def __init__(self, moment):
        self.moment, self.count = moment, 0

    def write(self):
        self.count += 1
        if self.count == self.moment:
            raise Killed

    def before(self, function):
        def write(*args, **kwargs):
            self.write()
            return function(*args, **kwargs)

        return write

    def in_the_middle_of(self, file):
        """Keras' `File`, of which half is written."""

        @contextlib.contextmanager
        def half(path, mode="r"):
            with file(path, mode) as opened:
                yield opened
                if mode == "w":
                    opened.flush()
                    opened.truncate(opened.tell() // 2 if self.count + 1 == self.moment else None)
                    self.write()

        return half

    def in_the_middle_of_copying(self, copy):
        def half(source, target):
            copy(source, target)
            if self.count + 1 == self.moment:
                os.truncate(target, os.path.getsize(target) // 2)
            self.write()

        return half


def fit_small(folder, epochs=3, **options):
    """A model's weights and its optimizer's, of steps that differ by the epoch."""
    model = Flow(layers.DiagonalScaling(), (2,))
    model.compile(keras.optimizers.Adam(1e-1), run_eagerly=True)
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False, **options)
    x = np.random.default_rng(0).normal(size=(4, 2))
    history = model.fit(x, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]], history.epoch


@pytest.mark.parametrize("double_checkpoint", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_goes_on_whenever_it_was_killed(double_checkpoint, tmp_path, monkeypatch):
    whole, _ = fit_small(tmp_path / "whole", 2)
    for moment in itertools.count(1):
        killer, folder = KillAt(moment), tmp_path / str(moment)
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(os, name, killer.before(getattr(os, name)))
            patch.setattr(file_utils, "File", killer.in_the_middle_of(file_utils.File))
            patch.setattr(file_utils, "copy", killer.in_the_middle_of_copying(file_utils.copy))
            try:
                fit_small(folder, 2, double_checkpoint=double_checkpoint)
            except Killed:
                pass
            else:
                break
        resumed, _ = fit_small(folder, 2, double_checkpoint=double_checkpoint)
        for value, expected in zip(resumed, whole, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=f"{moment}")
    assert moment > 6  # of three writes an epoch


@pytest.mark.parametrize("double_checkpoint", [False, True])
def test_damaged_backups_are_passed_over(double_checkpoint, tmp_path):
    whole, _ = fit_small(tmp_path / "whole")
    fit_small(tmp_path / "run", 2, double_checkpoint=double_checkpoint)
    latest = tmp_path / "run" / "latest.weights.h5"
    half = latest.read_bytes()[: latest.stat().st_size // 2]
    latest.write_bytes(half)
    with pytest.warns(UserWarning, match="damaged backup .* passed over.*latest.weights.h5"):
        resumed, epochs = fit_small(tmp_path / "run")
    assert epochs == ([1, 2] if double_checkpoint else [0, 1, 2])
    for value, expected in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert (tmp_path / "run" / "latest.weights.h5.damaged").read_bytes() == half


def test_backups_without_a_stamp_are_resumed_as_keras_does(tmp_path):
    """Those of versions before."""
    whole, _ = fit_small(tmp_path / "whole")
    fit_small(tmp_path / "run", 2)
    with h5py.File(tmp_path / "run" / "latest.weights.h5", "a") as file:
        del file.attrs["epochs_trained"]
    resumed, epochs = fit_small(tmp_path / "run")
    assert epochs == [2]
    np.testing.assert_allclose(resumed[1], whole[1], rtol=1e-6)


FIT = """
import sys
sys.path.insert(0, "tests")
from test_resume import fit_small
fit_small(sys.argv[1], epochs=200, double_checkpoint=True)
"""


@pytest.mark.slow
def test_training_goes_on_after_sigkill(tmp_path):
    whole, _ = fit_small(tmp_path / "whole", 200, double_checkpoint=True)
    metadata, rng, first = tmp_path / "run" / "training_metadata.json", random.Random(0), []
    for _ in range(4):
        before = metadata.stat().st_mtime_ns if metadata.exists() else 0
        with subprocess.Popen([sys.executable, "-c", FIT, tmp_path / "run"], cwd=ROOT) as process:
            while process.poll() is None and not (
                metadata.exists() and metadata.stat().st_mtime_ns > before
            ):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        with h5py.File(tmp_path / "run" / "latest.weights.h5") as file:
            first.append(file.attrs["epochs_trained"])
    resumed, epochs = fit_small(tmp_path / "run", 200, double_checkpoint=True)
    assert 0 < first[0] <= first[-1] < 200 and epochs[0] == first[-1]
    for value, expected in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "name"), [("save", "model.keras"), ("save_weights", "model.weights.h5")]
)
def test_what_is_saved_replaces_what_was_there_at_once(method, name, tmp_path, monkeypatch):
    """As `BackupAndRestore` saves, too: a process may be killed while it writes."""
    model = Flow(layers.DiagonalScaling(), (2,))
    path = tmp_path / name
    getattr(model, method)(path)
    model.bijection.log_scale.assign([1.0, 2.0])
    before = path.read_bytes()

    def fail(self, filepath, *args, **kwargs):
        with open(filepath, "wb") as file:
            file.write(b"half")
        assert path.read_bytes() == before
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, method, fail)
        with pytest.raises(OSError, match="disk full"):
            getattr(model, method)(path)
    assert [each.name for each in tmp_path.iterdir()] == [name] and path.read_bytes() == before
    getattr(model, method)(path)
    other = Flow(layers.DiagonalScaling(), (2,))
    if method == "save":
        other = keras.models.load_model(path)
    else:
        other.load_weights(path)
    np.testing.assert_array_equal(other.bijection.log_scale, [1.0, 2.0])
    getattr(model, method)(path, True, None)  # as positions, Keras' own third argument, too
    with monkeypatch.context() as patch:
        patch.setattr("builtins.input", lambda *_: "n")  # Keras asks
        getattr(model, method)(path, overwrite=False)
