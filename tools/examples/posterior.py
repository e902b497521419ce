#!/usr/bin/env python
"""Inference from simulations: the posterior p(theta | x) of a simulator, by a conditional flow.

tools/examples/posterior.py --task two_moons
tools/examples/posterior.py --task slcp --simulations 100000 --epochs 60 --references sbibm

Three tasks of Lueckmann et al. 2021 (arXiv:2101.04653). With `--references`, a folder of TASK.npz
with `true_parameters_i`, `observation_i` and `posterior_i`, samples of the exact posterior, it is
told how well a classifier tells ours from those (C2ST: 0.5 is perfect, 1 is worst).
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import matplotlib
import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import keras_flows

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path("demo")
SAMPLES = 10_000  # of each posterior
DRAWS = 10_000_000  # at most, where they fall outside of the prior
CALIBRATIONS = 300  # simulations to calibrate by
NETWORKS = {"depth": 6, "width": 64}  # chosen, as the rest, by the loss in validation


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="two_moons")
    parser.add_argument("--simulations", type=int, default=10_000, help="to train on")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--references", type=pathlib.Path, help="folder of TASK.npz")
    options = parser.parse_args()

    keras.utils.set_random_seed(0)
    OUTPUT.mkdir(exist_ok=True)
    task, rng = TASKS[options.task], np.random.default_rng(0)
    if options.references:  # before an hour of training, as it may not be there
        stored = np.load(options.references / f"{options.task}.npz")
    model = fit(task, options.simulations, options.epochs, rng)

    # Not trained on, any of these.
    true, observed = task.simulate(5, rng)
    references = []
    if options.references:
        true, observed, references = (
            [stored[f"{name}_{i}"] for i in range(1, 6)]
            for name in ("true_parameters", "observation", "posterior")
        )
    posteriors = [task.sample(model, SAMPLES, x, seed=i) for i, x in enumerate(observed)]
    picture = OUTPUT / f"{options.task}.png"
    draw_posteriors(picture, task, posteriors, references, true)

    sample = functools.partial(task.sample, model)
    ranks = keras_flows.calibration.ranks(
        model, *task.simulate(CALIBRATIONS, rng), count=99, sample=sample
    )
    calibration = OUTPUT / f"{options.task}_calibration.png"
    axes = keras_flows.plot.calibration(*ranks, count=99)
    axes[0].figure.savefig(calibration, dpi=120)

    print(f"\nPosteriors of five observations: {picture}")
    print(f"Ranks and coverage of {CALIBRATIONS} simulations: {calibration}")
    if references:
        scores = [c2st(*pair) for pair in zip(posteriors, references, strict=True)]
        each = " ".join(f"{score:.3f}" for score in scores)
        print(f"C2ST of {options.simulations} simulations: {np.mean(scores):.3f} ({each})")


def fit(task, simulations, epochs, rng):
    """A model of p(theta | x) from so many simulations, a tenth of which stops the training."""
    theta, x = task.simulate(simulations, rng, task.beyond)
    batch_size = 256
    model = keras_flows.zoo.NSF(
        (task.size,),
        condition_shape=x.shape[1:],
        condition_network=task.condition_network(),
        dropout=task.dropout,
        **NETWORKS,
        seed=0,
    )
    steps = epochs * int(np.ceil(0.9 * simulations / batch_size))
    model.compile(task.optimizer(steps))
    # Patient: the loss may stand still until the learning rate falls.
    stop = keras.callbacks.EarlyStopping(patience=epochs // 2 + 1, restore_best_weights=True)
    model.fit(
        *(theta, x),
        batch_size=batch_size,
        epochs=epochs,
        validation_split=0.1,
        callbacks=[stop],
        verbose=2,
    )
    return model


def adam(steps):
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    return keras.optimizers.Adam(schedule, global_clipnorm=5.0)


def muon(steps):
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    return keras_flows.optimizers.Muon(schedule, adam_lr_ratio=0.3, global_clipnorm=5.0)


def two_moons(theta, rng):
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    moon = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    first, second = theta.T
    return moon + np.stack([-np.abs(first + second), second - first], axis=1) / np.sqrt(2)


def slcp(theta, rng):
    """Four draws of a Gaussian in the plane, one after the other."""
    mean, deviation, correlation = theta[:, :2], theta[:, 2:4] ** 2, np.tanh(theta[:, 4])
    covariance = deviation[:, :, None] * deviation[:, None, :]
    covariance *= np.where(np.eye(2) == 1, 1, correlation[:, None, None])
    factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(2))
    draws = mean[:, None] + rng.normal(size=(len(theta), 4, 2)) @ factor.swapaxes(1, 2)
    return draws.reshape(len(theta), 8)


def gaussian_mixture(theta, rng):
    deviation = rng.choice([1, 0.1], size=(len(theta), 1))
    return theta + deviation * rng.normal(size=theta.shape)


def set_network(width=64):
    """Features (batch, width) of four draws (batch, 8) that do not depend on their order.

    Twice, each draw by itself, beside what is the mean of all; then the mean.
    """
    inputs = keras.Input((8,))
    draws = keras.layers.Reshape((4, 2))(inputs)
    for _ in range(2):
        for _ in range(2):
            draws = keras.layers.Dense(width, "relu")(draws)
        mean = keras.layers.GlobalAveragePooling1D(keepdims=True)(draws)
        draws = keras.layers.Concatenate()([draws, keras.layers.UpSampling1D(4)(mean)])
    mean = keras.layers.GlobalAveragePooling1D()(draws)
    return keras.Model(inputs, keras.layers.Dense(width)(mean))


class Task(NamedTuple):
    """A simulator of x, and its prior: theta is uniform in [-bound, bound]^size.

    A flow is smooth, and so bad at the edge of a prior where posteriors end. It is then trained on
    simulations up to `beyond` times the bound, and only samples inside of the prior are kept: of a
    uniform prior, they have the same density there.
    """

    simulator: Callable
    size: int
    bound: float
    condition_network: Callable = lambda: None
    beyond: float = 1.0
    dropout: float = 0.1
    optimizer: Callable = adam

    def simulate(self, count, rng, beyond=1.0):
        bound = beyond * self.bound
        theta = rng.uniform(-bound, bound, (count, self.size))
        return np.float32(theta), np.float32(self.simulator(theta, rng))

    def sample(self, model, count, x, seed):
        """`count` samples (count, size) of p(theta | x); those outside of the prior draw again."""
        inside = np.empty((0, self.size), "float32")
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS // count):
            drawn = model.sample(count, condition=x, seed=int(rng.integers(2**31))).numpy()
            inside = np.concatenate([inside, drawn[np.all(np.abs(drawn) <= self.bound, axis=1)]])
            if len(inside) >= count:
                return inside[:count]
        raise SystemExit(f"Of {DRAWS:,} samples at {x} {len(inside)} are inside of the prior.")


TASKS = {
    "two_moons": Task(two_moons, 2, 1, beyond=1.1, dropout=0.3, optimizer=muon),
    "slcp": Task(slcp, 5, 3, set_network),
    "gaussian_mixture": Task(gaussian_mixture, 2, 10),
}


def c2st(samples, reference):
    """How often a classifier is right about which of two sets, alike in size, a sample is from."""
    both = np.concatenate([samples, reference])
    both = (both - reference.mean(axis=0)) / reference.std(axis=0)
    classifier = MLPClassifier([10 * both.shape[1]] * 2, max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    is_reference = np.arange(len(both)) >= len(samples)
    return cross_val_score(classifier, both, is_reference, cv=folds).mean()


def draw_posteriors(path, task, posteriors, references, true):
    """A row of pictures for ours, one for the exact ones; two parameters in each."""
    rows = [("flow", posteriors)] + ([("exact", references)] if references else [])
    columns = len(posteriors)
    figure, axes = pyplot.subplots(
        *(len(rows), columns),
        figsize=(2.4 * columns, 2.4 * len(rows) + 0.3),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    pair = slice(2, 4) if task.size > 3 else slice(0, 2)  # of slcp the deviations, not the mean
    for row, (name, clouds) in zip(axes, rows, strict=True):
        row[0].set_ylabel(f"{name}\n$\\theta_{pair.stop}$")
        for axis, cloud, theta in zip(row, clouds, true, strict=True):
            axis.scatter(*cloud[:4000, pair].T, s=1, linewidths=0, alpha=0.6)
            axis.scatter(*theta[pair], marker="+", c="tab:red")
            axis.set(xlim=(-task.bound, task.bound), ylim=(-task.bound, task.bound), aspect="equal")
    for axis in axes[-1]:
        axis.set_xlabel(rf"$\theta_{pair.start + 1}$")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
