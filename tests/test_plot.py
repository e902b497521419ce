"""Pictures: what is drawn, where, and that nothing else changes."""

import ast
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, perturb

import keras_flows
from keras_flows import Flow, calibration, layers, networks, plot, zoo

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

pytestmark = pytest.mark.usefixtures("eager")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 4, 4, 1), "uint8")


@pytest.fixture(autouse=True)
def unchanged():
    """No function shows a figure, or changes the looks of others."""
    before = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(scope="module")
def model():
    """Of images."""
    chain = layers.Chain([layers.Rescale(1 / 256), layers.ActNorm(), layers.Flatten()])
    model = Flow(chain, (4, 4, 1), seed=0)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    model.adapt(IMAGES)
    return model


class Turned(keras_flows.Bijection):
    """z = (-y, x) / 2, of points (x, y): the density's deviation is 2."""

    def forward_and_log_det(self, x, condition=None, training=False):
        z = keras.ops.stack([-x[:, 1], x[:, 0]], axis=1) / 2
        return z, keras.ops.full(keras.ops.shape(x)[:1], -np.log(4), x.dtype)

    def inverse_and_log_det(self, z, condition=None, training=False):
        x = 2 * keras.ops.stack([z[:, 1], -z[:, 0]], axis=1)
        return x, keras.ops.full(keras.ops.shape(z)[:1], np.log(4), z.dtype)


@pytest.fixture(scope="module")
def plane():
    return Flow(Turned(), (2,), seed=0)


@pytest.fixture(scope="module")
def posterior():
    """p(theta | x), x normal around 0.5, as its own network is."""
    coupling = layers.AffineCoupling(networks.MLP(4), condition_shape=(2,))
    model = Flow(coupling, (2,), condition_shape=(2,), seed=0)
    model.adapt(*RNG.normal(size=(2, 20, 2)))
    perturb(model, scale=0.3)
    return model


def images_of(ax):
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def cell_of(picture, row, column):
    """The image of 4 x 4 in a grid, of which each pixel is 14 x 14 and the line around it 1."""
    rows, columns = (slice(58 * i + 1, 58 * i + 57, 14) for i in (row, column))
    return picture[rows, columns]


# Images.


def test_images_stand_in_a_grid():
    ax = plot.images(IMAGES, columns=4)
    picture = images_of(ax)
    cell = 4 * 14 + 2
    assert picture.shape == (3 * cell, 4 * cell)
    np.testing.assert_array_equal(
        picture[cell + 1 : 2 * cell - 1 : 14, 1 : cell - 1 : 14], IMAGES[4, ..., 0]
    )
    assert images_of(plot.images(IMAGES.repeat(3, axis=3))).shape == (3 * cell, 4 * cell, 3)


def test_black_is_black_and_white_is_white():
    (image,) = plot.images(np.full((1, 4, 4, 1), 100, "uint8")).get_images()
    assert image.get_clim() == (0, 255)


def test_an_interpolation_goes_from_one_to_the_other(model):
    picture = images_of(plot.interpolation(model, IMAGES[:2], IMAGES[2:4], n=3))
    cell = 58
    assert picture.shape == (2 * cell, 3 * cell)

    def shown(row, column):
        return picture[
            row * cell + 1 : (row + 1) * cell : 14, column * cell + 1 : (column + 1) * cell : 14
        ]

    for row in (0, 1):
        for column, image in ((0, IMAGES[row]), (2, IMAGES[row + 2])):
            np.testing.assert_allclose(cell_of(picture, row, column), image[..., 0], atol=1)
        between = (IMAGES[row] / 2 + IMAGES[row + 2] / 2)[..., 0]
        np.testing.assert_allclose(cell_of(picture, row, 1), between, atol=1)
    assert images_of(plot.interpolation(model, IMAGES[0], IMAGES[1], n=4)).shape == (cell, 4 * cell)


