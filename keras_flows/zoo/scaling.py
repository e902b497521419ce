"""From data to what the first coupling sees."""

import keras

from keras_flows import layers
from keras_flows.arguments import require
from keras_flows.columns import Columns
from keras_flows.dequantization import number_of_bits


def scale(
    input_shape,
    bits,
    logit_alpha,
    standardize,
    noise=None,
    *,
    bounds=None,
    integer_columns=None,
    offset=0.0,
    dtype,
):
    """The first layers of a model.

    Images go to [0, 1] + offset or, if `logit_alpha` is given, to the logits of it; vectors with
    `bounds` to the logits within them, and are standardised, if asked for. They have a ValueError
    for `logit_alpha`, and so have images with `noise`, which leave the range of a logit.
    """
    if len(input_shape) == 1:
        require(
            logit_alpha is None,
            "Argument `logit_alpha` is for images only",
            logit_alpha=logit_alpha,
            input_shape=tuple(input_shape),
        )
        first = [layers.Standardize(dtype=dtype)] if standardize else []
        if bounds is not None:
            variables = keras.dtype_policies.get(dtype).variable_dtype
            columns = Columns(*input_shape, bounds, integer_columns, variables)
            low, high = columns.continuous_bounds()
            first.insert(0, layers.Logit(low=low, high=high, dtype=dtype))
        return first
    require(
        None in (noise, logit_alpha),
        "Argument `noise` needs logit_alpha=None: noisy pixels have no logits",
        noise=noise,
        logit_alpha=logit_alpha,
    )
    bins = 2 ** number_of_bits(bits)
    if logit_alpha is None:
        return [layers.Rescale(1 / bins, offset, dtype=dtype)]
    return [layers.Rescale(1 / bins, dtype=dtype), layers.Logit(logit_alpha, dtype=dtype)]
