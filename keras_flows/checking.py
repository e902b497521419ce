"""Whether a layer of one's own keeps what a Bijection promises."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import require
from keras_flows.bijection import Bijection
from keras_flows.private import declared_trainable
from keras_flows.results import FORWARD, INVERSE

# Examples whose Jacobian is taken, and rows of it at a time.
EXAMPLES, ROWS = 2, 64


def check_bijection(layer, x, condition=None):
    """Checks on data that a layer can be inverted, and that its log-determinants are right.

    On the batch x, with `training=False` and noise on the weights, which are put back afterwards
    (weights that are zero at the start would hide what they do):

    - both methods return pairs of the right shapes and dtype, with no weight that `build` forgot;
    - the inverse gives x again, and minus forward's log_det;
    - what becomes of an example depends on no other;
    - log_det is log |det dz/dx|, by automatic differentiation, of the first two examples.

    Numbers may differ by the square root of the dtype's precision: 3e-4 in float32, 1e-8 in a layer
    made with `dtype="float64"`. The Jacobian takes a backward pass for each dimension, so let the
    events be small.

    Args:
        layer: a `Bijection`. If it is not built, it is, for x.
        x: a batch of data, at least two examples.
        condition: what the layer needs as `condition`, a row for each example.

    Raises:
        AssertionError: with the first that does not hold.

    Example:

    ```python
    layer = keras_flows.layers.AffineCoupling(keras_flows.networks.MLP(8))
    keras_flows.check_bijection(layer, np.random.normal(size=(4, 6)))
    ```
    """
    require(
        isinstance(layer, Bijection),
        "Argument `layer` must be a Bijection",
        error=TypeError,
        layer=layer,
    )
    x = ops.convert_to_tensor(x, layer.compute_dtype)
    shape = tuple(x.shape)
    require(
        len(shape) > 1 and shape[0] > 1,
        "Argument `x` must be a batch of at least two examples",
        shape=shape,
    )
    layer.build_or_check((None, *shape[1:]))
    condition = None if condition is None else ops.convert_to_tensor(condition)
    built = len(layer.weights)
    with _noise_on(layer):
        z, log_det = _run(layer, FORWARD, x, condition)
        again, inverse_log_det = _run(layer, INVERSE, z, condition)
        made = len(layer.weights) - built
        _assert(layer, not made, f"`build` must make all weights. Received: {made} more when used")
        _assert_same(layer, "the inverse of z must be x", again, x)
        _assert_same(layer, "the inverse's log_det must be -log_det", inverse_log_det, -log_det)
        for method, given, results in (
            (FORWARD, x, (z, log_det)),
            (INVERSE, z, (again, inverse_log_det)),
        ):
            for one in (slice(0, 1), slice(-1, None)):
                alone = _run(layer, method, given[one], _rows(condition, one))
                for value, wanted in zip(alone, results, strict=True):
                    rule = f"`{method}` must not mix examples: one alone must give the same"
                    _assert_same(layer, rule, value, wanted[one])
        jacobians = [_jacobian(layer, x, condition, i) for i in range(EXAMPLES)]
        wanted = np.linalg.slogdet(np.stack(jacobians)).logabsdet
        _assert_same(layer, "log_det must be log |det dz/dx|", log_det[:EXAMPLES], wanted)


def _run(layer, method, x, condition):
    try:
        results = getattr(layer, method)(x, condition)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise AssertionError(f"{layer.name!r}: {error}") from error
    for result in results:
        dtype = keras.backend.standardize_dtype(result.dtype)
        rule = f"`{method}` must give the dtype {layer.compute_dtype}. Received: {dtype}"
        _assert(layer, dtype == layer.compute_dtype, rule)
    return results


def _jacobian(layer, x, condition, i):
    """dz/dx of example i, (D, D), some rows at a time by copies of the example."""
    identity = np.eye(np.prod(x.shape[1:], dtype=int), dtype=x.dtype.as_numpy_dtype)
    rows = []
    for directions in np.split(identity, range(ROWS, len(identity), ROWS)):
        copies = [i] * len(directions)
        many = tf.gather(x, copies)
        with tf.GradientTape() as tape:
            tape.watch(many)
            z, _ = _run(layer, FORWARD, many, _rows(condition, copies))
            z = tf.reshape(z, directions.shape)
        rows.append(tape.gradient(z, many, directions, unconnected_gradients="zero"))
    return np.reshape(np.concatenate(rows), identity.shape).astype("float64")


def _rows(condition, which):
    return None if condition is None else condition.numpy()[which]


def _assert(layer, holds, rule):
    if not holds:
        raise AssertionError(f"Of {type(layer).__name__} {layer.name!r}, {rule}")


def _assert_same(layer, rule, value, wanted):
    value, wanted = np.asarray(value), np.asarray(wanted)
    excess = abs(value - wanted) - np.sqrt(np.finfo(layer.compute_dtype).eps) * (1 + abs(wanted))
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    received = f"{value[worst]:.6g} instead of {wanted[worst]:.6g}, at {[int(i) for i in worst]}"
    _assert(layer, np.all(excess <= 0), f"{rule}. Received: {received}")  # NaN is not <= 0


@contextlib.contextmanager
def _noise_on(layer):
    """Within this context there is noise on the weights that training changes."""
    rng = np.random.default_rng(0)
    trainable = {id(weight) for weight in declared_trainable(layer)}
    weights, before = layer.weights, layer.get_weights()
    try:
        for weight in weights:
            # Little on each of many that are summed: results stay in a range where they are exact.
            noise = rng.normal(scale=0.2 / np.sqrt(np.prod(weight.shape[:-1])), size=weight.shape)
            if id(weight) in trainable:
                value = weight + noise
                weight.assign(value if weight.constraint is None else weight.constraint(value))
            elif "moving_" in weight.name:  # so Keras names averages; variances are positive
                weight.assign(weight + abs(noise))
        yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.assign(value)