def test_temperatures_have_a_row_each(model):
    ax = plot.temperatures(model, (0.0, 1.0), n=3)
    picture = images_of(ax)
    cold, warm = np.split(picture, 2)
    assert len({part.tobytes() for part in np.split(cold, 3, axis=1)}) == 1
    assert len({part.tobytes() for part in np.split(warm, 3, axis=1)}) == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.0", "1.0"]
    np.testing.assert_allclose(ax.get_yticks(), [28.5, 86.5])  # the middles of rows
    assert ax.get_ylabel() == "temperature"


# Points.


def test_a_density_is_that_of_the_model(plane):
    ax = plot.density(plane, bounds=((0, 8), (-6, 6)), resolution=48)
    (mesh,) = ax.collections
    values = np.reshape(mesh.get_array(), (48, 48))  # by rows, which are y
    np.testing.assert_allclose(values.sum() * 8 / 48 * 12 / 48, 0.5, atol=0.01)
    np.testing.assert_allclose(values.max(), 1 / (2 * np.pi * 4), rtol=0.01)
    assert values[:, 0].argmax() in (23, 24) and values[0].argmax() == 0
    assert ax.get_xlim() == (0, 8) and ax.get_ylim() == (-6, 6)


def test_points_lie_over_their_density(plane):
    points = RNG.normal([3, -5], 0.1, (30, 2))
    ax = plot.density(plane, points, resolution=5)
    np.testing.assert_allclose(ax.collections[1].get_offsets(), points)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert 2 < left < points[:, 0].min() and points[:, 0].max() < right < 4
    assert -6 < bottom < points[:, 1].min() and points[:, 1].max() < top < -4


def test_bounds_of_the_model_are_kept():
    model = zoo.NICE((2,), bounds=[(0, 1), None], depth=2, width=2, num_hidden=1)
    points = RNG.uniform(0, 1, (30, 2))
    model.adapt(points)
    ax = plot.density(model, points, resolution=4)
    assert ax.get_xlim() == (0, 1) and ax.get_ylim()[0] < 0


def test_a_grid_of_latents_is_bent_as_data_are(plane):
    ax = plot.latent_grid(plane, extent=3, lines=3, ax=plot.density(plane, resolution=4))
    lines = [line.get_xydata() for line in ax.lines]
    assert len(lines) == 6
    # z = (-3, .) is y = 6, as z1 = -y / 2.
    np.testing.assert_allclose(lines[0][:, 1], 6, atol=1e-5)
    np.testing.assert_allclose(lines[0][[0, -1], 0], [-6, 6], atol=1e-5)
    np.testing.assert_allclose(lines[3][:, 0], -6, atol=1e-5)
    assert ax.collections  # on that of the density


def test_densities_take_a_condition(posterior):
    means = []
    for x in ([0.0, 0.0], [5.0, -5.0]):
        ax = plot.density(posterior, condition=x, bounds=((-9, 9), (-9, 9)), resolution=30)
        (mesh,) = ax.collections
        means.append(mesh.get_array().ravel())
        plot.latent_grid(posterior, condition=x, lines=2, ax=ax)
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_pairs_of_columns():
    data = {"one": RNG.normal(size=(50, 3)), "two": RNG.normal(size=(20, 3))}
    axes = plot.pairs(data, names=("a", "b", "c"), limit=30)
    assert axes.shape == (3, 3)
    first, second = axes[2, 1].collections
    np.testing.assert_array_equal(first.get_offsets(), data["one"][:30, 1:])
    np.testing.assert_array_equal(second.get_offsets(), data["two"][:, 1:])
    assert axes[2, 1].get_xlabel() == "b" and axes[2, 0].get_ylabel() == "c"
    assert len(axes[1, 1].containers) == 2 and not axes[0, 2].axison
    assert [text.get_text() for text in axes[0, 2].get_legend().get_texts()] == ["one", "two"]
    assert plot.pairs(data["one"]).shape == (3, 3)


# Likelihoods and training.


def test_likelihoods_are_in_nats_or_bits_per_dimension():
    log_probs = {"a": np.full(10, -100.0), "b": np.array([-200.0, -np.inf, np.nan])}
    ax = plot.likelihoods(log_probs, bins=10)
    assert ax.get_xlabel() == "log-likelihood, nats"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a", "b (2 not finite)"]
    np.testing.assert_allclose(ax.containers[0].datavalues[-1], 0.1)  # all of a in 10 nats
    ax = plot.likelihoods(log_probs, size=16)
    assert ax.get_xlabel() == "bits/dim"
    np.testing.assert_allclose(ax.dataLim.intervalx, np.array([100, 200]) / (16 * np.log(2)))


