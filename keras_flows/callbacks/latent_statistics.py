import numpy as np

from keras_flows.callbacks.base import ExampleMetrics
from keras_flows.layers import Chain


class LatentStatistics(ExampleMetrics):
    """Logs how the latents of given examples are distributed, which should be as the prior is.

    Each epoch gets the entries `latent_mean`, `latent_deviation` and `latent_excess_kurtosis`, over
    all examples and dimensions: 0, 1, 0 of a standard Gaussian, 0, 1.81, 1.2 of a logistic one. Of
    a bijection that ends with a `MultiScale` they are told for each level, `latent_mean_level_1`
    and so on; the last level is the one with the coarsest structure.

    ```python
    statistics = keras_flows.callbacks.LatentStatistics(images[:64])
    model.fit(images, epochs=1, callbacks=[statistics], verbose=0)
    [name for name in model.history.history if name.startswith("latent_mean")]
    ```

    Place it before callbacks that read the logs, such as `CSVLogger`. Examples that the model is
    not trained on tell the more: latents of others spread as it overfits.

    Args:
        examples: a batch (n, *input_shape) of data, as `log_prob` takes it.
        condition: of a conditional model, one for each example.

    Raises:
        ValueError, TypeError: from `fit`, for examples or a condition that the model does not take,
            and a model that is no Flow.
    """

    def entries(self, x, condition):
        latents = np.asarray(self.model.encode(x, condition), "float64")
        sizes = _level_sizes(self.model.bijection)
        if sizes is None:
            return _moments(latents, "")
        levels = np.split(latents, np.cumsum(sizes)[:-1], axis=1)
        return {
            name: value
            for i, level in enumerate(levels, start=1)
            for name, value in _moments(level, f"_level_{i}").items()
        }


def _level_sizes(bijection):
    """The sizes of the levels of a `MultiScale` that gives the latent; None if there is none."""
    while isinstance(bijection, Chain):
        bijection = bijection.layers[-1]
    return getattr(bijection, "latent_sizes", None)


def _moments(values, suffix):
    mean, deviation = values.mean(), values.std()
    kurtosis = np.mean(((values - mean) / deviation) ** 4) - 3 if deviation else np.nan
    moments = {"mean": mean, "deviation": deviation, "excess_kurtosis": kurtosis}
    return {f"latent_{name}{suffix}": float(value) for name, value in moments.items()}
