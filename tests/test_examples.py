"""The examples: what they compute, and a short run of each from end to end."""

import functools
import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_flows import zoo
from keras_flows.calibration import ranks

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

EXAMPLES = pathlib.Path(__file__).parent.parent / "tools" / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


posterior = example("posterior")


def simulations(name, theta, count=100_000):
    theta = np.repeat([np.array(theta)], count, axis=0)
    return posterior.TASKS[name].simulator(theta, np.random.default_rng(0))


def test_two_moons_is_half_a_ring_that_the_parameters_move():
    x = simulations("two_moons", [0.3, -0.5])
    moon = x - [0.25 - 0.2 / np.sqrt(2), -0.8 / np.sqrt(2)]
    radius, angle = np.hypot(*moon.T), np.arctan2(moon[:, 1], moon[:, 0])
    np.testing.assert_allclose([radius.mean(), radius.std()], [0.1, 0.01], atol=2e-4)
    assert np.all(np.abs(angle) < np.pi / 2)
    np.testing.assert_allclose([angle.mean(), angle.std()], [0, np.pi / np.sqrt(12)], atol=0.02)


def test_slcp_is_four_draws_of_one_gaussian():
    x = simulations("slcp", [0.7, -2.9, -1.0, 1.5, 0.9])
    np.testing.assert_allclose(x.mean(axis=0), [0.7, -2.9] * 4, atol=0.03)
    covariance = np.array([[1, 2.25 * np.tanh(0.9)], [2.25 * np.tanh(0.9), 2.25**2]])
    np.testing.assert_allclose(np.cov(x.T), np.kron(np.eye(4), covariance), atol=0.1)


def test_the_gaussian_mixture_has_two_deviations():
    x = simulations("gaussian_mixture", [3.0, -7.0]) - [3.0, -7.0]
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(x.T), 0.505 * np.eye(2), atol=0.01)
    # Both coordinates have the same of the two: the mean of x1^2 x2^2 is no product of means.
    np.testing.assert_allclose(np.mean(np.prod(x**2, axis=1)), 0.5 * (1 + 0.1**4), atol=0.02)


@pytest.mark.parametrize("name", posterior.TASKS)
def test_parameters_fill_the_prior(name):
    task = posterior.TASKS[name]
    theta, x = task.simulate(10_000, np.random.default_rng(0))
    assert theta.shape == (10_000, task.size) and len(x) == 10_000
    assert theta.dtype == x.dtype == np.float32 and np.all(np.isfinite(x))
    for percent in (0, 25, 50, 75, 100):
        expected = (percent / 50 - 1) * task.bound
        np.testing.assert_allclose(
            np.percentile(theta, percent, axis=0), expected, atol=0.03 * task.bound
        )


def test_c2st_is_a_half_for_what_is_alike_and_one_for_what_is_apart():
    a, b = np.random.default_rng(0).normal(size=(2, 300, 1))
    assert abs(posterior.c2st(a, b) - 0.5) < 0.1
    assert posterior.c2st(a, b + 6) > 0.98


class Normal:
    """The posterior, but for the bounds, of x normal around theta with a deviation of 0.5."""

    def __init__(self, deviation=0.5, shift=0.0):
        self.deviation, self.shift = deviation, shift

    def sample(self, n, condition, seed):
        noise = np.random.default_rng(seed).normal(size=(n, len(condition)))
        return tf.constant(condition + self.shift + self.deviation * noise)

    def log_prob(self, theta, condition):
        return -np.sum(((theta - condition - self.shift) / self.deviation) ** 2, axis=1)


def calibration(model, count=300):
    task = posterior.Task(lambda theta, rng: theta + 0.5 * rng.normal(size=theta.shape), 2, 1)
    theta, x = task.simulate(count, np.random.default_rng(0))
    sample = functools.partial(task.sample, model)
    below, less_probable = ranks(model, theta, x, count=9, sample=sample)
    assert below.shape == (count, 2) and less_probable.shape == (count,)
    return [np.bincount(each, minlength=10) for each in (*below.T, less_probable)]


def distance(counts):
    """Chi-square of ten counts that should be alike: 9 expected, above 27.9 once in a thousand."""
    expected = np.sum(counts) / 10
    return np.sum((counts - expected) ** 2 / expected)


