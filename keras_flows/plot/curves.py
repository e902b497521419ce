"""How likely data are, and how that changed with training."""

import csv
import math
import os

import numpy as np

from keras_flows.arguments import check_integers, require
from keras_flows.plot import axes

_UNITS = {"bits_per_dim": "bits/dim", "loss": "loss, nats per example"}


def likelihoods(log_probs, *, size=None, bins=50, ax=None):
    """Draws how the log-likelihoods of several sets of data are distributed.

    ```python
    log_probs = {"data": model.log_prob(images), "inverted": model.log_prob(255 - images)}
    ax = keras_flows.plot.likelihoods(log_probs, size=model.size)
    ```

    Args:
        log_probs: a dict from names to log-likelihoods (n,), in nats, as of `model.log_prob`. Those
            that are not finite are left out, and counted.
        size: the data's dimensions, `model.size`, for a scale of bits per dimension; None for nats.
        bins: how many.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    require(
        isinstance(log_probs, dict) and log_probs,
        "Argument `log_probs` must be a dict from names to log-likelihoods (n,)",
        log_probs=type(log_probs).__name__,
    )
    check_integers(1, bins=bins)
    if size is not None:
        check_integers(1, size=size)
    factor = 1 if size is None else -1 / (size * math.log(2))
    sets = {}
    for name, values in log_probs.items():
        values = np.asarray(values, "float64").ravel() * factor
        finite = values[np.isfinite(values)]
        left_out = len(values) - len(finite)
        sets[f"{name} ({left_out} not finite)" if left_out else str(name)] = finite
    every = np.concatenate(list(sets.values()))
    require(len(every), "Argument `log_probs` must have finite values", names=list(sets))
    edges = np.histogram_bin_edges(every, bins)
    ax = axes.one(ax, figsize=(6, 3.6))
    for name, values in sets.items():
        ax.hist(values, edges, density=True, alpha=0.5, label=name)
    ax.set(xlabel="log-likelihood, nats" if size is None else "bits/dim", ylabel="density")
    ax.legend()
    return ax


def training(log, metric="bits_per_dim", *, ax=None):
    """Draws the course of a training: a metric, and that of the validation, by epochs.

    ```python
    history = model.fit(images, epochs=2, verbose=0)
    ax = keras_flows.plot.training(history)
    ```

    Args:
        log: the `History` that `fit` returns, its dict of lists, or the path of a CSV file as of
            `keras.callbacks.CSVLogger` and `tools/train.py`. An epoch that is there twice, as after
            training was resumed, counts as its last time.
        metric: "bits_per_dim", "loss" or another entry.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    epochs, logged = _read(log)
    require(
        metric in logged,
        f"Argument `metric` must be one of the entries {sorted(logged)}",
        metric=metric,
    )
    curves = {metric: "training", f"val_{metric}": "validation"}
    lengths = {name: len(logged[name]) for name in curves if name in logged}
    require(
        set(lengths.values()) == {len(epochs)},
        f"Argument `log` must have an entry for each of {len(epochs)} epochs; after "
        "`fit(validation_freq=...)` the file of a CSVLogger has",
        lengths=lengths,
    )
    new, ax = ax is None, axes.one(ax, figsize=(6, 3.6))
    for name, label in curves.items():
        if name in logged:
            ax.plot(epochs, logged[name], marker="." if len(epochs) < 30 else None, label=label)
    validation = np.asarray(logged.get(f"val_{metric}", ()), "float64")
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        label = f"best: {validation[best]:.3f}"
        ax.plot(epochs[best], validation[best], "o", color="tab:red", markersize=4, label=label)
    if new:
        ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=_UNITS.get(metric, metric))
    ax.legend()
    return ax


def _read(log):
    """Epochs, from 1, and {name: values} of a History, a dict or a CSV file."""
    if hasattr(log, "history") and hasattr(log, "epoch"):
        return [epoch + 1 for epoch in log.epoch], log.history
    if isinstance(log, dict):
        return list(range(1, max(map(len, log.values()), default=0) + 1)), log
    require(
        isinstance(log, str | os.PathLike),
        "Argument `log` must be a History, its dict, or the path of a CSV file",
        error=TypeError,
        log=log,
    )
    with open(log, newline="") as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file) if row.get("epoch")}
    require(rows, "Argument `log` must be a CSV file with rows and a column `epoch`", log=log)
    rows = sorted(rows.values(), key=lambda row: int(row["epoch"]))
    names = rows[0].keys() - {"epoch"}
    logged = {name: [_number(row[name]) for row in rows] for name in names}
    return [int(row["epoch"]) + 1 for row in rows], logged


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):  # "NA", or half a row
        return math.nan
