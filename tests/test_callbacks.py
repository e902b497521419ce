"""Callbacks that look at a flow while it trains."""

import contextlib
import csv
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, contents, perturb

from keras_flows import Bijection, Flow, callbacks, layers, pictures

sys.path.insert(0, str(ROOT / "tools"))

import cluster  # noqa: E402

pytestmark = pytest.mark.usefixtures("eager")

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 2), "uint8")
POINTS = np.random.default_rng(0).normal(2.0, 3.0, (20, 2)).astype("float32")


def images_model(**options):
    """Two levels, the last of which has three quarters of the latent."""
    levels = [
        layers.Chain([layers.Squeeze(), layers.ActNorm()]),
        layers.Chain([layers.Squeeze(), layers.ActNorm(), layers.InvertibleConv1x1()]),
    ]
    chain = layers.Chain([layers.Rescale(1 / 256), layers.MultiScale(levels)])
    return compiled(Flow(chain, (4, 4, 2), seed=0, **options))


def flat_model():
    """Of images, too, and quicker; its samples change with each step."""
    return compiled(
        Flow(layers.Chain([layers.Flatten(), layers.DiagonalScaling()]), (4, 4, 2), seed=0), 0.1
    )


def points_model(bijection=None, **options):
    return compiled(Flow(bijection or layers.DiagonalScaling(), (2,), seed=0, **options))


def compiled(model, rate=1e-3):
    model.compile(keras.optimizers.Adam(rate), run_eagerly=True)
    return model


def fit(model, x, *used, y=None, epochs=1):
    options = {"batch_size": len(x), "epochs": epochs, "callbacks": [*used], "verbose": 0}
    return model.fit(x, y, **options).history


# SampleGrid.


def test_samples_of_fixed_latents_are_drawn_every_few_epochs(tmp_path):
    grid = callbacks.SampleGrid(tmp_path / "a" / "b", n=3, frequency=2, log_dir=tmp_path / "logs")
    fit(flat_model(), IMAGES, grid, epochs=5)
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    early, late = (tf.io.decode_png((folder / f"epoch_000{i}.png").read_bytes()) for i in (2, 4))
    assert early.shape == late.shape and np.any(early != late)

    # TensorBoard's images, as its own writer has them.
    (events,) = (tmp_path / "logs").iterdir()
    records = [tf.compat.v1.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(events)]
    summaries = [(r.step, value) for r in records for value in r.summary.value]
    assert [(step, value.tag) for step, value in summaries] == [(1, "samples"), (3, "samples")]
    width, height, png = summaries[1][1].tensor.string_val
    assert summaries[1][1].metadata.plugin_data.plugin_name == "images"
    assert (int(height), int(width)) == late.shape[:2]
    assert png == (folder / "epoch_0004.png").read_bytes()


def test_a_picture_is_of_the_weights_at_the_end_of_the_epoch(tmp_path):
    model = flat_model()
    fit(model, IMAGES, callbacks.SampleGrid(tmp_path, n=3, temperature=0.5, seed=4))
    expected = pictures.of_samples(model, 3, 0.5, seed=4, zoom=14)
    drawn = tf.io.decode_png((tmp_path / "epoch_0001.png").read_bytes())
    np.testing.assert_array_equal(drawn, expected[..., :1])  # two channels have no colour


def test_points_that_are_not_finite_are_in_no_picture():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    expected = pictures.scatter(points)
    assert 0 < np.sum(expected < 255)
    bad = np.array([[np.nan, 0, 0], [0, np.inf, 0], [0, 0, -np.inf]], "float32")
    np.testing.assert_array_equal(pictures.scatter(np.concatenate([points, bad])), expected)
    assert np.all(pictures.scatter(bad) == 255)
    assert np.sum(pictures.scatter(np.float32([[-3e38, 0], [3e38, 1]])) < 255) == 2 * 16


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_resumed_training_goes_on_with_the_same_pictures(tmp_path):
    def train(folder, *more, stops=False):
        keras.utils.set_random_seed(0)
        grid = callbacks.SampleGrid(tmp_path / folder, n=4)
        with pytest.raises(KeyboardInterrupt) if stops else contextlib.nullcontext():
            fit(flat_model(), IMAGES, *more, grid, epochs=3)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    train("whole")
    train("parts", backup(), Stop(), stops=True)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    train("parts", backup())
    parts, whole = (list(contents(tmp_path / name).values()) for name in ("parts", "whole"))
    assert len(set(whole)) == 3 and parts == whole


