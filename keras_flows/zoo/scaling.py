"""From data to what the first coupling sees."""

import keras

from keras_flows import layers
from keras_flows.arguments import require
from keras_flows.columns import Columns


def scale(
    input_shape,
    bits,
    logit_alpha,
    standardize,
    *,
    bounds=None,
    integer_columns=None,
    offset=0.0,
    dtype,
):
    """The first layers of a model.

    Images go to [0, 1] + offset or, if `logit_alpha` is given, to the logits of it; vectors with
    `bounds` to the logits within them, and are standardised, if asked for. They have a ValueError
    for `logit_alpha`.
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
    bins = 2 ** (8 if bits is None else bits)
    if logit_alpha is None:
        return [layers.Rescale(1 / bins, offset, dtype=dtype)]
    return [layers.Rescale(1 / bins, dtype=dtype), layers.Logit(logit_alpha, dtype=dtype)]