def lines_of(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


def test_density_of_whole_numbers_is_that_of_their_cells():
    """Of a feature that is counted, all of [k, k + 1) has the density at k + u."""
    model = Flow(layers.Standardize(), (2,), integer_columns=[1])
    model.adapt(np.stack([RNG.normal(size=50), RNG.integers(0, 4, 50)], axis=1))
    ax = plot.density(model, bounds=((-1, 1), (0, 4)), resolution=8)
    drawn = np.asarray(ax.collections[0].get_array()).reshape(8, 8)
    np.testing.assert_array_equal(drawn[::2], drawn[1::2])
    exact = np.exp(model.log_prob([[0.125, 2.0]]))
    np.testing.assert_allclose(drawn[4, 4], exact[0], rtol=1e-5)


def test_density_around_one_point(plane):
    ax = plot.density(plane, [[0.5, -2.0]], resolution=5)
    np.testing.assert_allclose(ax.get_xlim() + ax.get_ylim(), [-0.5, 1.5, -3, -1])


def test_pairs_of_a_frame_with_booleans():
    pandas = pytest.importorskip("pandas")
    plot.pairs(pandas.DataFrame({"a": [1.0, 2.0, 3.0], "wet": [True, False, True]}))


def test_training_is_drawn_by_epochs(model, tmp_path):
    path = tmp_path / "log.csv"
    log = keras.callbacks.CSVLogger(path)
    history = model.fit(IMAGES, validation_data=(IMAGES,), epochs=2, verbose=0, callbacks=[log])
    drawn = plot.training(history)
    assert drawn.get_xlabel() == "epoch" and drawn.get_ylabel() == "bits/dim"
    assert all(tick == round(tick) for tick in drawn.get_xticks())
    lines = lines_of(drawn)
    assert [epoch for epoch, _ in lines["training"]] == [1, 2]
    values = [value for _, value in lines["validation"]]
    assert values == history.history["val_bits_per_dim"]
    best = f"best: {min(values):.3f}"
    assert lines.keys() == {"training", "validation", best} and lines[best][0][1] == min(values)
    assert lines_of(plot.training(history.history)) == lines
    read = lines_of(plot.training(path))
    np.testing.assert_allclose(read["training"], lines["training"])
    assert plot.training(path, "loss").get_ylabel() == "loss, nats per example"


def test_an_epoch_that_was_resumed_counts_once(tmp_path):
    rows = ["epoch,loss,val_loss", "0,5,6", "1,4,NA", "1,3,4", "2,2,NA", ""]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    lines = lines_of(plot.training(tmp_path / "log.csv", "loss"))
    assert lines["training"] == [[1, 5], [2, 3], [3, 2]] and lines["best: 4.000"] == [[2, 4]]


# Calibration.


class Normal:
    """The posterior of x normal around theta with a deviation of 0.5, under a wide prior."""

    def __init__(self, deviation=0.5):
        self.deviation = deviation

    def sample(self, n, condition, seed):
        noise = np.random.default_rng(seed).normal(size=(n, len(condition)))
        return condition + self.deviation * noise

    def log_prob(self, theta, condition):
        return -np.sum(((theta - condition) / self.deviation) ** 2, axis=1)


def test_ranks_are_drawn_along_the_diagonal_if_they_are_uniform():
    x = RNG.normal(size=(400, 2))
    theta = x + 0.5 * RNG.normal(size=(400, 2))
    nominal = np.linspace(0, 1, 101)

    def curves(deviation):
        below, less_probable = calibration.ranks(Normal(deviation), theta, x, count=19)
        assert below.shape == (400, 2) and less_probable.shape == (400,)
        left, right = plot.calibration(below, less_probable, 19, names=("a", "b"))
        assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"]
        return [line.get_ydata() for line in (*left.lines, *right.lines)]

    for curve in curves(0.5):
        assert np.abs(curve - nominal).max() < 0.12
    # Too sure of itself: the truth lies at its edges, and outside of its regions.
    first, second, coverage = curves(0.2)
    assert min(first[10], second[10]) > 0.2 and coverage[50] < 0.25
    assert curves(2.0)[2][50] > 0.9


def test_samples_may_be_drawn_otherwise():
    asked = []

    def sample(count, condition, seed):
        asked.append((count, condition.tolist(), seed))
        return np.full((count, 2), 9.0)

    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    below, less_probable = calibration.ranks(Normal(), x, x, 5, seed=7, sample=sample)
    assert asked == [(5, [1, 2], 7), (5, [3, 4], 8)]
    assert not below.any() and (less_probable == 5).all()


def test_whole_numbers_take_a_random_place_among_equal_ones():
    """As of any exact posterior of them: else 0 and 1 would have two ranks of ten."""

    class Coin:
        def sample(self, n, condition, seed):
            return np.random.default_rng(seed).integers(0, 2, (n, 1)).astype("float32")

        def log_prob(self, theta, condition):
            return np.zeros(len(theta))

    theta = np.random.default_rng(0).integers(0, 2, (2000, 1))
    for ranks in calibration.ranks(Coin(), theta, theta, count=9):
        counts = np.bincount(ranks.ravel(), minlength=10)
        assert len(counts) == 10 and np.sum((counts - 200) ** 2 / 200) < 27.9  # chi^2, 0.1 %
    again = calibration.ranks(Coin(), theta, theta, count=9)
    np.testing.assert_array_equal(again[1], ranks)


def test_pairs_leave_out_what_is_not_finite():
    points = RNG.normal(size=(20, 2))
    spoiled = np.concatenate([points, [[np.nan, 0], [0, np.inf]]])
    expected, drawn = (plot.pairs(each)[1, 0].collections[0] for each in (points, spoiled))
    np.testing.assert_array_equal(drawn.get_offsets(), expected.get_offsets())


# Where it is drawn, and what is refused.


def drawn(plane, model):
    """Of each function, a call with `ax` or `axes`, and how many it takes."""
    return {
        "calibration": (lambda ax: plot.calibration([[1]], [1], 2, axes=ax), 2),
        "density": (lambda ax: plot.density(plane, resolution=2, ax=ax), 1),
        "images": (lambda ax: plot.images(IMAGES, ax=ax), 1),
        "interpolation": (lambda ax: plot.interpolation(model, IMAGES[0], IMAGES[1], ax=ax), 1),
        "latent_grid": (lambda ax: plot.latent_grid(plane, lines=2, ax=ax), 1),
        "likelihoods": (lambda ax: plot.likelihoods({"a": [-1.0, -2.0]}, ax=ax), 1),
        "pairs": (lambda ax: plot.pairs(np.eye(2), axes=ax), 4),
        "temperatures": (lambda ax: plot.temperatures(model, (1,), n=2, ax=ax), 1),
        "training": (lambda ax: plot.training({"loss": [2, 1]}, "loss", ax=ax), 1),
    }


def test_all_draw_into_the_axes_that_they_are_given(plane, model):
    calls = drawn(plane, model)
    assert calls.keys() == set(plot.__all__)
    for name, (call, count) in calls.items():
        figure, axes = pyplot.subplots(2, count, squeeze=False)
        given = axes[0, 0] if count == 1 else axes[0]
        assert np.all(np.ravel(call(given)) == np.ravel(given)), name
        assert len(pyplot.get_fignums()) == 1, name
        assert not any(ax.has_data() for ax in axes[1]), name
        pyplot.close(figure)
        new = np.ravel(call(None))
        assert len(new) == count and new[0].figure is not figure, name
        assert new[0].figure.get_facecolor() == (1, 1, 1, 1)
        with pytest.raises((TypeError, ValueError), match="Argument `ax(es)?` must .* matplotlib"):
            call("here")
        pyplot.close("all")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, p: plot.images(IMAGES[0]), "`images` must be uint8.*shape=(4, 4, 1)"),
        (lambda m, p: plot.images(IMAGES / 255), "`images` must be uint8.*dtype='float64'"),
        (lambda m, p: plot.images(IMAGES, columns=0), "`columns` must be an integer of at least 1"),
        (lambda m, p: plot.temperatures(p), "`model` must be of images.*input_shape=(2,)"),
        (lambda m, p: plot.temperatures(m, ()), "`temperatures` must have one at least"),
        (lambda m, p: plot.interpolation(p, 0, 1), "`model` must be of images"),
        (lambda m, p: plot.interpolation(m, IMAGES[:2], IMAGES[0]), "one shape.*a=(2, 4, 4, 1)"),
        (lambda m, p: plot.density(m), "`model` must be of vectors of two.*input_shape=(4, 4, 1)"),
        (lambda m, p: plot.density(p, np.ones((3, 3))), "Points must have shape (n, 2).*(3, 3)"),
        (lambda m, p: plot.density(p, bounds=((1, 0), (0, 1))), "`bounds` must be ((left"),
        (lambda m, p: plot.density(p, np.full((3, 2), np.nan)), "Points, or the model's samples"),
        (lambda m, p: plot.latent_grid(p, extent=0), "`extent` must be a number in (0, inf).*=0"),
        (lambda m, p: plot.pairs(np.eye(3), names="ab"), "`names` must have one for each of 3"),
        (lambda m, p: plot.likelihoods([1.0]), "`log_probs` must be a dict.*'list'"),
        (lambda m, p: plot.likelihoods({"a": [np.nan]}), "`log_probs` must have finite"),
        (lambda m, p: plot.training({"loss": [1]}), "one of the entries ['loss'].*'bits_per_dim'"),
        (
            lambda m, p: plot.training({"loss": [3, 2, 1], "val_loss": [2]}, "loss"),
            "an entry for each of 3 epochs.*CSVLogger.*'val_loss': 1",
        ),
        (lambda m, p: plot.calibration([1], [1], 2), "shapes (n, D) and (n,).*below=(1,)"),
        (lambda m, p: calibration.ranks(p, [[1]], [1, 2]), "theta=(1, 1), x=(2,)"),
        (
            lambda m, p: calibration.ranks(Normal(), [[1]], [[1, 2]], 5),
            "`theta` must have the columns of samples, of shape (5, 2).*theta=(1, 1)",
        ),
        (lambda m, p: plot.pairs(np.full((3, 2), np.nan)), "`data` must have rows that are finite"),
    ],
)
def test_bad_arguments(call, message, model, plane):
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(ValueError, match=pattern):
        call(model, plane)


