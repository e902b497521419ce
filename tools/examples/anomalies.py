#!/usr/bin/env python
"""Anomalies of a table: flows that have seen benign tumours alone tell malignant ones by density.

scikit-learn's breast cancer data, 30 columns as they are. With their defaults, flows of the zoo
learn 200 benign rows, and stop when 50 more say so; what is scored are the other 107 benign rows
and all 212 malignant ones. Each seed draws the rows and the weights anew.
"""

import argparse
import pathlib

import keras
import matplotlib
import numpy as np
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

import keras_flows

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = pathlib.Path("demo")
FLOWS = ("Glow", "NSF", "RealNVP")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", nargs="+", default=FLOWS, choices=keras_flows.zoo.__all__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=500, help="at most")
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    methods = {name: flow(name, options.epochs) for name in options.flows}
    methods |= {"Gaussian, shrunk": gaussian, "kernel density": kernel_density}
    methods |= {"IsolationForest": isolation_forest}

    results = {name: [] for name in methods}
    for seed in range(options.seeds):
        train, validation, test, malignant = split(seed)
        for name, fit in methods.items():
            log_density = fit(train, validation, seed)
            log_densities = [log_density(rows) for rows in (validation, test, malignant)]
            results[name].append(log_densities)
            print(f"seed {seed}, {name}: AUROC {auroc(log_densities):.3f}", flush=True)

    print(f"\n{'':18}{'AUROC':>15}{'nats, validation':>20}{'nats, test':>20}")
    for name, runs in results.items():
        figures = [spread([auroc(run) for run in runs], 3)]
        if name != "IsolationForest":  # whose scores are no densities
            figures += [spread([run[i].mean() for run in runs], 1) for i in (0, 1)]
        print(f"{name:18}{figures[0]:>15}" + "".join(f"{text:>20}" for text in figures[1:]))
    print("Mean and deviation over seeds; nats are log-likelihoods of benign rows.")
    picture = OUTPUT / "anomalies.png"
    draw({name: runs[0] for name, runs in results.items()}, picture)
    print(f"Scores and ROC curves of the first seed: {picture}")


def split(seed):
    """Benign rows to train, to validate and to test with, and all malignant ones."""
    x, is_benign = load_breast_cancer(return_X_y=True)
    benign = np.random.default_rng(seed).permutation(x[is_benign == 1])
    return benign[:200], benign[200:250], benign[250:], x[is_benign == 0]


# Each fits the training rows and returns the function of a log-density, or of what serves as one.


def flow(name, epochs):
    def fit(train, validation, seed):
        keras.utils.set_random_seed(seed)
        model = getattr(keras_flows.zoo, name)(train.shape[1:], seed=seed)
        model.compile("adam")
        stop = keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True)
        data = {"validation_data": (validation,), "epochs": epochs}
        model.fit(train, callbacks=[stop], verbose=0, **data)
        return lambda rows: model.log_prob(rows).numpy()

    return fit


def gaussian(train, validation, seed):
    scaler = StandardScaler().fit(train)
    fitted = LedoitWolf().fit(scaler.transform(train))
    return in_units(scaler, multivariate_normal(fitted.location_, fitted.covariance_).logpdf)


def kernel_density(train, validation, seed):
    """With the best of four bandwidths."""
    scaler = StandardScaler().fit(train)
    fits = [
        KernelDensity(bandwidth=bandwidth).fit(scaler.transform(train))
        for bandwidth in (0.3, 0.5, 0.7, 1.0)
    ]
    best = max(fits, key=lambda fitted: fitted.score(scaler.transform(validation)))
    return in_units(scaler, best.score_samples)


def isolation_forest(train, validation, seed):
    return IsolationForest(random_state=seed).fit(train).score_samples


def in_units(scaler, log_density):
    """A log-density of standardised rows as one of rows as they are."""
    return lambda rows: log_density(scaler.transform(rows)) - np.log(scaler.scale_).sum()


def labels_and_scores(log_densities):
    _, test, malignant = log_densities
    labels = np.repeat([0, 1], [len(test), len(malignant)])
    return labels, -np.concatenate([test, malignant])


def auroc(log_densities):
    return roc_auc_score(*labels_and_scores(log_densities))


def spread(values, digits):
    return f"{np.mean(values):.{digits}f} +- {np.std(values):.{digits}f}"


def draw(results, picture):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    name, (_, test, malignant) = next(iter(results.items()))
    end = np.percentile(-malignant, 60)  # the last bin holds what is further out
    bins = np.linspace(-test.max(), end, 40)
    for rows, label in ((test, "benign"), (malignant, "malignant")):
        left.hist(np.minimum(-rows, end), bins, density=True, alpha=0.6, label=label)
    left.set(title=f"{name}: scores of unseen rows", xlabel="-log_prob in nats")
    for name, log_densities in results.items():
        false, true, _ = roc_curve(*labels_and_scores(log_densities))
        right.plot(false, true, label=f"{name}, {auroc(log_densities):.3f}")
    right.set(title="ROC", xlabel="benign rows flagged", ylabel="malignant rows flagged")
    for axis in (left, right):
        axis.legend()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main()
