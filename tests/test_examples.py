"""The examples: what they compute, and a short run of each from end to end."""

import functools
import importlib.util
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import data, zoo
from keras_flows.calibration import ranks

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

EXAMPLES = pathlib.Path(__file__).parent.parent / "tools" / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


few_labels, fine_tuning, posterior = map(example, ("few_labels", "fine_tuning", "posterior"))


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
    assert re.search(r"\| digits's test digits \| \d+\.\d% \| [1-9]", shown)
    picture = tf.io.decode_png((tmp_path / "demo" / "guidance.png").read_bytes())
    assert picture.shape == (2 * (16 + 2), 20 * (16 + 2), 1)
    monkeypatch.setattr(sys, "argv", [*command, "model.keras", "--temperature", "0"])
    guidance.main()
    assert "| 3 | 10.0% | 0.0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "unlabelled.keras"])
    with pytest.raises(SystemExit):
        guidance.main()
    assert "--model takes one of digits that labels guide" in capsys.readouterr().err


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def numbers(row):
    return [float(figure) for figure in re.findall(r"-?\d+\.\d+|(?<=\| )\d+(?= \|)", row)]


def test_few_labels_learns_and_scores_by_different_digits():
    labels = np.repeat(np.arange(10), 5)
    data = [np.arange(50), labels]
    own, others = few_labels.divide(data, 3, seed=0)
    np.testing.assert_array_equal(own[1], np.tile(np.arange(10), 3))
    np.testing.assert_array_equal(np.sort(np.concatenate([own[0], others[0]])), data[0])
    for indices, shown in (own, others):
        np.testing.assert_array_equal(shown, labels[indices])
    assert not np.array_equal(own[0], few_labels.divide(data, 3, seed=1)[0][0])


def test_copies_are_moved_by_up_to_a_pixel_and_what_leaves_is_lost():
    images = np.zeros((2, 4, 4, 1), "uint8")
    images[0, 1, 2], images[1, 0, 0] = 7, 9
    copies, labels = few_labels.moved([images, np.array([3, 5])], 200, seed=0)
    assert copies.shape == (200, 4, 4, 1) and copies.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.tile([3, 5], 100))
    places = [tuple(np.argwhere(copy[..., 0] == 7)[0]) for copy in copies[::2]]
    assert set(places) == {(row, column) for row in (0, 1, 2) for column in (1, 2, 3)}
    corner = {tuple(map(tuple, np.argwhere(copy[..., 0]))) for copy in copies[1::2]}
    assert corner == {(), *(((row, column),) for row in (0, 1) for column in (0, 1))}


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("validation", [False, True])
def test_few_labels_from_end_to_end(validation, tmp_path, monkeypatch, capsys, data_dir):
    monkeypatch.chdir(tmp_path)
    accuracies, scored_by = few_labels.accuracies, set()

    def spy(learned, scored, seed):
        scored_by.add(len(scored[1]))
        return accuracies(learned, scored, seed)

    monkeypatch.setattr(few_labels, "accuracies", spy)
    arguments = ["--data_dir", data_dir, "--per_class", 3, "--samples", 20, "--epochs", 1]
    run(few_labels, monkeypatch, *arguments, "--seeds", 2, *["--validation"] * validation)
    rows = [line for line in capsys.readouterr().out.splitlines() if "+-" in line]
    names = ["30 digits", "and 20 samples", "and 20 moved copies", "all 1500 digits"]
    assert scored_by == ({1470} if validation else {297})
    for name, row in zip(names[: 4 - validation], rows, strict=True):
        means, deviations = numbers(row)[::2], numbers(row)[1::2]
        assert row.startswith(f"| {name} |") and len(means) == len(few_labels.CLASSIFIERS)
        assert all(90 < mean <= 100 if "all" in name else 20 < mean < 95 for mean in means)
        assert all(0 <= deviation < 10 for deviation in deviations)
    picture = tf.io.decode_png((tmp_path / "demo" / "few_labels.png").read_bytes())
    assert picture.shape == (6 * (4 * 8 + 2), 10 * (4 * 8 + 2), 1)


