"""What the methods of an author's layer return, refused by name: by shapes, so free in a graph."""

import functools

import tensorflow as tf

FORWARD, INVERSE = "forward_and_log_det", "inverse_and_log_det"


def missing(layer, method):
    """The error for a method that the class of `layer` was to write."""
    return NotImplementedError(f"{_name(layer)} has no `{method}`: its class must write it.")


def check_pair(layer, method, result, pair):
    """The two of `result`; TypeError, with the method's name and what the pair is, for all else."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(
            f"`{method}` of {_name(layer)} must return a pair, {pair}. "
            f"Received: {type(result).__name__}{_of_shape(result)}"
        )
    return result


def checked(method, name):
    """`method`, by its `name` FORWARD or INVERSE, with a check of what it returns."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        # A subclass that extends it answers for the result itself.
        if args and getattr(type(self), name) is run:
            _check(self, name, args[0], result)
        return result

    return run


def _check(layer, name, given, result):
    y, log_det = check_pair(layer, name, result, f"({'z' if name == FORWARD else 'x'}, log_det)")
    given = tf.TensorShape(given.shape)
    if name == FORWARD:
        wanted = layer.compute_output_shape(tuple(given))
    else:
        wanted = (given[0], *layer.event_shape) if layer.built else None
    for rule, value, shape in (
        ("values of shape {}", y, wanted),
        (
            "a log_det of shape {}, one number for each example: sum it over all other axes, or "
            "repeat it if all have the same",
            log_det,
            (given[0],),
        ),
    ):
        received = tf.TensorShape(getattr(value, "shape", ()))
        if not received.is_compatible_with(shape):
            raise ValueError(
                f"`{name}` of {_name(layer)} must return {rule.format(shape)}. "
                f"Received: shape {received}, of a batch of shape {given}"
            )


def _name(layer):
    return f"{type(layer).__name__} {layer.name!r}"


def _of_shape(value):
    return f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
