from keras import ops


def by_rows(dense, x):
    """`dense(x)` of (batch, ..., channels), as of one long list of rows.

    Where the batch is unknown, Keras' `Dense` of three axes or more takes a general product, whose
    gradient XLA does not compile.
    """
    if len(x.shape) == 2:
        return dense(x)
    rows = dense(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(rows, (-1, *x.shape[1:-1], rows.shape[-1]))