@pytest.fixture
def small_preset(tmp_path, monkeypatch):
    """Its folder; what it knows is not what a new model of its kind is adapted to."""
    monkeypatch.chdir(tmp_path)
    model = zoo.Glow((14, 14, 1), levels=1, depth=1, width=4, seed=3)
    model.adapt(np.random.default_rng(0).integers(0, 256, (50, 14, 14, 1), "uint8"))
    perturb(model)
    model.save_to_preset("small")
    return tmp_path / "small"


@pytest.mark.slow
def test_digits_are_enlarged_amid_black(data_dir):
    images = fine_tuning.digits("train[:20]", (28, 28, 1), data_dir)
    assert images.shape == (20, 28, 28, 1) and images.dtype == np.uint8
    middle = images[:, 4:-4, 4:-4]
    assert images.sum() == middle.sum() and middle.max() > 200
    own = data.load("digits", split="train[:20]", batch_size=20, data_dir=data_dir, seed=0)
    np.testing.assert_allclose(middle.mean(), np.mean(next(iter(own))), rtol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_fine_tuning_from_end_to_end(small_preset, monkeypatch, capsys, data_dir):
    """At a rate of zero, nearly, nothing is learned: the other is chosen."""
    arguments = ["--preset", small_preset, "--data_dir", data_dir, "--count", 64]
    run(fine_tuning, monkeypatch, *arguments, "--rates", 1e-9, 1e-3, "--epochs", 1, 3)
    lines = capsys.readouterr().out.splitlines()
    tried = [line.partition(":")[0] for line in lines if line.endswith("validation")]
    assert tried == [
        f"{name}, rate {rate}"
        for name in ("fine-tuned", "from scratch")
        for rate in ("1e-09", "0.001")
    ]
    header, _, *rows = (line for line in lines if line.startswith("|"))
    assert "| fine-tuned, rate 0.001 |" in header and "| from scratch, rate 0.001 |" in header
    epochs, tuned, tuned_minutes, new, new_minutes = np.transpose([numbers(row) for row in rows])
    np.testing.assert_array_equal(epochs, [0, 1, 3])
    for bits, minutes in ((tuned, tuned_minutes), (new, new_minutes)):
        assert np.all(np.diff(bits) < 0) and np.all(np.diff(minutes) >= 0) and minutes[0] == 0
    train, test = (
        fine_tuning.digits(split, (14, 14, 1), data_dir) for split in ("train[:64]", "test")
    )
    for load_weights, first in ((True, tuned[0]), (False, new[0])):
        keras.utils.set_random_seed(0)
        model = zoo.Glow.from_preset(small_preset, load_weights, seed=0)
        if not load_weights:
            model.adapt(train)
        before = model.evaluate(test, batch_size=100, return_dict=True, verbose=0)
        np.testing.assert_allclose(first, before["bits_per_dim"], atol=1e-3)
    assert abs(tuned[0] - new[0]) > 0.1
    assert (small_preset.parent / "demo" / "fine_tuning.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (few_labels, ["--seeds", 0], "--per_class, --samples, --epochs and --seeds must be"),
        (few_labels, ["--samples", -1], "--per_class, --samples, --epochs and --seeds must be"),
        (fine_tuning, ["--count", 0], "--count must be in 1..1200. Received: 0"),
        (fine_tuning, ["--count", 1201], "--count must be in 1..1200. Received: 1201"),
        (fine_tuning, ["--epochs", 2, 2], "--epochs must rise from 1 or more"),
        (fine_tuning, ["--epochs", 0, 2], "--epochs must rise from 1 or more"),
        (fine_tuning, ["--rates", 1e-3, 0], "--rates be positive"),
    ],
)
def test_arguments_that_say_nothing_are_refused(module, arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(module, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_data_and_models_that_do_not_fit_are_refused(monkeypatch, capsys, data_dir, tmp_path):
    with pytest.raises(SystemExit):
        run(few_labels, monkeypatch, "--data_dir", data_dir, "--per_class", 146)
    assert "--per_class must be below 146. Received: 146" in capsys.readouterr().err
    for name, shape in {"points": (2,), "colours": (8, 8, 3)}.items():
        model = zoo.NICE(shape, depth=2, width=4)
        model.adapt(np.random.default_rng(0).integers(0, 256, (50, *shape)).astype("float32"))
        model.save_to_preset(tmp_path / name)
        with pytest.raises(SystemExit):
            run(fine_tuning, monkeypatch, "--preset", tmp_path / name)
        assert "--preset takes one of digits without labels" in capsys.readouterr().err
