"""Simulation-based calibration: ranks of the truth, and what credible regions cover."""

import numpy as np

from keras_flows.arguments import check_integers, require


def ranks(model, theta, x, count=99, *, seed=0, sample=None):
    """Among `count` samples at each condition x: how many are below theta, and less probable.

    Of an exact p(theta | x), of which pairs (theta, x) are drawn anew, all numbers 0..count are
    alike probable (Talts et al. 2018, arXiv:1804.06788). The density's rank is that of the smallest
    credible region, of highest density, that theta is in. `plot.calibration` draws both.

    ```python
    below, less_probable = keras_flows.calibration.ranks(posterior, theta, x, count=9)
    ```

    Args:
        model: a conditional Flow of vectors (D,).
        theta: (n, D), with x none that the model was trained on.
        x: the n conditions.
        count: samples at each.
        seed: an integer; condition i is sampled by seed + i, modulo 2^31, and equal numbers take
            places drawn by it.
        sample: a function of (count, condition, seed) that gives samples (count, D), in place of
            `model.sample`: those inside of a prior, for instance.

    Returns:
        Integers (n, D) and (n,), from 0 to `count`.
    """
    check_integers(1, count=count)
    check_integers(0, seed=seed)
    theta, x = np.asarray(theta), np.asarray(x)
    require(
        theta.ndim == 2 and len(theta) == len(x),
        "Arguments `theta` and `x` must have shapes (n, D) and (n, ...)",
        theta=theta.shape,
        x=x.shape,
    )
    if sample is None:

        def sample(count, condition, seed):
            return model.sample(count, condition=condition, seed=seed)

    below, less_probable = [], []
    for i in range(len(x)):
        samples = np.asarray(sample(count, x[i], (seed + i) % 2**31))
        require(
            samples.shape == (count, theta.shape[1]),
            f"Argument `theta` must have the columns of samples, of shape {samples.shape}",
            theta=theta.shape,
        )
        points = np.concatenate([theta[i : i + 1], samples])
        conditions = np.repeat(x[i : i + 1], len(points), axis=0)
        log_prob = np.asarray(model.log_prob(points, condition=conditions))
        rng = np.random.default_rng((seed, i))
        below.append(_rank(theta[i], samples, rng))
        less_probable.append(_rank(log_prob[0], log_prob[1:], rng))
    return np.array(below), np.array(less_probable)


def _rank(value, samples, rng):
    """How many samples are below; of those that are equal, as whole numbers are, a random part."""
    return np.sum(samples < value, axis=0) + rng.integers(0, 1 + np.sum(samples == value, axis=0))
