"""Whether a gradient will be taken though it is not training: told to layers deep inside."""

import contextlib
import contextvars

_taken = contextvars.ContextVar("keras_flows_takes_gradients", default=False)


@contextlib.contextmanager
def taking_gradients():
    """Within this context layers save memory for gradients as they do in training."""
    token = _taken.set(True)
    try:
        yield
    finally:
        _taken.reset(token)


def are_gradients_taken():
    return _taken.get()
