"""What `Repeat` asks of a step beyond its two directions. Each has a default that serves."""

import contextlib
import contextvars

import tensorflow as tf

_precomputed = contextvars.ContextVar("keras_flows_precomputed", default={})


class Repeatable:
    """Mixin of what goes into a `Repeat`: work done ahead of the loop, and the way back through it.

    A subclass that makes something expensive of its weights alone (the inverse of a matrix, say)
    returns it from `precompute` and reads it by `precomputed`; one that can share work between
    inverting and differentiating overrides `backward`. Compositions hand all of it on.
    """

    def precompute(self, inverse):
        """A structure of tensors that the forward, or inverse, pass makes of the weights alone."""
        return ()

    def precomputed_weights(self):
        """The variables that are read by `precompute` alone, in whichever direction."""
        return []

    def precomputed(self, inverse):
        """What `precompute` gives, from whoever has computed it ahead, or else computed now."""
        known = _precomputed.get()
        key = (id(self), inverse)
        return known[key] if key in known else self.precompute(inverse)

    def backward(self, z, dz, dlog_det, sources, condition=None, training=False):
        """Undoes `forward_and_log_det` and differentiates it, with nothing stored.

        Args:
            z: what forward gave.
            dz, dlog_det: the gradients of the loss in both results.
            sources: list of tensors, what weights and precomputed values are read from.
            condition, training: as given to forward.

        Returns:
            x, the gradient in x, and a list of the gradients in `sources`, None where there is
            none.
        """
        x, _ = self.inverse_and_log_det(z, condition, training)
        with tf.GradientTape() as tape:
            tape.watch([x, *sources])
            outputs = self.forward_and_log_det(x, condition, training)
        dx, *gradients = tape.gradient(outputs, [x, *sources], [dz, dlog_det])
        return x, dx, gradients


@contextlib.contextmanager
def supply(repeatables, values, inverse):
    """Within this context each of `repeatables` finds its one of `values` as precomputed."""
    known = {(id(each), inverse): value for each, value in zip(repeatables, values)}
    token = _precomputed.set(_precomputed.get() | known)
    try:
        yield
    finally:
        _precomputed.reset(token)


def precomputed_weights(repeatables):
    """Those of all of them."""
    return [variable for each in repeatables for variable in each.precomputed_weights()]


def flatten_layers(layer):
    """The Keras layer and all layers inside it, those of the pattern of a `Repeat` too."""
    for inner in layer._flatten_layers():
        yield inner
        pattern = getattr(inner, "step", None)
        if isinstance(pattern, Repeatable):
            yield from flatten_layers(pattern)


def add_gradients(*gradients):
    """Their sum; None stands for zero."""
    given = [gradient for gradient in gradients if gradient is not None]
    return tf.add_n(given) if given else None
