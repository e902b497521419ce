"""One loop over stacks of values, forwards or backwards."""

import tensorflow as tf


def scan(body, state, stacks, depth, *, reverse=False, outputs=(), unroll=False, parallel=10):
    """Runs `state, written = body(state, slices)` for k = 0, ..., depth - 1.

    In a graph it is one `tf.while_loop`, whose size does not depend on the depth.

    Args:
        body: a function of the state and of slices k of `stacks`. It returns the next state and
            what to write at place k of the outputs: a tensor for each, always or never None.
        state: a structure of tensors of constant shapes.
        stacks: a structure of tensors (depth, ...).
        reverse: whether k runs from depth - 1 to 0.
        outputs: list of tensors (depth, ...), which tell dtypes and shapes.
        unroll: a loop in Python, also in a graph; eagerly there is no other.
        parallel: how many iterations may be under way at once.

    Returns:
        The last state, and the outputs as a list of tensors (depth, ...), None where `body` wrote
        None.
    """
    if unroll or tf.executing_eagerly():
        return _python_loop(body, state, stacks, depth, reverse)
    arrays = tf.nest.map_structure(_unstack, stacks)
    written = set()

    def iteration(i, state, outputs):
        k = depth - 1 - i if reverse else i
        slices = tf.nest.map_structure(lambda array: array.read(k), arrays)
        after, values = body(state, slices)
        tf.nest.map_structure(lambda new, old: new.set_shape(old.shape), after, state)
        outputs = list(outputs)
        for j, value in enumerate(values):
            if value is not None:
                outputs[j] = outputs[j].write(k, value)
                written.add(j)
        return i + 1, after, outputs

    _, state, arrays_out = tf.while_loop(
        lambda i, *_: i < depth,
        iteration,
        (0, state, [_empty_like(output) for output in outputs]),
        maximum_iterations=depth,
        parallel_iterations=parallel,
    )
    return state, [a.stack() if j in written else None for j, a in enumerate(arrays_out)]


def _python_loop(body, state, stacks, depth, reverse):
    flat = [tf.unstack(stack) for stack in tf.nest.flatten(stacks)]
    steps = [tf.nest.pack_sequence_as(stacks, [each[k] for each in flat]) for k in range(depth)]
    written = []
    for slices in reversed(steps) if reverse else steps:
        state, values = body(state, slices)
        written.append(values)
    columns = zip(*(reversed(written) if reverse else written), strict=True)
    return state, [None if values[0] is None else tf.stack(values) for values in columns]


def _empty_like(stack):
    return tf.TensorArray(stack.dtype, stack.shape[0], element_shape=stack.shape[1:])


def _unstack(stack):
    return _empty_like(stack).unstack(stack)
