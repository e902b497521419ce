"""How an argument is refused: by its name, the rule, and what was received."""

import numbers

import numpy as np

LONG = 200  # characters, of which nobody reads more


def require(valid, rule, /, *, error=ValueError, **arguments):
    """Raises `error`, with the rule and the arguments as they came, unless they are valid."""
    if not valid:
        received = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
        raise error(f"{rule}. Received: {received}")


def shown(value):
    """`repr`; of a long one, shape and dtype or, without them, the beginning and the end."""
    text = repr(value)
    if len(text) <= LONG:
        return text
    if hasattr(value, "shape"):
        dtype = f", {np.dtype(value.dtype).name}" if isinstance(value, np.ndarray) else ""
        return f"{type(value).__name__} of shape {tuple(value.shape)}{dtype}"
    return f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"


def first_of(values, broken):
    """Of an array, the first value that is `broken`, Booleans of its shape or its leading axes'."""
    place = np.argwhere(broken)[0].tolist()
    more = int(np.sum(broken)) - 1
    return f"{values[tuple(place)]!s} at {place}" + f", and {more:,} more" * (more > 0)


def check_finite(name, values, dtype):
    """Refuses an array with values that are no finite numbers of `dtype`."""
    with np.errstate(over="ignore"):
        broken = ~np.isfinite(values.astype(dtype, copy=False))
    if broken.any():
        beyond = f" in {dtype}" if np.isfinite(values).all() else ""
        raise ValueError(
            f"{name} must be finite. Received: values that are NaN or infinite{beyond}: "
            f"{first_of(values, broken)}"
        )


def is_integer(value):
    """Whether it is an integer, NumPy's too, and no Boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value):
    """Whether it is a real number, NumPy's too, and no Boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_in(interval, **arguments):
    """Refuses arguments that are no numbers in an interval such as "[0, 1)", by their names."""
    low, high = map(float, interval[1:-1].split(","))
    for name, value in arguments.items():
        valid = is_number(value) and low <= value <= high  # which NaN is not
        valid = valid and (interval[0] == "[" or value > low)
        valid = valid and (interval[-1] == "]" or value < high)
        require(valid, f"Argument `{name}` must be a number in {interval}", **{name: value})


def check_integers(minimum, **arguments):
    """Refuses arguments that are not int32 of at least `minimum`, by their names."""
    for name, value in arguments.items():
        require(
            is_integer(value) and minimum <= value < 2**31,
            f"Argument `{name}` must be an integer of at least {minimum} and below 2^31",
            **{name: value},
        )


def check_one_of(allowed, **argument):
    """Refuses an argument that is none of the strings `allowed`, by its name."""
    ((name, value),) = argument.items()
    valid = isinstance(value, str) and value in allowed
    require(valid, f"Argument `{name}` must be one of {tuple(allowed)}", **argument)


def check_input_shape(input_shape):
    """(D,) with D >= 1 or (height, width, channels), all known."""
    shape = tuple(input_shape) if hasattr(input_shape, "__iter__") else ()
    require(
        len(shape) in (1, 3) and all(is_integer(n) and n >= 1 for n in shape),
        "Argument `input_shape` must be (D,) or (height, width, channels), positive integers "
        "without the batch",
        input_shape=input_shape,
    )
