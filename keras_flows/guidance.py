"""How strongly samples are guided by their labels: told to layers deep inside of a bijection."""

import contextlib
import contextvars

_weights = contextvars.ContextVar("keras_flows_guidance", default=None)


@contextlib.contextmanager
def guided_by(weights):
    """Within this context inverses are guided by `weights`, (batch,) of numbers; None for not."""
    token = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(token)


def current_guidance():
    """The weights, one for each row of the batch, or None."""
    return _weights.get()