def test_samples_outside_of_the_prior_are_drawn_again():
    task = posterior.Task(None, 2, 1)
    samples = task.sample(Normal(), 1000, np.array([0.9, -0.2]), seed=0)
    assert samples.shape == (1000, 2) and np.all(np.abs(samples) <= 1)
    assert len(np.unique(samples, axis=0)) == 1000
    # Of a normal number around 0.9 that is cut off at 1.
    np.testing.assert_allclose(samples[:, 0].mean(), 0.56, atol=0.05)


def test_ranks_of_an_exact_posterior_are_uniform():
    assert all(distance(counts) < 27.9 for counts in calibration(Normal()))


def test_ranks_tell_what_is_wrong_with_a_posterior():
    # That of each parameter is uniform for what is no more than the prior, too; the density's not.
    _, _, region = calibration(Normal(deviation=2.0))
    assert distance(region) > 100 and region[9] > 5 * region[0]
    first, second, _ = calibration(Normal(deviation=1.0, shift=-1.0))
    assert distance(first) > 50 and first[9] > 2 * first[0]
    assert distance(second) > 50 and second[9] > 2 * second[0]


@pytest.mark.parametrize("with_references", [pytest.param(False, marks=pytest.mark.slow), True])
def test_posterior_from_end_to_end(with_references, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tf.config.run_functions_eagerly(True)  # to trace takes longer than so short a run
    monkeypatch.setattr(posterior, "NETWORKS", {"depth": 1, "width": 8, "num_blocks": 1})
    monkeypatch.setattr(posterior, "SAMPLES", 20)
    monkeypatch.setattr(posterior, "CALIBRATIONS", 3)
    arguments = ["posterior.py", "--task", "slcp", "--simulations", "40", "--epochs", "1"]
    monkeypatch.setattr(posterior, "c2st", lambda ours, exact: len(ours) / len(exact) / 2)
    if with_references:
        arguments += ["--references", "."]
        theta, x = posterior.TASKS["slcp"].simulate(20, np.random.default_rng(0))
        np.savez(
            "slcp.npz",
            **{f"observation_{i}": x[i] for i in range(1, 6)},
            **{f"true_parameters_{i}": theta[i] for i in range(1, 6)},
            **{f"posterior_{i}": theta for i in range(1, 6)},
        )
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        posterior.main()
    finally:
        tf.config.run_functions_eagerly(False)
    assert ("C2ST of 40 simulations: 0.500 (0.500" in capsys.readouterr().out) == with_references
    for picture in ("slcp.png", "slcp_calibration.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_guidance_from_end_to_end(tmp_path, monkeypatch, capsys, data_dir):
    """Of a model that knows nothing, a reader that always sees a zero finds a tenth right."""
    monkeypatch.chdir(tmp_path)
    guidance = example("guidance")
    options = {"patch_size": 4, "depth": 1, "width": 4, "num_layers": 1, "num_heads": 1}
    zoo.TarFlow((8, 8, 1), num_classes=10, **options).save("model.keras")
    zoo.TarFlow((8, 8, 1), **options).save("unlabelled.keras")
    learn = guidance.learn_to_read

    def always_zero(*arguments):
        reader = learn(*arguments)
        kernel, bias = reader.layers[-1].get_weights()
        reader.layers[-1].set_weights([0 * kernel, np.arange(10) == 0])
        return reader

    monkeypatch.setattr(guidance, "learn_to_read", always_zero)
    command = ["guidance.py", "--dataset", "digits", "--data_dir", str(data_dir), "--count", "40"]
    command += ["--epochs", "1", "--weights", "0", "3", "--model"]
    monkeypatch.setattr(sys, "argv", [*command, "model.keras"])
    guidance.main()
    shown = capsys.readouterr().out
    assert "| 0 | 10.0% |" in shown and "| 3 | 10.0% |" in shown
    picture = tf.io.decode_png((tmp_path / "demo" / "guidance.png").read_bytes())
    assert picture.shape == (2 * (16 + 2), 20 * (16 + 2), 1)
    monkeypatch.setattr(sys, "argv", [*command, "unlabelled.keras"])
    with pytest.raises(SystemExit):
        guidance.main()
    assert "--model takes one of digits that labels guide" in capsys.readouterr().err
