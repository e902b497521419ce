import math
import warnings

import numpy as np

from keras_flows.arguments import check_in
from keras_flows.callbacks.base import ExampleMetrics


class RoundTripError(ExampleMetrics):
    """Logs how far the model is from being its own inverse: `round_trip_error`, each epoch.

    It is the largest |x - inverse(forward(x))| of all elements of given examples, as the bijection
    sees them: a vector in its own units, a dequantised image in [0, 2^bits), so that from 0.5 on a
    pixel comes back as another one. Infinity where the inverse overflows.

    ```python
    check = keras_flows.callbacks.RoundTripError(images[:32])
    model.fit(images, epochs=1, callbacks=[check], verbose=0)
    model.history.history["round_trip_error"]
    ```

    Place it before callbacks that read the logs, such as `CSVLogger`.

    Args:
        examples: a batch (n, *input_shape) of data, as `log_prob` takes it.
        condition: of a conditional model, one for each example.
        bound: past which there is a RuntimeWarning. By default 0.5 for images, none for vectors.

    Raises:
        ValueError, TypeError: for a bound that is not positive; from `fit`, for examples or a
            condition that the model does not take, and a model that is no Flow.
    """

    def __init__(self, examples, condition=None, *, bound=None):
        super().__init__(examples, condition)
        if bound is not None:
            check_in("(0, inf]", bound=bound)
        self.bound = bound

    def entries(self, x, condition):
        model = self.model
        errors = model.traced(model.round_trip_errors)(model.dequantize(x), condition).numpy()
        error = float(np.max(errors)) if np.isfinite(errors).all() else math.inf
        bound = self.bound or (0.5 if model.is_image else math.inf)
        if error > bound:
            warnings.warn(
                f"The largest round trip error of {len(x)} examples is {error:.3g}, past the bound "
                f"{bound:.3g}: latents do not determine data to that precision any more. Smaller "
                "scales (a coupling that bounds them, a lower learning rate) or float64 help.",
                RuntimeWarning,
                stacklevel=2,
            )
        return {"round_trip_error": error}