def test_matplotlib_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'keras_flows\[plot\]'"):
        plot.likelihoods({"a": [1.0]})


# The docstrings' examples.


def examples():
    package = ROOT / "keras_flows"
    for path in (
        package / "latent.py",
        package / "calibration.py",
        *package.glob("plot/*.py"),
        *package.glob("callbacks/*.py"),
    ):
        tree = ast.parse(path.read_text())
        for node in [tree, *ast.walk(tree)]:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = getattr(node, "name", path.stem)
                for block in re.findall(
                    r"```python\n(.*?)```", ast.get_docstring(node) or "", re.S
                ):
                    yield pytest.param(block, id=name)


@pytest.mark.slow
@pytest.mark.parametrize("code", examples())
def test_examples_run(code, model, plane, posterior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theta, x = RNG.normal(size=(2, 3, 2))
    names = {"keras_flows": keras_flows, "model": model, "plane": plane, "posterior": posterior}
    exec(code, names | {"images": IMAGES.repeat(6, axis=0), "theta": theta, "x": x})


@pytest.mark.slow
def test_the_pictures_of_the_docs_are_drawn_and_small(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "tools" / "pictures.py", "--output", tmp_path]
    names = ["learning_curves", "moons", "samples"]
    subprocess.run([*map(str, command), *names], check=True, env=environment)
    assert sorted(path.stem for path in tmp_path.iterdir()) == names
    for path in [*tmp_path.iterdir(), *(ROOT / "docs" / "pictures").glob("*.png")]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and 1000 < len(content) < 150_000, path
