"""What layers deep inside of a bijection are told without an argument: context variables."""

import contextlib
import contextvars

_guidance = contextvars.ContextVar("keras_flows_guidance", default=None)
_takes_gradients = contextvars.ContextVar("keras_flows_takes_gradients", default=False)


@contextlib.contextmanager
def having(variable, value):
    """Within this context the context variable has that value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def guided_by(weights):
    """Within this context inverses are guided by `weights`, (batch,) of numbers; None for not."""
    return having(_guidance, weights)


def current_guidance():
    """The weights, one for each row of the batch, or None."""
    return _guidance.get()


def taking_gradients():
    """Within this context layers save memory for gradients as they do in training."""
    return having(_takes_gradients, True)


def are_gradients_taken():
    return _takes_gradients.get()
