"""Data-dependent initialisation: the state of being in `adapt`.

`Bijection.adapt` is one eager forward pass with `adapting()` on. A layer whose initial weights
depend on the data asks `is_adapting()` and sets them before it computes, so that each layer sees
what the layers before it, already adapted, hand on - inside conditioner networks too.
"""

import contextlib
import contextvars

_adapting = contextvars.ContextVar("keras_flows_adapting", default=False)


@contextlib.contextmanager
def adapting():
    """Within this context data-dependent layers set their weights from what they are called on."""
    token = _adapting.set(True)
    try:
        yield
    finally:
        _adapting.reset(token)


def is_adapting():
    return _adapting.get()
