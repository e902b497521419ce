"""How an argument is refused: by its name, the rule, and what was received."""

import numpy as np


def require(valid, rule, /, *, error=ValueError, **arguments):
    """Raises `error`, with the rule and the arguments as they came, unless they are valid."""
    if not valid:
        received = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise error(f"{rule}. Received: {received}")


def check_integers(minimum, **arguments):
    """Refuses arguments that are not int32 of at least `minimum`, by their names."""
    for name, value in arguments.items():
        valid = isinstance(value, int | np.integer) and not isinstance(value, bool)
        require(
            valid and minimum <= value < 2**31,
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
        len(shape) in (1, 3) and all(isinstance(n, int) and n >= 1 for n in shape),
        "Argument `input_shape` must be (D,) or (height, width, channels), positive integers "
        "without the batch",
        input_shape=input_shape,
    )
