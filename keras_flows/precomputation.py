"""Values that layers make of their weights alone, made ahead of a loop or of an export.

The leaves make them, a 1x1 convolution the inverse of its matrix for instance, and compositions
know nothing of it. Whoever needs the values ahead asks all leaves at once, and supplies the values
to all of them at once.
"""

import contextvars
from types import MappingProxyType

from keras_flows.context import having
from keras_flows.private import flatten_layers

_known = contextvars.ContextVar("keras_flows_precomputed", default=MappingProxyType({}))


class Precomputes:
    """Mixin of a Keras layer that makes something of its weights alone.

    It writes `precompute` and reads the values by `precomputed`.
    """

    depends_on_direction = False
    """Whether the values of the two directions differ."""

    def precompute(self, inverse):
        """A structure of tensors that the forward, or inverse, pass makes of the weights alone."""
        raise NotImplementedError

    @property
    def precomputed_weights(self):
        """The weights that are read by `precompute` alone, in whichever direction."""
        return self.variables

    def precomputed(self, inverse=False):
        """What `precompute` gives, from whoever has computed it ahead, or else computed now."""
        known, key = _known.get(), _key(self, inverse)
        return known[key] if key in known else self.precompute(inverse)


def leaves_of(layer):
    """The layers inside of `layer`, itself included, that precompute."""
    return [leaf for leaf in flatten_layers(layer) if isinstance(leaf, Precomputes)]


def supply(leaves, values, inverse):
    """Within this context each of `leaves` finds its one of `values` as precomputed."""
    known = {_key(leaf, inverse): value for leaf, value in zip(leaves, values, strict=True)}
    return having(_known, {**_known.get(), **known})


def _key(leaf, inverse):
    return id(leaf), inverse and leaf.depends_on_direction