def test_points_and_classes_have_pictures_too(tmp_path):
    fit(points_model(), POINTS, callbacks.SampleGrid(tmp_path, n=50))
    assert tf.io.decode_png((tmp_path / "epoch_0001.png").read_bytes()).shape == (400, 400, 1)

    labels = np.arange(20) % 3
    model = points_model(layers.LearnedPrior(num_classes=3), num_classes=3)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    perturb(model, scale=2.0)
    used = callbacks.SampleGrid(tmp_path / "turns", n=9)
    fit(model, POINTS, used, callbacks.SampleGrid(tmp_path / "one", n=9, condition=1), y=labels)
    turns, one = ((tmp_path / name / "epoch_0001.png").read_bytes() for name in ("turns", "one"))
    assert turns != one
    with pytest.raises(ValueError, match="`condition` must"):
        fit(model, POINTS, callbacks.SampleGrid(tmp_path / "none", condition=7), y=labels)
    assert not (tmp_path / "none").exists()


# RoundTripError.


@keras.saving.register_keras_serializable(package="tests")
class AlmostInverted(Bijection):
    """The identity, but its inverse is off by 0.7 in the last element, and NaN beyond 100."""

    def forward_and_log_det(self, x, condition=None, training=False):
        return x, tf.zeros_like(x[:, 0])

    def inverse_and_log_det(self, z, condition=None, training=False):
        x = z - [[0.0, 0.7]]
        return tf.where(z > 100, math.nan, x), tf.zeros_like(x[:, 0])


def almost_inverted():
    return points_model(layers.Chain([AlmostInverted(), layers.DiagonalScaling()]))


def test_the_largest_round_trip_error_is_logged(tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(almost_inverted(), POINTS, callbacks.RoundTripError(POINTS, bound=0.8), log)
    np.testing.assert_allclose(history["round_trip_error"], [0.7], rtol=1e-5)
    with open(tmp_path / "log.csv") as file:
        (row,) = csv.DictReader(file)
    assert abs(float(row["round_trip_error"]) - 0.7) < 1e-5


@pytest.mark.parametrize("bound, warns", [(0.6, True), (None, False)])
def test_a_round_trip_error_past_the_bound_is_warned_of(bound, warns, recwarn):
    fit(almost_inverted(), POINTS, callbacks.RoundTripError(POINTS, bound=bound))
    messages = [str(w.message) for w in recwarn if w.category is RuntimeWarning]
    assert len(messages) == warns
    assert not warns or "of 20 examples is 0.7, past the bound 0.6" in messages[0]


def test_an_inverse_that_overflows_has_an_infinite_error():
    far = np.array([[1.0, 2.0], [101.0, 3.0]], "float32")
    with pytest.warns(RuntimeWarning, match="inf, past the bound 5"):
        history = fit(almost_inverted(), POINTS, callbacks.RoundTripError(far, bound=5))
    assert history["round_trip_error"] == [math.inf]


def test_images_are_compared_as_the_bijection_sees_them():
    history = fit(images_model(), IMAGES, callbacks.RoundTripError(IMAGES))
    assert 0 < history["round_trip_error"][0] < 1e-3  # levels, which decode would round away


# LatentStatistics.


def test_latent_statistics_are_those_of_each_level():
    model = images_model()
    history = fit(model, IMAGES, callbacks.LatentStatistics(IMAGES[:7]))
    latents = np.float64(model.encode(IMAGES[:7]))
    for level, part in ((1, latents[:, :16]), (2, latents[:, 16:])):
        centred = part - part.mean()
        kurtosis = np.mean(centred**4) / np.mean(centred**2) ** 2 - 3
        moments = {"mean": part.mean(), "deviation": part.std(), "excess_kurtosis": kurtosis}
        for name, value in moments.items():
            logged = history[f"latent_{name}_level_{level}"]
            np.testing.assert_allclose(logged, [value], rtol=1e-6, atol=1e-7, err_msg=name)
    assert len([name for name in history if name.startswith("latent")]) == 6


def test_latent_statistics_without_levels_are_of_all():
    history = fit(points_model(), POINTS, callbacks.LatentStatistics(POINTS.tolist()))
    assert abs(history["latent_mean"][0] - POINTS.mean()) < 0.1
    assert abs(history["latent_deviation"][0] - POINTS.std()) < 0.1
    assert "latent_excess_kurtosis" in history


@pytest.mark.parametrize("swaps", [False, True])
def test_averages_are_attended_behind_a_callback_that_swaps_them(swaps):
    model = points_model()
    model.compile(keras.optimizers.SGD(0.01, use_ema=True), run_eagerly=True)
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if swaps else []
    history = fit(model, POINTS, *swap, callbacks.LatentStatistics(POINTS), epochs=3)
    # At the end of training Keras leaves the averages in the model.
    difference = history["latent_deviation"][-1] - np.std(model.encode(POINTS))
    assert (abs(difference) < 1e-5) == swaps


# What is refused.


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"directory": 3}, TypeError, "Argument `directory` must be a path. Received: directory=3"),
        ({"log_dir": 3}, TypeError, "Argument `log_dir` must be a path. Received: log_dir=3"),
        ({"n": 0}, ValueError, "Argument `n` must be an integer of at least 1"),
        ({"frequency": 0}, ValueError, "Argument `frequency` must be an integer of at least 1"),
        ({"seed": -1}, ValueError, "Argument `seed` must be an integer of at least 0"),
        ({"temperature": -0.1}, ValueError, "Argument `temperature` must be .*=-0.1"),
        ({"temperature": "hot"}, ValueError, "Argument `temperature` must be .*='hot'"),
    ],
)
def test_bad_arguments_of_sample_grid(arguments, error, message):
    with pytest.raises(error, match=message):
        callbacks.SampleGrid(**{"directory": "samples", **arguments})


