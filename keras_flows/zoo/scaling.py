"""From data to what the first coupling sees."""

from keras_flows import layers
from keras_flows.arguments import require


def scale(input_shape, bits, logit_alpha, standardize, *, offset=0.0, dtype):
    """The first layers of a model.

    Images go to [0, 1] + offset or, if `logit_alpha` is given, to the logits of it; vectors are
    standardised, if asked for, and have a ValueError for `logit_alpha`.
    """
    if len(input_shape) == 1:
        require(
            logit_alpha is None,
            "Argument `logit_alpha` is for images only",
            logit_alpha=logit_alpha,
            input_shape=tuple(input_shape),
        )
        return [layers.Standardize(dtype=dtype)] if standardize else []
    bins = 2 ** (8 if bits is None else bits)
    if logit_alpha is None:
        return [layers.Rescale(1 / bins, offset, dtype=dtype)]
    return [layers.Rescale(1 / bins, dtype=dtype), layers.Logit(logit_alpha, dtype=dtype)]