@pytest.mark.parametrize("bound", [0, -1, "small"])
def test_bad_bounds_of_round_trip_errors(bound):
    with pytest.raises(ValueError, match="Argument `bound` must be a number.*Received"):
        callbacks.RoundTripError(POINTS, bound=bound)


@pytest.mark.parametrize("kind", [callbacks.RoundTripError, callbacks.LatentStatistics])
def test_bad_examples_are_refused_before_training(kind):
    model = points_model()
    with pytest.raises(ValueError, match=f"`examples` and `condition` of {kind.__name__}: .*2"):
        fit(model, POINTS, kind(POINTS[:, :1]))
    with pytest.raises(ValueError, match=f"`condition` of {kind.__name__}: .*unconditional"):
        fit(model, POINTS, kind(POINTS, np.zeros(20, int)))
    labelled = points_model(layers.LearnedPrior(num_classes=3), num_classes=3)
    with pytest.raises(ValueError, match="`condition` of .*one row for each of 20 .*Received: 19"):
        fit(labelled, POINTS, kind(POINTS, np.zeros(19, int)), y=np.zeros(20, int))
    assert int(model.optimizer.iterations) == 0


def test_other_models_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for used in (
        callbacks.SampleGrid(tmp_path),
        callbacks.RoundTripError(POINTS),
        callbacks.LatentStatistics(POINTS),
    ):
        with pytest.raises(TypeError, match=f"{type(used).__name__} is a callback for .* Flow"):
            model.fit(POINTS, POINTS[:, :1], callbacks=[used], verbose=0)


def test_a_single_number_has_no_picture(tmp_path):
    model = compiled(Flow(layers.DiagonalScaling(), (1,)))
    with pytest.raises(ValueError, match=r"vectors of two numbers.*input_shape=\(1,\)"):
        fit(model, POINTS[:, :1], callbacks.SampleGrid(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


# Replicas and workers.

WORKER = """
import pathlib, sys
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras
from keras_flows import callbacks, zoo

folder = pathlib.Path(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), "uint8")
with strategy.scope():
    model = zoo.RealNVP((4, 4, 1), levels=1, depth=1, width=4, num_blocks=1, seed=0)
    model.compile("adam")
history = model.fit(
    tf.data.Dataset.from_tensor_slices(images).batch(4),
    epochs=2,
    verbose=0,
    callbacks=[
        callbacks.SampleGrid(folder / "samples", n=4, log_dir=folder / "logs"),
        callbacks.RoundTripError(images),
        callbacks.LatentStatistics(images),
    ],
).history
print({name: values for name, values in sorted(history.items())})
print(strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_workers_log_the_same_and_the_chief_draws(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "shared").mkdir()
    command = [sys.executable, str(script), str(tmp_path / "shared")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    workers = cluster.start_workers(command, 2, **pipes)
    printed = [worker.communicate(timeout=300)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert printed[0] == printed[1] and printed[0][1] == "2"
    assert "'latent_mean_level_1'" in printed[0][0] and "'round_trip_error'" in printed[0][0]
    files = sorted(path.name for path in (tmp_path / "shared" / "samples").iterdir())
    assert files == ["epoch_0001.png", "epoch_0002.png"]
    assert len(list((tmp_path / "shared" / "logs").iterdir())) == 1
